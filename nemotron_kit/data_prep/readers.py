"""Reads the texts of a piece of a plan: JSON lines, CSV, plain text; Parquet is in parquet.py."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from operator import itemgetter
from typing import Any, BinaryIO, TypeVar

from nemotron_kit.data_prep import line_streams, parquet, sources
from nemotron_kit.data_prep.config import DEFAULT_MAX_DOC_SIZE, TEXT_FIELD, RowCounts, show_size
from nemotron_kit.data_prep.shard_plan import FilePart, PlannedSource, SourceFile
from nemotron_kit.data_prep.sources import compression_of, kind_of
from nemotron_kit.errors import NemotronError, UserError

# Beyond this many bytes a line is named by its offset: finding its number would read everything before it.
_COUNTED = 1 << 30

# Puts a row's place before the error about it.
Place = Callable[[UserError], UserError]
Row = TypeVar("Row")


def _dealt(rows: Iterable[Row], file: SourceFile, piece: FilePart) -> Iterator[Row]:
    """A file's rows that belong to a piece, where they are dealt one by one."""
    parts = frozenset(piece.parts)
    return (row for number, row in enumerate(itertools.islice(rows, file.rows)) if number % piece.of in parts)


def jsonlines_texts(file: SourceFile, piece: FilePart, compression: str, field: str, rows: RowCounts) -> Iterator[str]:
    """The texts of a piece. A row whose text is null or empty is left out; a row without a text is refused."""
    for text, place in _values(file, piece, compression, field, rows, _picker(field)):
        if isinstance(text, str):
            if text:
                yield text
            else:
                rows.empty += 1
        elif text is None:
            rows.empty += 1
        else:
            rows.refuse(place, UserError(f"{field!r} is a {type(text).__name__}, not text."))


def _whole(row: Any) -> Any:
    if not isinstance(row, dict):
        raise TypeError
    return row


# An integer of more than 64 bits has at least 19 digits; orjson makes a float of it, such as of a tool call's argument.
# (A regular expression would take forty times as long as the parser.)
_DIGITS = bytes(ord("0") if chr(code).isdigit() and code < 128 else 32 for code in range(256))
_LONG_INTEGER = b"0" * 19


def _values(
    file: SourceFile, piece: FilePart, compression: str, field: str, rows: RowCounts, pick: Callable[[Any], Any]
) -> Iterator[tuple[Any, Place]]:
    """(the result of `pick`, its location) of each row of a piece; a row that can't be read is refused."""
    import orjson

    loads, malformed = orjson.loads, orjson.JSONDecodeError
    keys = [json.dumps(key, ensure_ascii=False).encode("utf-8", "replace") for key in {field, *field.split(".")}]
    by_range = not compression and not file.is_dealt
    if by_range:
        found = _ranges(file, piece, rows.max_size)
    else:
        found = _dealt(_rows(file.path, compression, rows.max_size), file, piece)
    for where, line in found:
        rows.rows += 1
        place = functools.partial(_placed, path=file.path, where=where, by_range=by_range)
        try:
            for key in keys:
                if line.count(key) > 1 and len(re.findall(re.escape(key) + rb"\s*:", line)) > 1:
                    raise KeyError(field)  # the fast parser lets the last of two equal keys win in silence
            if pick is _whole and _LONG_INTEGER in line.translate(_DIGITS):
                raise TypeError
            value = pick(loads(line))
        except (malformed, KeyError, TypeError):
            try:
                value = _careful(line, pick, rows, field)
            except UserError as error:
                rows.refuse(place, error)
                continue
        yield value, place


def _rows(path: str, compression: str, max_size: int) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of each line that is not blank."""
    numbered = enumerate(line_streams.all_lines(path, compression, max_size), 1)
    return ((number, line) for number, line in numbered if line and not line.isspace())


def _ranges(file: SourceFile, piece: FilePart, max_size: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of each line that is not blank in the piece's byte ranges."""
    for part in piece.parts:
        start, end = file.size * part // piece.of, file.size * (part + 1) // piece.of
        lines = line_streams.lines_between(file.path, start, end, max_size)
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


