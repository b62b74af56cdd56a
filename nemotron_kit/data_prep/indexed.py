"""Writer of Megatron's indexed dataset: `<prefix>.bin` holds all token ids, `<prefix>.idx` the position of each
document.

The format is that of megatron/core/datasets/indexed_dataset.py. The .idx, little-endian: 9 bytes of magic, version
(u64), dtype code (u8), number of sequences n (u64), number of document boundaries n + 1 (u64); then n lengths in tokens
(i32), n byte offsets into the .bin (i64), n + 1 document boundaries as sequence numbers (i64). Here a document is one
sequence.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nemotron_kit.errors import NemotronError
from nemotron_kit.files import aside, fsync_dir

MAGIC = b"MMIDIDX\x00\x00"
CODES = {"int32": 4, "int64": 5, "uint16": 8}


@dataclass(frozen=True)
class WrittenShard:
    """A file that is complete and synced under a temporary name; `size` in bytes, `sha256` of its content."""

    temporary: Path
    final: Path
    size: int
    sha256: str


class ShardWriter:
    """Writes one shard's two files under temporary names beside their final paths; `publish` renames them.

    A context manager: files that were not published are removed at its end.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        with write_errors(prefix):
            prefix.parent.mkdir(parents=True, exist_ok=True)
        self.prefix, self.dtype = prefix, np.dtype(dtype).newbyteorder("<")
        self.lengths = array("i")
        self._bin = HashedFile(prefix.with_name(f"{prefix.name}.bin"))
        self._idx = HashedFile(prefix.with_name(f"{prefix.name}.idx"))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bin.discard()
        self._idx.discard()

    @property
    def tokens(self) -> int:
        """How many were added so far."""
        return self._bin.size // self.dtype.itemsize

    def add(self, ids: Sequence[int], lengths: Sequence[int]) -> None:
        """Append documents: their token ids, one after the other, and the length of each in tokens."""
        self._bin.write(np.fromiter(ids, dtype=self.dtype, count=len(ids)).tobytes())
        self.lengths.extend(lengths)

    def publish(self) -> tuple[WrittenShard, WrittenShard]:
        """Write the index, sync both files, give them their names and return (.bin, .idx)."""
        for part in _index(np.frombuffer(self.lengths, dtype=np.int32), self.dtype):
            self._idx.write(part)
        written = self._bin.finish(), self._idx.finish()
        with write_errors(self.prefix):
            for file in written:
                file.temporary.replace(file.final)
            fsync_dir(self.prefix.parent)
        return written


def _index(lengths: NDArray[np.int32], dtype: np.dtype[np.generic]) -> list[bytes]:
    count = len(lengths)
    offsets = np.zeros(count, dtype="<i8")
    np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
    offsets *= dtype.itemsize
    head = MAGIC + struct.pack("<QBQQ", 1, CODES[dtype.name], count, count + 1)
    marks = np.arange(count + 1, dtype="<i8")
    return [head, lengths.astype("<i4").tobytes(), offsets.tobytes(), marks.tobytes()]


class HashedFile:
    """A temporary file beside its final path that keeps the size and sha256 of what was written to it.

    A context manager: a file that was not given its name is removed at its end.
    """

    def __init__(self, final: Path) -> None:
        self.final, self.size = final, 0
        self.path = aside(final)
        self._digest = hashlib.sha256()
        with write_errors(final):
            self._file = self.path.open("xb", buffering=1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, data: bytes | memoryview) -> None:
        """Append data. Raises NemotronError, naming the final path, if it can't be written."""
        with write_errors(self.final):
            self._file.write(data)
        self._digest.update(data)
        self.size += data.nbytes if isinstance(data, memoryview) else len(data)

    def finish(self) -> WrittenShard:
        """Sync and close the file; it keeps its temporary name. Raises NemotronError if it can't be written."""
        with write_errors(self.final):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return WrittenShard(self.path, self.final, self.size, self._digest.hexdigest())

    def publish(self) -> WrittenShard:
        """`finish`, and give the file its name."""
        written = self.finish()
        with write_errors(self.final):
            written.temporary.replace(self.final)
            fsync_dir(self.final.parent)
        return written

    def discard(self) -> None:
        """Close and remove the temporary file, unless it was renamed."""
        with suppress(OSError):  # closing flushes, and what could not be written before still can't
            self._file.close()
        self.path.unlink(missing_ok=True)


def holds(path: Path, expected: tuple[int, str]) -> bool:
    """Whether a file has this size in bytes and this sha256."""
    if not path.is_file() or path.stat().st_size != expected[0]:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected[1]


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError (a full or read-only disk) into a NemotronError that names the file."""
    try:
        yield
    except OSError as error:
        hint = "Make room, or choose another output_dir; finished shards are kept."
        raise NemotronError(f"{path}: can't be written: {error.strerror or error}.", hint=hint) from error
