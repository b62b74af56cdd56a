"""Lines of files: plain ones by byte range, compressed ones as a stream. A truncated stream is an error, not an end of
file.

At most one line, and a bounded piece of a compressed file's content, is in memory at a time: a line of more than `most`
bytes is skipped, and a `TooLong` is returned for it.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from nemotron_kit.data_prep import sources
from nemotron_kit.data_prep.config import show_size
from nemotron_kit.errors import UserError

_CHUNK = 1 << 16  # bytes of a compressed file at a time
# The zstandard package decompresses all of its input, without a bound. A block of 128 KiB has at least 4 bytes (RFC
# 8878, 3.1.1), so this much of a file holds at most 32 MiB.
_ZSTD_CHUNK = 1024
_PIECE = 1 << 20  # bytes of its content at a time
# Text shrinks to a tenth, very repetitive text to a hundredth. What grows more than this, beyond a few megabytes, is
# made to fill a disk or a week.
MAX_EXPANSION = 1000
EXPANDED = 16 << 20


class TooLong(bytes):
    """Returned for a line that is too long to be read."""


TOO_LONG = TooLong(b"\0")


def lines_between(path: str, start: int, end: int, most: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of each line that starts in [start, end)."""
    with sources.open_binary(path) as file:
        position = start
        if start:
            # One byte back: a line that starts at `start` is ours, one that started before is not.
            file.seek(start - 1)
            position = start - 1 + _rest_of_line(file, end - start + 1)
        while position < end and (line := file.readline(most + 1)):
            size = len(line)
            if size > most and not line.endswith(b"\n"):
                yield position, TOO_LONG
                size += _rest_of_line(file)
            else:
                yield position, line
            position += size


def all_lines(path: str, compression: str, most: int) -> Iterator[bytes]:
    """Every line of a file, plain or under gz, zst, bz2 or xz, in order."""
    if compression:
        yield from _lines(content(path, compression), most)
    else:
        yield from (line for _, line in lines_between(path, 0, sys.maxsize, most))


def content(path: str, compression: str) -> Iterator[bytes]:
    """The decompressed content of a file, of all members (gzip, bzip2, xz) or frames (zstd), in bounded pieces."""
    import zstandard

    taken = given = 0
    with sources.open_binary(path) as file:
        try:
            for read, out in _members(file, _ENGINES[compression], path):
                taken, given = taken + read, given + len(out)
                if given > EXPANDED and given > MAX_EXPANSION * taken:
                    raise UserError(
                        f"{path}: its first {show_size(taken)} hold {show_size(given)}, over {MAX_EXPANSION} times as "
                        "much.",
                        hint="That is how a decompression bomb looks. If it is meant, decompress the file first.",
                    )
                for at in range(0, len(out), _PIECE):
                    yield out[at : at + _PIECE]
        except (zlib.error, lzma.LZMAError, _BadBzip2, zstandard.ZstdError) as error:
            raise UserError(f"{path}: not a valid .{compression} file: {error}.") from error


def _rest_of_line(file: BinaryIO, most: int | None = None) -> int:
    """Skip to the next line's start, at most about `most` bytes; returns the number of bytes skipped."""
    count = 0
    while (most is None or count < most) and (part := file.readline(_PIECE)):
        count += len(part)
        if part.endswith(b"\n"):
            break
    return count


def _lines(chunks: Iterable[bytes], most: int) -> Iterator[bytes]:
    begun: list[bytes] = []
    size = 0
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        size += len(first)
        if size <= most:
            begun.append(first)
        else:
            begun = []
        if rest:
            yield b"".join(begun) if size <= most else TOO_LONG
            whole = rest[:-1]
            yield from whole if len(chunk) <= most else (line if len(line) <= most else TOO_LONG for line in whole)
            size = len(rest[-1])
            begun = [rest[-1]] if size <= most else []
    if size > most:
        yield TOO_LONG
    elif size:
        yield b"".join(begun)


def _members(file: BinaryIO, engine: Callable[[], Any], path: str) -> Iterator[tuple[int, bytes]]:
    """(bytes taken, content) of each step through a compressed file."""
    current: Any = None
    begun = False
    padding = 0
    while data := file.read(_ZSTD_CHUNK if engine is _Zstd else _CHUNK):
        taken = len(data)
        if begun and current is None:
            data, padding = _unpadded(data, padding, path)
        begun = True
        while data or (current is not None and not current.needs_input):
            current = current or engine()
            out = current.decompress(data, _PIECE)
            yield taken, out
            taken = 0
            data = b""
            if current.eof:
                data, padding = _unpadded(current.unused_data, 0, path)
                current = None
    if current is not None:
        raise UserError(f"{path}: cut short: its compressed data has no end.", hint="Fetch the file again.")


class _Gzip:
    """zlib's engine with the interface of bz2's and lzma's."""

    def __init__(self) -> None:
        self._engine = zlib.decompressobj(wbits=31)
        self._full = False

    def decompress(self, data: bytes, most: int) -> bytes:
        out = self._engine.decompress(self._engine.unconsumed_tail + data, most)
        self._full = len(out) == most  # there may be more inside it
        return out

    @property
    def needs_input(self) -> bool:
        return not self._engine.unconsumed_tail and not self._full

    @property
    def eof(self) -> bool:
        return self._engine.eof

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data


class _BadBzip2(OSError):
    """Corrupt data. bz2 raises a bare OSError for it, which could not be told from a read error."""


class _Bzip2:
    def __init__(self) -> None:
        self._engine = bz2.BZ2Decompressor()

    def decompress(self, data: bytes, most: int) -> bytes:
        try:
            return self._engine.decompress(data, most)
        except OSError as error:
            raise _BadBzip2(str(error)) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class _Zstd:
    """zstandard's engine with the interface of bz2's and lzma's, but for the bound (see _ZSTD_CHUNK)."""

    needs_input = True

    def __init__(self) -> None:
        import zstandard

        self._engine = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._engine.decompress(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


_ENGINES: dict[str, Callable[[], Any]] = {"gz": _Gzip, "bz2": _Bzip2, "xz": lzma.LZMADecompressor, "zst": _Zstd}


def _unpadded(data: bytes, padding: int, path: str) -> tuple[bytes, int]:
    """Data without the zeros that it begins with, and how many there were with those before: tapes pad files."""
    rest = data.lstrip(b"\0")
    padding += len(data) - len(rest)
    if padding > _PIECE:
        raise UserError(f"{path}: more than {_PIECE >> 20} MiB of zeros follow its compressed data.")
    return rest, padding
