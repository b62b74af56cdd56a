"""Training samples from Megatron shards: blends, windows of seq_length + 1 tokens, and their order."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemotron_kit.artifacts.manifest import located_in, read_document
from nemotron_kit.errors import UserError, nearest
from nemotron_kit.files import open_regular, read_regular
from nemotron_kit.objects import local_copies, object_url

if TYPE_CHECKING:
    import torch


SPLITS = ("train", "valid", "test")
_FORM = '{"train": ["0.7", "/data/a", "0.3", "/data/b"], "valid": ["1.0", "/data/v"]}'


@dataclass(frozen=True)
class BlendSource:
    """One entry of a blend: a shard prefix and its weight in the split; `weight` None: in proportion to the shard's
    tokens."""

    weight: float | None
    prefix: str


def read_blend(path: str | Path, only: str | None = None) -> dict[str, list[BlendSource]]:
    """The sources of each split in a blend file, without those of weight 0 and the splits that have no other. Relative
    prefixes are relative to the file's folder; absolute ones inside the folder are followed if it was moved. Shards in
    an object store are copied to this machine's cache; with `only`, those of this split.

    Raises UserError for a missing or broken file, an unknown split, or a list that isn't weight, prefix, weight, …
    """
    path = Path(path)
    splits = _load(path)
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"{path}: unknown split {split!r}; {nearest(split, SPLITS)}")
    found = {
        split: _sources(path, split, entries, fetch=only in (None, split))
        for split, entries in splits.items()
        if entries
    }
    return {split: sources for split, sources in found.items() if sources}


def _load(path: Path) -> dict[str, Any]:
    try:
        splits = json.loads(read_regular(path))
        if isinstance(splits, dict) and (document := read_document(path.absolute().parent)):
            here = located_in(path.absolute().parent, {"path": document.get("path"), "splits": splits})
            splits = here["splits"]
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}.", hint="Prepare the data first: nemotron nano3 data prep pretrain -c tiny"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}", hint=f"A blend file looks like {_FORM}") from error
    if not isinstance(splits, dict) or not all(isinstance(entries, list | None) for entries in splits.values()):
        raise UserError(f"{path}: not an object of lists.", hint=f"A blend file looks like {_FORM}")
    return splits


def _sources(path: Path, split: str, entries: list[Any], *, fetch: bool) -> list[BlendSource]:
    weights = [_number(entry) for entry in entries[::2]]
    if len(entries) % 2 == 0 and all(weight is not None for weight in weights):
        pairs = list(zip(weights, entries[1::2], strict=True))
    elif all(isinstance(entry, str) and _number(entry) is None for entry in entries):
        pairs = [(None, entry) for entry in entries]
    else:
        raise UserError(f"{path}: {split} is not weight, prefix, weight, prefix, …", hint=f"It looks like {_FORM}")
    for weight, prefix in pairs:
        if not isinstance(prefix, str) or (weight is not None and not 0 <= weight < math.inf):
            raise UserError(f"{path}: {split} has the weight {weight!r} for {prefix!r}; it must be 0 or more.")
    found = []
    for weight, prefix in pairs:
        if weight == 0:
            continue
        place = object_url(prefix)
        if place is None:
            place = str(path.parent / prefix)
        elif fetch:
            place = local_copies(place, (".bin", ".idx"), optional=(".json",))
        found.append(BlendSource(weight, place))
    return found


def _number(entry: Any) -> float | None:
    if isinstance(entry, bool) or not isinstance(entry, str | int | float):
        return None
    try:
        return float(entry)
    except ValueError:
        return None


Uints = NDArray[np.uint64]

_ROUNDS = 4


def mix(values: Uints | int) -> Uints:
    """64-bit hashes of 64-bit values, elementwise: the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA
    2014)."""
    x = np.atleast_1d(np.asarray(values, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts: Uints | int) -> Uints:
    """One 64-bit key from several numbers (arrays broadcast: a key for each entry)."""
    out = mix(0)
    for part in parts:
        out = mix(out ^ mix(part))
    return out


def permute(index: Uints, size: int, keys: Uints) -> Uints:
    """Positions after a shuffle of range(size): for each entry of `index` ([n], each < size) its new position, [n].

    `keys` (scalar or [n]) selects the shuffle. A Feistel network permutes the next power of four, and results outside
    range(size) are permuted again ("cycle walking", Black and Rogaway, CT-RSA 2002). Each entry is computed by itself
    in constant time and memory: no shuffled list is stored.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    out = index.astype(np.uint64)
    keys = np.broadcast_to(keys, out.shape)
    todo = np.arange(len(out))
    while len(todo):
        out[todo] = _feistel(out[todo], keys[todo], half)
        todo = todo[out[todo] >= size]
    return out


