"""Texts of JSON lines files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

from nemotron_kit.data_prep import store, streams
from nemotron_kit.data_prep.plan import Piece, SourceFile
from nemotron_kit.data_prep.rows import TEXT_FIELD, Rows
from nemotron_kit.errors import UserError

# Below this, a file's rows are dealt one by one: exact for small data, and reading all of it costs nothing.
SMALL = 1 << 20
# Beyond this a line is told by its byte: its number would take a look at all that lies before it.
_COUNTED = 1 << 30


def texts(file: SourceFile, piece: Piece, compression: str, field: str, rows: Rows) -> Iterator[str]:
    """The texts of a piece. A row whose text is null or empty is left out; one that has none is refused."""
    import orjson

    loads, malformed, pick = orjson.loads, orjson.JSONDecodeError, _picker(field)
    by_range = not compression and file.rows is None and file.size > SMALL
    found = _ranges(file, piece, rows.max_size) if by_range else _dealt(file, piece, compression, rows.max_size)
    for where, line in found:
        rows.rows += 1
        try:
            text = pick(loads(line))
        except (malformed, KeyError, TypeError):
            try:
                text = _careful(line, pick, rows)
            except UserError as error:
                rows.refuse(_placed, error, file.path, where, by_range)
                continue
        if isinstance(text, str):
            if text:
                yield text
            else:
                rows.empty += 1
        elif text is None:
            rows.empty += 1
        else:
            wrong = UserError(f"{field!r} is a {type(text).__name__}, not text.")
            rows.refuse(_placed, wrong, file.path, where, by_range)


def count_rows(file: SourceFile, compression: str, limit: int, max_size: int) -> int:
    """How many rows a file has, `limit` at most."""
    return sum(1 for _ in itertools.islice(_rows(file.path, compression, max_size), limit))


def _rows(path: str, compression: str, max_size: int) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of each line that is not blank."""
    numbered = enumerate(streams.all_lines(path, compression, max_size), 1)
    return ((number, line) for number, line in numbered if line and not line.isspace())


def _dealt(file: SourceFile, piece: Piece, compression: str, max_size: int) -> Iterator[tuple[int, bytes]]:
    parts = frozenset(piece.parts)
    for row, found in enumerate(itertools.islice(_rows(file.path, compression, max_size), file.rows)):
        if row % piece.of in parts:
            yield found


def _ranges(file: SourceFile, piece: Piece, max_size: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of each line that is not blank in the piece's byte ranges."""
    for part in piece.parts:
        start, end = file.size * part // piece.of, file.size * (part + 1) // piece.of
        lines = streams.lines_between(file.path, start, end, max_size)
        yield from ((at, line) for at, line in lines if not line.isspace())


def _picker(field: str) -> Callable[[Any], Any]:
    """Takes the text out of a row: the key `field`, or with dots (`doc.body.text`) one inside other objects, where no
    key has that very name. KeyError with what is missing."""
    if "." not in field:
        return itemgetter(field)
    *outer, last = field.split(".")

    def pick(row: Any) -> Any:
        if field in row:
            return row[field]
        for key in outer:
            row = row[key]
            if row is None:
                return None
        return row[last]

    return pick


def _careful(line: bytes, pick: Callable[[Any], Any], rows: Rows) -> Any:
    """The text of a row that the fast parser refuses: NaN, huge integers, lone surrogates and a BOM are let pass."""
    if isinstance(line, streams.TooLong):
        raise rows.too_large("a line")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        utf16 = line.startswith((b"\xff\xfe", b"\xfe\xff"))
        hint = "It looks like UTF-16: convert it, as with iconv -f UTF-16 -t UTF-8." if utf16 else None
        raise UserError(f"not UTF-8 (byte {error.start + 1} of the line).", hint=hint) from error
    except (ValueError, RecursionError) as error:
        hint = "The file is a JSON array; one object a line is needed." if line.lstrip().startswith(b"[") else None
        raise UserError(f"malformed JSON: {error}.", hint=hint) from error
    if not isinstance(row, dict):
        raise UserError(f"expected a JSON object, got a {type(row).__name__}.")
    try:
        text = pick(row)
    except KeyError as error:
        have = ", ".join(sorted(row)[:8]) or "nothing"
        raise UserError(f"there is no field {error.args[0]!r}; it has {have}.", hint=TEXT_FIELD) from error
    except TypeError as error:
        raise UserError(f"a field on the way to the text is no object: {error}.", hint=TEXT_FIELD) from error
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


def _placed(error: UserError, path: str, where: int, by_range: bool) -> UserError:
    """The error of a line with its place before it."""
    far = by_range and where > _COUNTED
    at = f"{path}, byte {where}" if far else f"{path}, line {_line_number(path, where, by_range)}"
    return UserError(f"{at}: {error.message}", hint=error.hint)


def _line_number(path: str, where: int, by_range: bool) -> int:
    """In a byte range `where` is an offset."""
    if not by_range:
        return where
    number, left = 1, where
    with store.open_binary(path) as file:
        while left and (data := file.read(min(left, 1 << 20))):
            number += data.count(b"\n")
            left -= len(data)
    return number
