"""Lines of files: plain by byte range, compressed as a stream. A stream cut short is an error, never its end."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from nemotron_kit.data_prep import store
from nemotron_kit.errors import UserError

_CHUNK = 1 << 16


def lines_between(path: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of each line that starts in [start, end)."""
    with store.open_binary(path) as file:
        position = start
        if start:
            # One byte back: a line that starts at `start` is ours, one that started before is not.
            file.seek(start - 1)
            position = start - 1 + len(file.readline())
        while position < end and (line := file.readline()):
            yield position, line
            position += len(line)


def all_lines(path: str, kind: str) -> Iterator[bytes]:
    """Every line of a file of kind jsonl, gz or zst, in order."""
    with store.open_binary(path) as file:
        if kind == "jsonl":
            yield from file
            return
        try:
            yield from _lines(_decompressed(file, _engine(kind), path))
        except (zlib.error, _zstd_error()) as error:
            raise UserError(f"{path}: not a valid .{kind} file: {error}.") from error


def _engine(kind: str) -> Callable[[], Any]:
    if kind == "gz":
        return lambda: zlib.decompressobj(wbits=31)
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


def _decompressed(file: BinaryIO, engine: Callable[[], Any], path: str) -> Iterator[bytes]:
    """The content of all members (gzip) or frames (zstd)."""
    current: Any = None
    while data := file.read(_CHUNK):
        while data:
            current = current or engine()
            out = current.decompress(data)
            if out:
                yield out
            if not current.eof:
                break
            data = current.unused_data.lstrip(b"\0")  # gzip files may be padded
            current = None
    if current is not None:
        raise UserError(f"{path}: cut short: its compressed data has no end.", hint="Fetch the file again.")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    begun: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        begun.append(first)
        if rest:
            yield b"".join(begun)
            yield from rest[:-1]
            begun = [rest[-1]]
    last = b"".join(begun)
    if last:
        yield last
