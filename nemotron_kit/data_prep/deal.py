"""Deals a blend's files to shards: even ones, each a mix of its whole source, by rules that depend on the plan alone.

Files are cut into cells ("part 3 of 12 of this file") small enough for the smallest shard, and each cell goes to the
shard that is behind most. Cells come in a pseudo-random order, so that no split gets only the end of a source.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron_kit.data_prep.listing import compression_of, kind_of
from nemotron_kit.data_prep.plan import Piece, SourceFile

# Cells in the smallest shard. Ranges cost nothing to cut; a compressed stream, and CSV, is read from its start by every
# shard that has a part of it, so those are cut as little as evenness allows.
_RANGES, _STREAMS = 16, 4
_MOST = 1 << 14
# Bytes of text in a byte of file, about: shards are to be even in text.
_TEXT_PER_BYTE = {"gz": 3.0, "zst": 3.5, "bz2": 4.0, "xz": 4.0, "parquet": 2.0}


@dataclass(frozen=True)
class _Cell:
    file: int
    part: int
    of: int
    size: float


def text_size(file: SourceFile) -> float:
    """About how many bytes of text a file holds; its rows where they were counted (under `sample`, in all files)."""
    if file.rows is not None:
        return float(file.rows)
    kind = kind_of(file.path) or ""
    return file.size * _TEXT_PER_BYTE.get(compression_of(kind) or kind, 1.0)


def apportion(count: int, sizes: Sequence[float]) -> list[int]:
    """`count` shards over sources in proportion to their sizes, at least one each (so more than `count` if need be)."""
    total = sum(sizes) or 1.0
    shares = [1] * len(sizes)
    for _ in range(count - len(sizes)):
        behind = max(range(len(sizes)), key=lambda i: (sizes[i] / total * count - shares[i], -i))
        shares[behind] += 1
    return shares


def deal(files: Sequence[SourceFile], shares: Sequence[float]) -> list[tuple[Piece, ...]]:
    """For each share (its part of the source, adding up to 1), the pieces that make it up."""
    cells = [cell for number, file in enumerate(files) for cell in _cut(number, file, _cell_size(files, shares, file))]
    dealt: list[list[_Cell]] = [[] for _ in shares]
    # (how full for its share, tie-break, shard): the first is the one that is behind most
    behind = [(0.0, _shuffled(shard, 0), shard) for shard in range(len(shares))]
    heapq.heapify(behind)
    for turn, cell in enumerate(sorted(cells, key=lambda cell: (cell.part, _shuffled(cell.file, cell.part)))):
        filled, _, shard = behind[0]
        dealt[shard].append(cell)
        heapq.heapreplace(behind, (filled + cell.size / shares[shard], _shuffled(shard, turn), shard))
    return [_pieces(cells) for cells in dealt]


def _cell_size(files: Sequence[SourceFile], shares: Sequence[float], file: SourceFile) -> float:
    kind = kind_of(file.path) or ""
    finest = _STREAMS if compression_of(kind) or kind == "csv" else _RANGES
    return sum(map(text_size, files)) * min(shares) / finest


def _cut(number: int, file: SourceFile, cell_size: float) -> list[_Cell]:
    size = text_size(file)
    count = min(_MOST, max(1, math.ceil(size / cell_size))) if size else 0
    return [_Cell(number, part, count, size / count) for part in range(count)]


def _pieces(cells: Sequence[_Cell]) -> tuple[Piece, ...]:
    parts: dict[tuple[int, int], list[int]] = {}
    for cell in cells:
        parts.setdefault((cell.file, cell.of), []).append(cell.part)
    return tuple(Piece(file, tuple(sorted(parts[file, of])), of) for file, of in sorted(parts))


def _shuffled(*key: object) -> bytes:
    return hashlib.blake2b(repr(key).encode("utf-8"), digest_size=8).digest()
