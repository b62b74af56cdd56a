"""Texts of JSON lines files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from nemotron_kit.data_prep import store, streams
from nemotron_kit.data_prep.plan import Piece, SourceFile
from nemotron_kit.errors import UserError

# Below this, a file's rows are dealt one by one: exact for small data, and reading all of it costs nothing.
SMALL = 1 << 20
TEXT_FIELD = "Set text_field to the one with text."


def texts(file: SourceFile, piece: Piece, kind: str, field: str) -> Iterator[str]:
    """The texts of a piece. A row whose text is null or empty is left out. Raises UserError with the line's number."""
    import orjson

    loads, malformed = orjson.loads, orjson.JSONDecodeError
    by_range = kind == "jsonl" and file.rows is None and file.size > SMALL
    for where, line in _ranges(file, piece) if by_range else _dealt(file, piece, kind):
        try:
            text = loads(line)[field]
        except (malformed, KeyError, TypeError):
            text = _careful(line, field, file.path, where, by_range)
        if isinstance(text, str):
            if text:
                yield text
        elif text is not None:
            at = _line_number(file.path, where, by_range)
            raise UserError(f"{file.path}, line {at}: {field!r} is a {type(text).__name__}, not text.")


def count_rows(file: SourceFile, kind: str, limit: int) -> int:
    """How many rows a file has, `limit` at most."""
    return sum(1 for _ in itertools.islice(_rows(file.path, kind), limit))


def _rows(path: str, kind: str) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of each line that is not blank."""
    numbered = enumerate(streams.all_lines(path, kind), 1)
    return ((number, line) for number, line in numbered if line and not line.isspace())


def _dealt(file: SourceFile, piece: Piece, kind: str) -> Iterator[tuple[int, bytes]]:
    parts = frozenset(piece.parts)
    for row, found in enumerate(itertools.islice(_rows(file.path, kind), file.rows)):
        if row % piece.of in parts:
            yield found


def _ranges(file: SourceFile, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of each line that is not blank in the piece's byte ranges."""
    for part in piece.parts:
        start, end = file.size * part // piece.of, file.size * (part + 1) // piece.of
        yield from ((at, line) for at, line in streams.lines_between(file.path, start, end) if not line.isspace())


def _careful(line: bytes, field: str, path: str, where: int, by_range: bool) -> Any:
    """The text of a row that the fast parser refuses: NaN, huge integers, lone surrogates and a BOM are let pass."""
    at = f"{path}, line {_line_number(path, where, by_range)}"
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{at}: not UTF-8 (byte {error.start + 1} of the line).") from error
    except (ValueError, RecursionError) as error:
        hint = "The file is a JSON array; one object a line is needed." if line.lstrip().startswith(b"[") else None
        raise UserError(f"{at}: malformed JSON: {error}.", hint=hint) from error
    if not isinstance(row, dict):
        raise UserError(f"{at}: expected a JSON object, got a {type(row).__name__}.")
    if field not in row:
        have = ", ".join(sorted(row)[:8]) or "nothing"
        raise UserError(f"{at}: there is no field {field!r}; it has {have}.", hint=TEXT_FIELD)
    text = row[field]
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


def _line_number(path: str, where: int, by_range: bool) -> int:
    """In a byte range `where` is an offset; the number takes a look at all that lies before it."""
    if not by_range:
        return where
    number, left = 1, where
    with store.open_binary(path) as file:
        while left and (data := file.read(min(left, 1 << 20))):
            number += data.count(b"\n")
            left -= len(data)
    return number
