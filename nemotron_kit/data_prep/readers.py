"""From a piece of a plan to its texts, whatever the file's kind."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_kit.data_prep import jsonlines, parquet, plaintext, store
from nemotron_kit.data_prep.listing import kind_of
from nemotron_kit.data_prep.plan import Piece, Source, SourceFile
from nemotron_kit.errors import NemotronError


def texts(source: Source, piece: Piece) -> Iterator[str]:
    """Every text of a piece, never empty, in an order that is always the same."""
    file = source.files[piece.file]
    kind = kind_of(file.path) or ""
    try:
        if kind == "parquet":
            yield from parquet.texts(file, piece, source.text_field)
        elif kind == "text":
            yield from plaintext.texts(file, piece)
        else:
            yield from jsonlines.texts(file, piece, kind, source.text_field)
    except (NemotronError, GeneratorExit):
        raise
    except Exception as error:  # a remote store raises whatever its library does
        raise store.failing(file.path, error) from error


def count_rows(file: SourceFile, limit: int) -> int:
    """How many rows (lines, parquet rows, text documents) a file has, `limit` at most."""
    kind = kind_of(file.path) or ""
    if kind == "parquet":
        return parquet.count_rows(file, limit)
    if kind == "text":
        return plaintext.count_rows(file, limit)
    return jsonlines.count_rows(file, kind, limit)
