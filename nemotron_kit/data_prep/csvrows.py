"""Texts of CSV files (RFC 4180, with a header; tabs in a .tsv), plain or compressed. Fields may hold line ends, so a
file is read from its start by every shard that has a part of it, as a compressed one is."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator

from nemotron_kit.data_prep import streams
from nemotron_kit.data_prep.plan import Piece, SourceFile
from nemotron_kit.data_prep.rows import TEXT_FIELD, Rows
from nemotron_kit.data_prep.sizes import show_size
from nemotron_kit.errors import UserError


class _TooLarge(Exception):
    """A row that is larger than may be."""


def texts(file: SourceFile, piece: Piece, compression: str, field: str, rows: Rows) -> Iterator[str]:
    """The texts of a piece. A row whose text is empty is left out."""
    parts = frozenset(piece.parts)
    reader = _Reader(file.path, compression, rows.max_size)
    column = reader.column(field)
    for number, (line, row) in enumerate(itertools.islice(reader.rows(), file.rows)):
        if number % piece.of not in parts:
            continue
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


def count_rows(file: SourceFile, compression: str, limit: int, max_size: int) -> int:
    """How many rows a file has, `limit` at most."""
    return sum(1 for _ in itertools.islice(_Reader(file.path, compression, max_size).rows(), limit))


class _Reader:
    """A file's header and rows; a row that can't be read stands as what is wrong with it."""

    def __init__(self, path: str, compression: str, max_size: int) -> None:
        self.path, self.max_size = path, max_size
        name = path.rsplit("/", 1)[-1].lower()
        self._taken = self._line = 0
        # The module's limit is for the process. Ours is on a row, of which a field is a part.
        csv.field_size_limit(max_size)
        lines = map(self._text, streams.all_lines(path, compression, max_size))
        self._csv = csv.reader(lines, delimiter="\t" if ".tsv" in name else ",", strict=True)
        header = next(self.rows(), (1, []))[1]
        if isinstance(header, str):
            raise UserError(f"{path}, line 1: its header can't be read: {header}.")
        self.header = [name.removeprefix("\ufeff") for name in header]

    def column(self, field: str) -> int:
        if self.header.count(field) == 1:
            return self.header.index(field)
        if not self.header:
            return 0  # an empty file has no row either
        have = ", ".join(self.header[:8])
        twice = "more than one column" if field in self.header else "no column"
        raise UserError(f"{self.path}: there is {twice} {field!r}; it has {have}.", hint=TEXT_FIELD)

    def rows(self) -> Iterator[tuple[int, list[str] | str]]:
        """(number of the line that it begins in, row) of each row that is not blank."""
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
        if isinstance(line, streams.TooLong) or self._taken > self.max_size:
            raise _TooLarge
        # A compressed file's lines come without their ends, which a field in quotes needs.
        return (line if line.endswith(b"\n") else line + b"\n").decode("utf-8", "surrogateescape")


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
