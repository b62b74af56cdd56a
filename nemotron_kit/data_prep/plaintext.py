"""Plain text: a file is one document; a large one is cut at paragraphs into documents of about 256 KiB."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

from nemotron_kit.data_prep import store, streams
from nemotron_kit.data_prep.plan import Piece, SourceFile
from nemotron_kit.data_prep.rows import Rows
from nemotron_kit.errors import UserError

_DOCUMENT = 1 << 18
_SEARCH = 1 << 16


def texts(file: SourceFile, piece: Piece, compression: str, rows: Rows) -> Iterator[str]:
    """The documents of a piece; one that is not UTF-8 text is refused with the byte that is not."""
    parts = frozenset(piece.parts)
    documents = _unpacked(file, compression) if compression else _cut_out(file, piece.of, parts)
    for number, (start, data) in enumerate(itertools.islice(documents, file.rows)):
        if number % piece.of not in parts:
            continue
        rows.rows += 1
        try:
            text = _decoded(data, file.path, start)
        except UserError as error:
            rows.refuse(UserError, error.message)
            continue
        if text.strip():
            yield text
        else:
            rows.empty += 1


def count_rows(file: SourceFile, compression: str, limit: int) -> int:
    """How many documents a file holds, `limit` at most."""
    if compression:
        return sum(1 for _ in itertools.islice(_unpacked(file, compression), limit))
    return min(-(-file.size // _DOCUMENT), limit)


def _cut_out(file: SourceFile, of: int, parts: frozenset[int]) -> Iterator[tuple[int, bytes]]:
    """(first byte, content) of each document; b"" for one of another part, which is not read."""
    with store.open_binary(file.path) as stream:
        for number in range(-(-file.size // _DOCUMENT)):
            if number % of in parts:
                start, end = (_cut(stream, (number + i) * _DOCUMENT, file.size) for i in (0, 1))
                yield start, _between(stream, start, end)
            else:
                yield 0, b""


def _unpacked(file: SourceFile, compression: str) -> Iterator[tuple[int, bytes]]:
    """(first byte, content) of each document of a compressed file, which is read from its start."""
    held, start = b"", 0
    for chunk in streams.content(file.path, compression):
        held += chunk
        while len(held) >= _DOCUMENT + _SEARCH:
            end = _cut(BytesIO(held), _DOCUMENT, len(held))
            yield start, held[:end]
            held, start = held[end:], start + end
    while held:
        end = _cut(BytesIO(held), _DOCUMENT, len(held))
        yield start, held[:end]
        held, start = held[end:], start + end


def _between(stream: BinaryIO, start: int, end: int) -> bytes:
    stream.seek(start)
    return stream.read(end - start)


def _cut(stream: BinaryIO, at: int, size: int) -> int:
    """Where the document that ends near `at` ends: after a blank line, else a line, else a character."""
    if at == 0 or at >= size:
        return min(at, size)
    data = _between(stream, at, min(at + _SEARCH, size))
    for gap in (b"\n\n", b"\n"):
        found = data.find(gap)
        if found >= 0:
            return at + found + len(gap)
    return at + sum(1 for _ in itertools.takewhile(lambda byte: byte & 0xC0 == 0x80, data[:4]))


def _decoded(data: bytes, path: str, start: int) -> str:
    null = data.find(0)
    if null >= 0:  # a program, an image, a file with holes
        raise UserError(f"{path}: not plain text: a null character (byte {start + null}).")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {start + error.start}).") from error
