"""Reader of Megatron .bin/.idx shards: memory-mapped, and checked against its own index before a token is used."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotron_kit.errors import UserError

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


class Shard:
    """One shard, `<prefix>.bin` and `<prefix>.idx`: documents of token ids.

    `tokens` is the whole stream: 1-D, read-only, in the shard's own integer type. `shard[i]` is document i, a view of
    it without a copy. Raises UserError when a file is missing, or when the two do not fit each other byte for byte.
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
        return len(self.tokens)


def _read_index(path: Path) -> tuple[type[np.integer[Any]], NDArray[np.int32]]:
    """The token type and the lengths of all documents; every array of the index is checked against the others."""
    data = _read(path)
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
            f"{path}: {len(data):,} bytes, but its header speaks of {sequences:,} documents, which take {expected:,}.",
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
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.", hint=_MADE_BY) from error
    if size != expected:
        raise UserError(f"{path}: {size:,} bytes, but its index says {expected:,}.", hint=_MADE_BY)
    if count == 0:  # an empty file can't be mapped
        return np.empty(0, dtype)
    # A plain array over the map: slices of np.memmap itself cost several times as much.
    return np.memmap(path, dtype, mode="r", shape=(count,)).view(np.ndarray)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.", hint=_MADE_BY) from error