def _careful(line: bytes, pick: Callable[[Any], Any], rows: RowCounts, field: str) -> Any:
    """The text of a row that the fast parser refuses. NaN, huge integers, lone surrogates and a BOM are accepted; a
    duplicate key on the path to the text is not."""
    if isinstance(line, line_streams.TooLong):
        raise rows.too_large("a line")
    path = {field, *field.split(".")}

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            if twice := next((name for name in names if name in path and names.count(name) > 1), None):
                raise UserError(f"the key {twice!r} is given twice in one object.")
        return row

    def parsed(digits: str) -> int | float:  # Python refuses more than 4300 digits, and the value is not needed
        return int(digits) if len(digits) <= 4000 else float(digits)

    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=checked, parse_int=parsed)
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start + 1} of the line){_looks_like(line)}.") from error
    except (ValueError, RecursionError) as error:
        hint = "The file is a JSON array; one object a line is needed." if line.lstrip().startswith(b"[") else None
        raise UserError(f"malformed JSON: {error}.", hint=hint) from error
    if not isinstance(row, dict):
        raise UserError(f"expected a JSON object, got a {type(row).__name__}.")
    try:
        text = pick(row)
    except KeyError as error:
        have = ", ".join(sorted(row)[:8]) or "nothing"
        where = f"{field!r} (no {error.args[0]!r} on the way to it)" if error.args[0] != field else repr(field)
        raise UserError(f"there is no field {where}; it has {have}.", hint=TEXT_FIELD) from error
    except TypeError as error:
        raise UserError(f"a field on the way to the text is no object: {error}.", hint=TEXT_FIELD) from error
    # A lone surrogate is no character: what stands for one is U+FFFD, as elsewhere in Unicode.
    if isinstance(text, dict):
        return json.loads(_without_surrogates(json.dumps(text, ensure_ascii=False)))
    return _without_surrogates(text) if isinstance(text, str) else text


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# What a file is that is not what its ending says.
_MAGIC = {
    b"\x1f\x8b": "gzip: name it .gz",
    b"\x28\xb5\x2f\xfd": "zstd: name it .zst",
    b"BZh": "bzip2: name it .bz2",
    b"\xfd7zXZ\0": "xz: name it .xz",
    b"PAR1": "Parquet: name it .parquet",
    b"PK\3\4": "a zip archive: unpack it",
    b"\xff\xfe\0\0": "UTF-32: convert it, as with iconv -f UTF-32 -t UTF-8",
    b"\0\0\xfe\xff": "UTF-32: convert it, as with iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16: convert it, as with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16: convert it, as with iconv -f UTF-16 -t UTF-8",
}


def _looks_like(data: bytes) -> str:
    found = next((what for magic, what in _MAGIC.items() if data.startswith(magic)), None)
    return f"; it looks like {found}" if found else ""


def _placed(error: UserError, path: str, where: int, by_range: bool) -> UserError:
    """The error of a line, preceded by its location. `where` is the line's number, in a byte range its offset."""
    at = f"line {where}"
    if by_range and where > _COUNTED:
        at = f"byte {where}"
    elif by_range:
        number, left = 1, where
        with sources.open_binary(path) as file:
            while left and (data := file.read(min(left, 1 << 20))):
                number += data.count(b"\n")
                left -= len(data)
        at = f"line {number}"
    return UserError(f"{path}, {at}: {error.message}", hint=error.hint)


class _TooLarge(Exception):
    """A row that is larger than permitted."""


def csv_texts(file: SourceFile, piece: FilePart, compression: str, field: str, rows: RowCounts) -> Iterator[str]:
    """The texts of a piece. A row whose text is empty is left out."""
    reader = _Reader(file.path, compression, rows.max_size)
    column = reader.column(field)
    for line, row in _dealt(reader.rows(), file, piece):
        rows.rows += 1
        at = f"{file.path}, line {line}"
        if isinstance(row, str):
            rows.refuse(UserError, f"{at}: {row}.")
        elif len(row) != len(reader.header):
            rows.refuse(UserError, f"{at}: {len(row)} fields, where the header has {len(reader.header)}.")
        elif not row[column]:
            rows.empty += 1
        elif not _is_text(row[column]):
            rows.refuse(UserError, f"{at}: {field!r} is not UTF-8.")
        else:
            yield row[column]


