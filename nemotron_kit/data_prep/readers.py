"""From a piece of a plan to its texts, whatever the file's kind."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_kit.data_prep import csvrows, jsonlines, parquet, plaintext, store
from nemotron_kit.data_prep.listing import compression_of, kind_of
from nemotron_kit.data_prep.plan import Piece, Source, SourceFile
from nemotron_kit.data_prep.rows import DEFAULT_MAX_DOC_SIZE, Rows
from nemotron_kit.errors import NemotronError


def texts(source: Source, piece: Piece, rows: Rows) -> Iterator[str]:
    """Every text of a piece, never empty, in an order that is always the same; `rows` counts, and says what happens to
    a row that can't be used."""
    file = source.files[piece.file]
    kind = kind_of(file.path) or ""
    try:
        if kind == "parquet":
            yield from parquet.texts(file, piece, source.text_field, rows)
        elif kind.startswith("text"):
            yield from plaintext.texts(file, piece, compression_of(kind), rows)
        elif kind.startswith("csv"):
            yield from csvrows.texts(file, piece, compression_of(kind), source.text_field, rows)
        else:
            yield from jsonlines.texts(file, piece, compression_of(kind), source.text_field, rows)
    except (NemotronError, GeneratorExit):
        raise
    except Exception as error:  # a remote store raises whatever its library does
        raise store.failing(file.path, error) from error


def count_rows(file: SourceFile, limit: int, max_size: int = DEFAULT_MAX_DOC_SIZE) -> int:
    """How many rows (lines, records, parquet rows, text documents) a file has, `limit` at most."""
    kind = kind_of(file.path) or ""
    if kind == "parquet":
        return parquet.count_rows(file, limit)
    if kind.startswith("text"):
        return plaintext.count_rows(file, compression_of(kind), limit)
    count = csvrows.count_rows if kind.startswith("csv") else jsonlines.count_rows
    return count(file, compression_of(kind), limit, max_size)
