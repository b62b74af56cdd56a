"""Turns packed rows (data prep's Parquet) into batches: their order, their sequences, and batches of these.

A row's sequences are separated again, sorted by length, and padded on the right: a causal model can't attend to padding
that follows, so no sequence affects another, on any device and in any version of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemotron_kit.errors import UserError
from nemotron_kit.files import sha256_of
from nemotron_kit.training.content import fingerprint
from nemotron_kit.training.data import evenly, key, permute

if TYPE_CHECKING:
    import torch

COLUMNS = ("input_ids", "loss_mask", "seq_start_id")
_MADE_BY = "Make the data again: nemotron nano3 data prep sft."
# Rows are shuffled within windows of about so many tokens, whose row groups are chosen at random: all of it, where the
# data is smaller.
WINDOW_TOKENS = 1 << 27
# What a forward and a backward pass cost besides their tokens, in tokens.
_PASS = 256


class Row(NamedTuple):
    """One packed row: input_ids, int32 [tokens]; loss mask, uint8 [tokens]; sequence starts, int32 [sequences]."""

    ids: NDArray[np.int32]
    mask: NDArray[np.uint8]
    starts: NDArray[np.int32]

    @property
    def loss_tokens(self) -> int:
        """The number of tokens whose prediction counts for the loss."""
        return int(self.mask.sum())

    def dummy(self) -> Row:
        """Its first two tokens (its only one twice), the second a loss token: an input for a pass whose loss is
        dropped."""
        return Row(np.resize(self.ids[:2], 2), np.array([1, 0], dtype=np.uint8), self.starts[:1])

    def sequences(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
        """(ids, mask) of each sequence with loss tokens, cut after its last one: mask[i] is that of predicting ids[i +
        1]."""
        ends = np.append(self.starts[1:], len(self.ids))
        for start, end in zip(self.starts.tolist(), ends.tolist(), strict=True):
            counted = np.flatnonzero(self.mask[start:end])
            if len(counted):
                last = start + int(counted[-1])
                yield self.ids[start : last + 2], self.mask[start : last + 1]


class Batch(NamedTuple):
    """Sequences padded on the right, int64 or bool [sequences, longest]: `labels` are the next tokens, `counts` marks
    the labels that count for the loss, `real` the inputs that are no padding. With `seq_idx` and `position_ids` it is
    one long row that holds the sequences one after another."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    counts: torch.Tensor
    real: torch.Tensor
    position_ids: torch.Tensor | None = None
    seq_idx: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(*(None if tensor is None else tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class _Group:
    file: int
    number: int
    rows: int


class PackedRows:
    """The rows of one split, by number in the files' order. Raises UserError for files that are missing, or no packed
    rows.

    `rows_at(start, stop)` of an endless shuffle is a function of (seed, position), so that no state has to be saved to
    resume at any row: each epoch is a new order of the row groups, shuffled together within windows of them.
    """

    def __init__(self, folder: Path, seq_length: int, seed: int = 0) -> None:
        """`vocab_size`, once set, is the model's: tokens are checked against it where they are read."""
        if folder.is_file():
            self.files = [folder]
        else:
            self.files = sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))
        if not self.files:
            older = next(folder.glob("*.npy"), None) if folder.is_dir() else None
            found = (
                f"it holds {older.name}, an older form of packed rows" if older else "no packed rows (*.parquet) here"
            )
            raise UserError(f"{folder}: {found}.", hint="Prepare them first: nemotron nano3 data prep sft -c tiny")
        self.folder = folder
        self.seq_length, self._seed = seq_length, seed
        self.vocab_size: int | None = None
        self._groups = [
            _Group(number, group, rows)
            for number, file in enumerate(self.files)
            for group, rows in enumerate(_group_sizes(file))
            if rows
        ]
        self.count = sum(group.rows for group in self._groups)
        if not self.count:
            raise UserError(f"{folder}: its files hold no rows.", hint=_MADE_BY)
        self._per_window = max(1, WINDOW_TOKENS // (max(group.rows for group in self._groups) * seq_length))
        self._held: tuple[tuple[int, int], int, list[Row]] | None = None

    def digest(self) -> str:
        """The digest of the files' content."""
        return sha256_of([fingerprint(file) for file in self.files])

    def in_order(self, limit: int | None = None) -> Iterator[Row]:
        """The rows in the files' order; at most `limit`, evenly spaced."""
        wanted = iter(evenly(self.count, limit).tolist())
        following, before = next(wanted, None), 0
        for group in self._groups:
            if following is None:
                return
            rows = self._read(group) if following < before + group.rows else []
            while following is not None and following < before + group.rows:
                yield rows[following - before]
                following = next(wanted, None)
            before += group.rows

    def rows_at(self, start: int, stop: int) -> list[Row]:
        """Rows `start` … `stop` - 1 of the endless shuffle."""
        found = []
        for position in range(start, stop):
            epoch, place = divmod(position, self.count)
            if self._held is None or self._held[0][0] != epoch or not 0 <= place - self._held[1] < len(self._held[2]):
                self._held = self._window_at(epoch, place)
            found.append(self._held[2][place - self._held[1]])
        return found

    def _window_at(self, epoch: int, place: int) -> tuple[tuple[int, int], int, list[Row]]:
        """The window of the epoch that contains `place`: (epoch, number), its first position, its rows in order."""
        order = _shuffled(len(self._groups), self._seed, epoch)
        first = 0
        for number, begin in enumerate(range(0, len(order), self._per_window)):
            groups = [self._groups[group] for group in order[begin : begin + self._per_window]]
            size = sum(group.rows for group in groups)
            if place < first + size:
                rows = [row for group in groups for row in self._read(group)]
                return (epoch, number), first, [rows[at] for at in _shuffled(size, self._seed, epoch, number + 1)]
            first += size
        raise IndexError(place)

    def _read(self, group: _Group) -> list[Row]:
        """The rows of one row group, checked."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self.files[group.file]
        try:
            with pq.ParquetFile(file) as opened:
                table = opened.read_row_group(group.number, columns=list(COLUMNS))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file}: it can't be read: {' '.join(str(error).split())}", hint=_MADE_BY) from error
        chunks = [table.column(name).combine_chunks() for name in COLUMNS]
        for name, column in zip(COLUMNS, chunks, strict=True):
            if column.null_count or column.values.null_count:
                raise UserError(f"{file}: {name} holds null where there must be a number.", hint=_MADE_BY)
        columns = [_lists(column) for column in chunks]
        self._check(file, *columns)
        lists = ([values[a:b] for a, b in pairwise(bounds.tolist())] for values, bounds in columns)
        return [Row(*row) for row in zip(*lists, strict=True)]

    def _check(self, file: Path, tokens: _Lists, mask: _Lists, starts: _Lists) -> None:
        """Raises UserError for invalid rows. All rows of a group are checked at once."""
        (ids, bounds), (masks, mask_bounds), (firsts, first_bounds) = tokens, mask, starts
        lengths, sequences = np.diff(bounds), np.diff(first_bounds)
        if not np.array_equal(bounds, mask_bounds):
            raise UserError(f"{file}: loss_mask is not as long as input_ids.", hint=_MADE_BY)
        if (lengths == 0).any() or (sequences == 0).any():
            raise UserError(f"{file}: a row is empty.", hint=_MADE_BY)
        if lengths.max() > self.seq_length:
            raise UserError(
                f"{file}: a row has {int(lengths.max())} tokens, but dataset.seq_length is {self.seq_length}.",
                hint="Set dataset.seq_length to the pack_size of the data: ${art:data,pack_size}.",
            )
        steps = np.diff(firsts)
        steps[first_bounds[1:-1] - 1] = 1  # from one row to the next
        if firsts[first_bounds[:-1]].any() or (steps <= 0).any() or (firsts[first_bounds[1:] - 1] >= lengths).any():
            raise UserError(f"{file}: seq_start_id is not where sequences begin: 0 first, growing.", hint=_MADE_BY)
        begins = firsts.astype(np.int64) + np.repeat(bounds[:-1], sequences)
        if masks.max(initial=0) > 1 or masks[np.append(begins[1:], len(ids)) - 1].any():
            raise UserError(
                f"{file}: loss_mask is not of 0 and 1, shifted left within each sequence (the last of each 0).",
                hint=_MADE_BY,
            )
        if ids.min() < 0:
            raise UserError(f"{file}: the data holds token {int(ids.min())}; tokens are numbers from 0.", hint=_MADE_BY)
        if self.vocab_size is not None and ids.max() >= self.vocab_size:
            raise UserError(
                f"{file}: the data holds token {int(ids.max())}, but the model's vocabulary has {self.vocab_size}.",
                hint="Prepare the data with the model's own tokenizer.",
            )


_Lists = tuple[NDArray[Any], NDArray[np.int64]]


def _lists(column: Any) -> _Lists:
    """A list column's values, and the offsets at which its lists begin and the last one ends."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _group_sizes(file: Path) -> list[int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            missing = [name for name in COLUMNS if name not in opened.schema_arrow.names]
            sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            kinds = [opened.schema_arrow.field(name).type for name in COLUMNS if name not in missing]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a Parquet file: {' '.join(str(error).split())}", hint=_MADE_BY) from error
    if missing:
        raise UserError(f"{file}: not packed rows: it has no column {', '.join(missing)}.", hint=_MADE_BY)
    if kinds != [pa.list_(pa.int32()), pa.list_(pa.uint8()), pa.list_(pa.int32())]:
        shown = ", ".join(f"{name} {kind}" for name, kind in zip(COLUMNS, kinds, strict=True))
        raise UserError(f"{file}: not packed rows: its columns are {shown}.", hint=_MADE_BY)
    return sizes


def _shuffled(size: int, *parts: int) -> list[int]:
    order: list[int] = permute(np.arange(size, dtype=np.uint64), size, key(*parts)).astype(np.int64).tolist()
    return order


def batches(rows: Sequence[Row], most: int) -> Iterator[Batch]:
    """The sequences of the rows, sorted by length and cut into batches of at most `most` tokens including padding (a
    single sequence always fits), such that padding and number of passes together cost least."""
    sequences = sorted((sequence for row in rows for sequence in row.sequences()), key=lambda one: -len(one[1]))
    for start, stop in _cuts([len(mask) for _, mask in sequences], most):
        yield _padded(sequences[start:stop])


def _cuts(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Where to cut a list of decreasing lengths: the cheapest partition, by dynamic programming from the end."""
    cost, following = [0] * (len(lengths) + 1), [len(lengths)] * (len(lengths) + 1)
    for start in range(len(lengths) - 1, -1, -1):
        fits = max(1, most // lengths[start])
        stops = range(start + 1, min(start + fits, len(lengths)) + 1)
        cost[start], following[start] = min(
            (_PASS + (stop - start) * lengths[start] + cost[stop], stop) for stop in stops
        )
    cuts, start = [], 0
    while start < len(lengths):
        cuts.append((start, following[start]))
        start = following[start]
    return cuts


def _padded(sequences: Sequence[tuple[NDArray[np.int32], NDArray[np.uint8]]]) -> Batch:
    import torch

    shape = len(sequences), max(len(mask) for _, mask in sequences)
    inputs, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    counts, real = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for place, (ids, mask) in enumerate(sequences):
        length = len(mask)
        inputs[place, :length], labels[place, :length] = ids[:-1], ids[1:]
        counts[place, :length], real[place, :length] = mask, True
    return Batch(*map(torch.from_numpy, (inputs, labels, counts, real)))


def packed_batches(rows: Sequence[Row], most: int) -> Iterator[Batch]:
    """The sequences of the rows one after another, `most` tokens at a time (a single sequence always fits), for kernels
    that separate them."""
    held: list[tuple[NDArray[np.int32], NDArray[np.uint8]]] = []
    size = 0
    for sequence in (sequence for row in rows for sequence in row.sequences()):
        if held and size + len(sequence[1]) > most:
            yield _joined(held)
            held, size = [], 0
        held.append(sequence)
        size += len(sequence[1])
    if held:
        yield _joined(held)


def _joined(sequences: Sequence[tuple[NDArray[np.int32], NDArray[np.uint8]]]) -> Batch:
    import torch

    lengths = [len(mask) for _, mask in sequences]
    inputs = np.concatenate([ids[:-1] for ids, _ in sequences]).astype(np.int64)
    labels = np.concatenate([ids[1:] for ids, _ in sequences]).astype(np.int64)
    counts = np.concatenate([mask for _, mask in sequences]).astype(np.bool_)
    positions = np.concatenate([np.arange(length) for length in lengths])
    numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    tensors = (inputs, labels, counts, np.ones(len(inputs), np.bool_), positions, numbers)
    return Batch(*(torch.from_numpy(tensor)[None] for tensor in tensors))