class _Reader:
    """A file's header and rows; for a row that can't be read, its error."""

    def __init__(self, path: str, compression: str, max_size: int) -> None:
        self.path, self.max_size = path, max_size
        name = path.rsplit("/", 1)[-1].lower()
        self._taken = self._line = 0
        # The module's limit is for the process. Ours is on a row, of which a field is a part.
        csv.field_size_limit(max_size)
        lines = map(self._text, line_streams.all_lines(path, compression, max_size))
        self._csv = csv.reader(lines, delimiter="\t" if ".tsv" in name else ",", strict=True)
        self._begins = b""
        header = next(self.rows(), (1, []))[1]
        if isinstance(header, str):
            raise UserError(f"{path}, line 1: its header can't be read: {header}{_looks_like(self._begins)}.")
        self.header = header

    def column(self, field: str) -> int:
        if self.header.count(field) == 1:
            return self.header.index(field)
        if not self.header:
            return 0  # an empty file has no row either
        have = ", ".join(self.header[:8]) + _looks_like(self._begins)
        twice = "more than one column" if field in self.header else "no column"
        other = next((mark for mark in ";|\t" if len(self.header) == 1 and mark in have), None)
        hint = f"Its columns are set apart by {other!r}: a .csv has commas, a .tsv tabs." if other else TEXT_FIELD
        raise UserError(f"{self.path}: there is {twice} {field!r}; it has {have}.", hint=hint)

    def rows(self) -> Iterator[tuple[int, list[str] | str]]:
        """(number of the line at which it begins, row) of each row that is not blank."""
        while True:
            begins = self._line + 1
            self._taken = 0
            try:
                row = next(self._csv)
            except StopIteration:
                return
            except csv.Error as error:
                yield begins, f"malformed CSV: {error}"
            except _TooLarge:
                yield begins, f"a row of more than {show_size(self.max_size)} (max_doc_size)"
            else:
                if row:
                    yield begins, row

    def _text(self, line: bytes) -> str:
        self._line += 1
        self._taken += len(line)
        if isinstance(line, line_streams.TooLong) or self._taken > self.max_size:
            raise _TooLarge
        if self._line == 1:  # before the parser: a quoted name may follow a BOM
            self._begins, line = line[:8], line.removeprefix(b"\xef\xbb\xbf")
        # A compressed file's lines come without their ends, which a field in quotes needs.
        return (line if line.endswith(b"\n") else line + b"\n").decode("utf-8", "surrogateescape")


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_DOCUMENT = 1 << 18
_SEARCH = 1 << 16


def plaintext_texts(file: SourceFile, piece: FilePart, compression: str, rows: RowCounts) -> Iterator[str]:
    """The documents of a piece; one that is not UTF-8 text is refused, with the position of the byte."""
    if compression:
        documents = _dealt(_unpacked(file, compression), file, piece)
    else:
        documents = _cut_out(file, _dealt(_document_numbers(file), file, piece))
    for start, data in documents:
        rows.rows += 1
        kind = "" if start else _looks_like(data)
        null = data.find(0)
        if null >= 0:  # a program, an image, a file with holes
            rows.refuse(UserError, f"{file.path}: not plain text: a null character (byte {start + null}){kind}.")
            continue
        try:
            text = data.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            rows.refuse(UserError, f"{file.path}: not UTF-8 text (byte {start + error.start}){kind}.")
            continue
        if text.strip():
            yield text
        else:
            rows.empty += 1


