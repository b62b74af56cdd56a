"""Orders that are functions of a seed and a position: no state to save, the same on every machine and numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Uints = NDArray[np.uint64]

_ROUNDS = 4


def mix(values: Uints | int) -> Uints:
    """64-bit values, each bit scrambled (the finalizer of splitmix64)."""
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
    """Where a shuffle of range(size) puts each entry of `index`; one shuffle for each value of `keys`.

    A Feistel network permutes the next power of four, and what falls outside range(size) goes round again: any entry
    of the shuffle is found by itself, without the memory or the time that a shuffled list of all of them takes.
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
    """An endless sequence of source numbers in which source i has its share `weights[i]` of every stretch.

    Item j of source i stands at time (j + ½) / weights[i], and the sequence is all items in order of time (so the
    order never depends on how long a run is). It is made in blocks, each by one sort.
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
