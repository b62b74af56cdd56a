"""From shards to training samples: windows of seq_length + 1 tokens, blended by weight, shuffled by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotron_kit.errors import UserError
from nemotron_kit.training.blend import Source
from nemotron_kit.training.order import Interleave, key, permute
from nemotron_kit.training.shards import Shard

Window = NDArray[np.integer[Any]]


class BlendSamples:
    """An endless, shuffled, weighted blend of windows: `samples[n]` is sample n, for any n ≥ 0, in constant time.

    A window is seq_length + 1 consecutive tokens of one shard, [seq_length + 1] in the shard's type; neighbours share
    one token, so that every token is predicted once. A shard's windows come in a shuffled order that is new in each
    of its epochs. Everything is a function of (weights, seed, n): nothing has to be saved to resume at any sample.
    Raises UserError when no shard holds a single window.
    """

    def __init__(self, sources: Sequence[Source], seq_length: int, seed: int) -> None:
        shards = [Shard(source.prefix) for source in sources]
        counts = [window_count(shard, seq_length) for shard in shards]
        self.seq_length = seq_length
        # A shard's number in the blend, not its path, enters the shuffle: moving the data changes nothing.
        self._numbers = [number for number, count in enumerate(counts) if count]
        self.shards = [shards[number] for number in self._numbers]
        self.counts = [counts[number] for number in self._numbers]
        _require_windows(self.counts, sources, seq_length)
        self._shares = _weights([sources[number] for number in self._numbers], self.counts)
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
        """[weight, windows] of each shard that is read: what, with the seed, decides every sample."""
        return [[float(weight), count] for weight, count in zip(self._shares, self.counts, strict=True)]

    def source_of(self, position: int) -> str:
        """The prefix of the shard that sample `position` comes from."""
        first, sources, _ = self._plan(position)
        return self.shards[sources[position - first]].prefix

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
    """Every window of the given shards once, in order; at most `limit` of them, evenly spread."""

    def __init__(self, sources: Sequence[Source], seq_length: int, limit: int | None) -> None:
        self.seq_length = seq_length
        self.shards = [Shard(source.prefix) for source in sources]
        self._ends = np.cumsum([window_count(shard, seq_length) for shard in self.shards])
        total = int(self._ends[-1])
        kept = total if limit is None else min(limit, total)
        self._chosen = (np.arange(kept) * total) // max(kept, 1)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, position: int) -> Window:
        window = int(self._chosen[position])
        source = int(np.searchsorted(self._ends, window, side="right"))
        start = (window - (int(self._ends[source - 1]) if source else 0)) * self.seq_length
        return self.shards[source].tokens[start : start + self.seq_length + 1]


def window_count(shard: Shard, seq_length: int) -> int:
    """How many windows of seq_length + 1 tokens the shard holds; what is left at its end is not used."""
    return max(0, (shard.token_count - 1) // seq_length)


def _weights(sources: Iterable[Source], counts: Sequence[int]) -> NDArray[np.float64]:
    pairs = zip(sources, counts, strict=True)
    return np.array([source.weight if source.weight is not None else count for source, count in pairs], np.float64)


def _require_windows(counts: Sequence[int], sources: Sequence[Source], seq_length: int) -> None:
    if not counts:
        names = ", ".join(source.prefix for source in sources[:3]) or "no shards"
        raise UserError(
            f"No shard of the train split holds {seq_length + 1} tokens ({names}).",
            hint="Prepare more data, or set a smaller dataset.seq_length.",
        )