def _document_numbers(file: SourceFile) -> range:
    return range(-(-file.size // _DOCUMENT))


def _cut_out(file: SourceFile, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """(first byte, content) of the documents with these numbers; no other one is read."""
    with sources.open_binary(file.path) as stream:
        for number in numbers:
            start, end = (_cut(stream, (number + i) * _DOCUMENT, file.size) for i in (0, 1))
            yield start, _between(stream, start, end)


def _unpacked(file: SourceFile, compression: str) -> Iterator[tuple[int, bytes]]:
    """(first byte, content) of each document of a compressed file, which is read from its start."""
    held, start = b"", 0
    for chunk in line_streams.content(file.path, compression):
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
    """Where the document that ends near `at` is cut: after a blank line, else a line, else a character."""
    if at == 0 or at >= size:
        return min(at, size)
    data = _between(stream, at, min(at + _SEARCH, size))
    for gap in (b"\n\n", b"\n"):
        found = data.find(gap)
        if found >= 0:
            return at + found + len(gap)
    return at + sum(1 for _ in itertools.takewhile(lambda byte: byte & 0xC0 == 0x80, data[:4]))


@contextmanager
def _reading(file: SourceFile) -> Iterator[tuple[str, str]]:
    """The (kind, compression) of a file that is read in the block. Whatever a store's library raises (our own errors
    aside) becomes a NemotronError that names the file. Raises UserError for a local file whose size is not the plan's:
    byte ranges would be of other text."""
    kind = kind_of(file.path) or ""
    try:
        if not sources.is_remote(file.path):
            size = os.stat(file.path).st_size  # noqa: PTH116 — fast, for very many files
            if size != file.size:
                raise UserError(
                    f"{file.path}: it has {size:,} bytes, and had {file.size:,} when the plan was made.",
                    hint="Make the plan again with --force.",
                )
        yield kind, compression_of(kind)
    except NemotronError:
        raise
    except Exception as error:
        raise NemotronError(
            f"{file.path}: reading failed: {type(error).__name__}: {error}.",
            hint="Run it again: finished shards are kept.",
        ) from error


def texts(source: PlannedSource, piece: FilePart, rows: RowCounts) -> Iterator[str]:
    """Every text of a piece, never empty, in a deterministic order; `rows` counts the rows, and decides about invalid
    ones."""
    file = source.files[piece.file]
    with _reading(file) as (kind, compression):
        if kind == "parquet":
            yield from parquet.parquet_texts(file, piece, source.text_field, rows)
        elif kind.startswith("text"):
            yield from plaintext_texts(file, piece, compression, rows)
        elif kind.startswith("csv"):
            yield from csv_texts(file, piece, compression, source.text_field, rows)
        else:
            yield from jsonlines_texts(file, piece, compression, source.text_field, rows)


def records(
    source: PlannedSource, piece: FilePart, rows: RowCounts, others: Sequence[str] = ()
) -> Iterator[tuple[dict[str, Any], Place]]:
    """(record, its place) of each row of a piece, of JSON lines or Parquet. A Parquet's record has the source's field
    and those of `others` that are there; what is null in it is left out. A line with that field twice is refused."""
    file = source.files[piece.file]
    with _reading(file) as (kind, compression):
        if kind == "parquet":
            yield from parquet.parquet_records(file, piece, source.text_field, others, rows)
        elif kind.startswith(("text", "csv")):
            hint = "Records are read from JSON lines and Parquet."
            raise UserError(f"{file.path}: holds no records such as messages.", hint=hint)
        else:
            yield from _values(file, piece, compression, source.text_field, rows, _whole)


def count_rows(file: SourceFile, limit: int, max_size: int = DEFAULT_MAX_DOC_SIZE) -> int:
    """How many rows (lines, records, parquet rows, text documents) a file has, `limit` at most.

    Raises NemotronError for a file that can't be read.
    """
    with _reading(file) as (kind, compression):
        rows: Iterable[Any]
        if kind == "parquet":
            return parquet.count_parquet_rows(file, limit)
        if kind.startswith("text"):
            rows = _unpacked(file, compression) if compression else _document_numbers(file)
        elif kind.startswith("csv"):
            rows = _Reader(file.path, compression, max_size).rows()
        else:
            rows = _rows(file.path, compression, max_size)
        return sum(1 for _ in itertools.islice(rows, limit))