def _feistel(x: Uints, keys: Uints, half: int) -> Uints:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> shift, x & mask
    for round_ in range(_ROUNDS):
        left, right = right, left ^ (mix(right ^ mix(keys + np.uint64(round_))) & mask)
    return (left << shift) | right


class Interleave:
    """An endless sequence of source numbers in which source i has the share `weights[i]` of every stretch.

    `weights` is [sources], positive, and need not sum to 1. Item j of source i has the time (j + ½) / weights[i], and
    the sequence is all items sorted by time, so the order does not depend on the length of a run. It is computed in
    blocks of about `span` items, each by one sort.
    """

    def __init__(self, weights: NDArray[np.float64], span: int = 1 << 14) -> None:
        if len(weights) == 0 or not (weights > 0).all():
            raise ValueError("weights must be positive, and at least one")
        self._weights = weights / weights.sum()
        self._span = span

    def counts(self, block: int) -> NDArray[np.int64]:
        """How many items of each source come before `block`."""
        times = self._weights * (block * self._span)
        return np.asarray(np.ceil(np.maximum(times - 0.5, 0.0)), dtype=np.int64)

    def block_of(self, position: int) -> int:
        """The block that holds the item at `position` of the sequence."""
        block = position // self._span
        while self.counts(block).sum() > position:
            block -= 1
        while self.counts(block + 1).sum() <= position:
            block += 1
        return block

    def block(self, block: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """(position of its first item, source of each item, that item's number within its source)."""
        first, last = self.counts(block), self.counts(block + 1)
        sizes = last - first
        sources = np.repeat(np.arange(len(sizes)), sizes)
        items = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(first, sizes)
        by_time = np.argsort((items + 0.5) / self._weights[sources], kind="stable")
        return int(first.sum()), sources[by_time], items[by_time]


# magic, version, dtype code, sequences, document boundaries; the arrays start at byte 34, so unaligned.
_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES: dict[int, type[np.integer[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
_MADE_BY = "Make the shard again (nemotron nano3 data prep pretrain)."


class TokenShard:
    """One shard in Megatron's indexed format, `<prefix>.bin` and `<prefix>.idx`: documents of token ids.

    The format is that of megatron/core/datasets/indexed_dataset.py (see data_prep/indexed.py). `tokens` is the whole
    stream: [tokens], read-only, in the shard's own integer type. `shard[i]` is document i, a view of it without a copy.
    Raises UserError when a file is missing, or when the two files contradict each other.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        idx, bin_ = Path(f"{self.prefix}.idx"), Path(f"{self.prefix}.bin")
        self.dtype, lengths = _read_index(idx)
        starts = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        self.tokens = _map_tokens(bin_, self.dtype, int(starts[-1]))
        # A memoryview hands out Python ints, which slice an array faster than numpy's own scalars.
        self._starts = memoryview(starts)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> NDArray[np.integer[Any]]:
        """Document `index` (0 ≤ index < len), as a read-only view."""
        starts = self._starts
        if index < 0:
            raise IndexError(index)
        return self.tokens[starts[index] : starts[index + 1]]

    def __iter__(self) -> Iterator[NDArray[np.integer[Any]]]:
        return (self[index] for index in range(len(self)))

    @property
    def token_count(self) -> int:
        """The number of tokens of all documents together."""
        return len(self.tokens)


def _read_index(path: Path) -> tuple[type[np.integer[Any]], NDArray[np.int32]]:
    """The token type and the lengths of all documents; every array of the index is checked against the others."""
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.", hint=_MADE_BY) from error
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise UserError(f"{path}: not a Megatron index (its first bytes are wrong).", hint=_MADE_BY)
    _, version, code, sequences, boundaries = _HEADER.unpack_from(data)
    if version != 1 or code not in _DTYPES:
        raise UserError(
            f"{path}: version {version}, token type {code}; readable are version 1 with types {sorted(_DTYPES)}.",
            hint=_MADE_BY,
        )
    expected = _HEADER.size + 12 * sequences + 8 * boundaries
    if len(data) != expected:
        raise UserError(
            f"{path}: {len(data):,} bytes, but its header declares {sequences:,} documents, which take {expected:,}.",
            hint=_MADE_BY,
        )
    lengths = np.frombuffer(data, np.int32, sequences, _HEADER.size).copy()
    pointers = np.frombuffer(data, np.int64, sequences, _HEADER.size + 4 * sequences)
    documents = np.frombuffer(data, np.int64, boundaries, _HEADER.size + 12 * sequences)
    _check_arrays(path, lengths, pointers, documents, np.dtype(_DTYPES[code]).itemsize)
    return _DTYPES[code], lengths


def _check_arrays(
    path: Path, lengths: NDArray[np.int32], pointers: NDArray[np.int64], documents: NDArray[np.int64], itemsize: int
) -> None:
    starts = (np.cumsum(lengths, dtype=np.int64) - lengths) * itemsize
    whole = (
        (lengths >= 0).all()
        and np.array_equal(starts, pointers)
        and len(documents) > 0
        and documents[0] == 0
        and documents[-1] == len(lengths)
        and (np.diff(documents) >= 0).all()
    )
    if not whole:
        raise UserError(f"{path}: its lengths, offsets and document boundaries contradict each other.", hint=_MADE_BY)


def _map_tokens(path: Path, dtype: type[np.integer[Any]], count: int) -> NDArray[np.integer[Any]]:
    expected = count * np.dtype(dtype).itemsize
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.", hint=_MADE_BY) from error
    if size != expected:
        raise UserError(f"{path}: {size:,} bytes, but its index says {expected:,}.", hint=_MADE_BY)
    if count == 0:  # an empty file can't be mapped
        return np.empty(0, dtype)
    # A plain array over the map: slices of np.memmap itself cost several times as much.
    return np.memmap(path, dtype, mode="r", shape=(count,)).view(np.ndarray)


Window = NDArray[np.integer[Any]]


class BlendSamples:
    """An endless, shuffled, weighted blend of windows: `samples[n]` is sample n, for any n ≥ 0, in constant time.

    A window is seq_length + 1 consecutive tokens of one shard, [seq_length + 1] in the shard's type; neighbours share
    one token, so that every token is predicted once. A shard's windows come in a shuffled order that is new in each
    of its epochs. Everything is a function of (weights, seed, n): nothing has to be saved to resume at any sample.
    Shards that hold no window have no share, whatever their weight: `too_short` names them. Raises UserError when no
    shard holds a single window.
    """

    def __init__(self, sources: Sequence[BlendSource], seq_length: int, seed: int) -> None:
        shards = [TokenShard(source.prefix) for source in sources]
        counts = [window_count(shard, seq_length) for shard in shards]
        self.seq_length = seq_length
        # A shard's number in the blend, not its path, enters the shuffle: moving the data changes nothing.
        self._numbers = [number for number, count in enumerate(counts) if count]
        self.shards = [shards[number] for number in self._numbers]
        self.counts = [counts[number] for number in self._numbers]
        if not self.counts:
            names = ", ".join(source.prefix for source in sources[:3]) or "no shards"
            raise UserError(
                f"No shard of the train split holds {seq_length + 1} tokens ({names}).",
                hint="Prepare more data, or set a smaller dataset.seq_length.",
            )
        self.too_short = [source.prefix for source, count in zip(sources, counts, strict=True) if not count]
        weights = [sources[number].weight for number in self._numbers]
        shares = [count if weight is None else weight for weight, count in zip(weights, self.counts, strict=True)]
        self._shares = np.array(shares, np.float64)
        self._interleave = Interleave(self._shares)
        self._seed = seed
        self._block: tuple[int, list[int], list[int]] = (0, [], [])

    def __getitem__(self, position: int) -> Window:
        first, sources, windows = self._block
        offset = position - first
        if not 0 <= offset < len(sources):
            first, sources, windows = self._block = self._plan(position)
            offset = position - first
        start = windows[offset] * self.seq_length
        return self.shards[sources[offset]].tokens[start : start + self.seq_length + 1]

    def describe(self) -> list[list[float]]:
        """[weight, windows] of each shard that is read; with the seed, they determine every sample."""
        return [[float(weight), count] for weight, count in zip(self._shares, self.counts, strict=True)]

    def _plan(self, position: int) -> tuple[int, list[int], list[int]]:
        """The block around `position`: its first position, and for each sample its shard and its window there."""
        first, sources, items = self._interleave.block(self._interleave.block_of(position))
        windows = np.empty_like(items)
        for source in np.unique(sources):
            here = sources == source
            epoch, index = np.divmod(items[here].astype(np.uint64), np.uint64(self.counts[source]))
            keys = key(self._seed, self._numbers[source], epoch)
            windows[here] = permute(index, self.counts[source], keys)
        return first, sources.tolist(), windows.tolist()


class HeldOutSamples:
    """Every window of seq_length + 1 tokens of the given shards once, in order; at most `limit`, evenly spaced."""

    def __init__(self, sources: Sequence[BlendSource], seq_length: int, limit: int | None) -> None:
        self.seq_length = seq_length
        self.shards = [TokenShard(source.prefix) for source in sources]
        self._ends = np.cumsum([window_count(shard, seq_length) for shard in self.shards])
        self._chosen = evenly(int(self._ends[-1]), limit)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, position: int) -> Window:
        window = int(self._chosen[position])
        source = int(np.searchsorted(self._ends, window, side="right"))
        start = (window - (int(self._ends[source - 1]) if source else 0)) * self.seq_length
        return self.shards[source].tokens[start : start + self.seq_length + 1]


def evenly(count: int, limit: int | None) -> NDArray[np.int64]:
    """The numbers, from 0, of at most `limit` of `count` things, evenly spaced; of all for None."""
    kept = count if limit is None else min(limit, count)
    return (np.arange(kept) * count) // max(kept, 1)


def window_count(shard: TokenShard, seq_length: int) -> int:
    """The number of windows of seq_length + 1 tokens in the shard; the remainder at its end is not used."""
    return max(0, (shard.token_count - 1) // seq_length)


Samples = BlendSamples | HeldOutSamples


@dataclass(frozen=True)
class BatchSampler:
    """This rank's micro-batches of the steps first_step, first_step + 1, … last_step (counted from 1).

    Each step takes the next global_batch_size samples, given to the ranks micro-batch by micro-batch; the first takes
    those from `first_sample` on (None: all steps before took as many). Yields {"input_ids", "labels"}, both int64
    [micro_batch_size, seq_length]; labels are the next tokens.
    """

    samples: Samples
    first_step: int
    last_step: int
    global_batch_size: int
    micro_batch_size: int
    vocab_size: int
    rank: int = 0
    world_size: int = 1
    first_sample: int | None = None

    @property
    def per_step(self) -> int:
        """Micro-batches a step on one rank: the gradient accumulation."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def __len__(self) -> int:
        return (self.last_step - self.first_step + 1) * self.per_step

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(self.first_step, self.last_step + 1):
            for micro in range(self.per_step):
                yield collate(self.samples, self.positions(step, micro), self.vocab_size)

    def positions(self, step: int, micro: int) -> range:
        """The samples of this rank's micro-batch number `micro` (from 0) of `step`."""
        size = self.global_batch_size
        before = (self.first_step - 1) * size if self.first_sample is None else self.first_sample
        within = (micro * self.world_size + self.rank) * self.micro_batch_size
        first = before + (step - self.first_step) * size + within
        return range(first, first + self.micro_batch_size)


def collate(samples: Samples, positions: range, vocab_size: int) -> dict[str, Any]:
    """{"input_ids", "labels"} of the samples at `positions`. Raises UserError for a token outside of the model's
    vocabulary."""
    import torch

    windows = np.stack([samples[position] for position in positions]).astype(np.int64, copy=False)
    smallest, largest = int(windows.min()), int(windows.max())
    if smallest < 0:
        raise UserError(f"The data holds token {smallest}; tokens are numbers from 0.", hint=_MADE_BY)
    if largest >= vocab_size:
        raise UserError(
            f"The data holds token {largest}, but the model's vocabulary has {vocab_size} (model.vocab_size).",
            hint=f"Set model.vocab_size={largest + 1} or more, or train on data made with the model's tokenizer.",
        )
    tokens = torch.from_numpy(windows)
    return {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
