"""Texts of parquet files: one column, streamed in small batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemotron_kit.data_prep import store
from nemotron_kit.data_prep.jsonlines import SMALL, TEXT_FIELD
from nemotron_kit.data_prep.plan import Piece, SourceFile
from nemotron_kit.errors import UserError

_BATCH = 256  # rows


def texts(file: SourceFile, piece: Piece, field: str) -> Iterator[str]:
    """The texts of a piece. A row whose text is null or empty is left out. Raises UserError for what is no parquet."""
    wanted = _by_number(file, piece) if file.rows is not None or file.size <= SMALL else _by_range(piece)
    with store.open_binary(file.path) as stream:
        table = _opened(stream, file.path)
        _check_column(table, file.path, field)
        for text in wanted(table, field):
            if text:
                yield text


def count_rows(file: SourceFile, limit: int) -> int:
    """How many rows a file has, `limit` at most."""
    with store.open_binary(file.path) as stream:
        return min(limit, int(_opened(stream, file.path).metadata.num_rows))


def _by_number(file: SourceFile, piece: Piece) -> Any:
    def read(table: Any, field: str) -> Iterator[str | None]:
        parts, row = frozenset(piece.parts), 0
        for batch in table.iter_batches(_BATCH, columns=[field], use_threads=False):
            for text in batch.column(0).to_pylist():
                if row == file.rows:
                    return
                if row % piece.of in parts:
                    yield text
                row += 1

    return read


def _by_range(piece: Piece) -> Any:
    """Rows [n·part/of, n·(part+1)/of): only the row groups that hold some of them are read."""

    def read(table: Any, field: str) -> Iterator[str | None]:
        rows = table.metadata.num_rows
        ranges = [(rows * part // piece.of, rows * (part + 1) // piece.of) for part in piece.parts]
        first = 0
        for group in range(table.metadata.num_row_groups):
            last = first + table.metadata.row_group(group).num_rows
            inside = [(max(a, first) - first, min(b, last) - first) for a, b in ranges if a < last and b > first]
            if inside:
                yield from _group(table, field, group, inside)
            first = last

    return read


def _group(table: Any, field: str, group: int, ranges: list[tuple[int, int]]) -> Iterator[str | None]:
    at = 0
    for batch in table.iter_batches(_BATCH, row_groups=[group], columns=[field], use_threads=False):
        if at >= ranges[-1][1]:
            return
        for start, end in ranges:
            start, end = max(start - at, 0), min(end - at, len(batch))
            if start < end:
                yield from batch.column(0).slice(start, end - start).to_pylist()
        at += len(batch)


def _opened(stream: Any, path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a valid parquet file: {error}") from error


def _check_column(table: Any, path: str, field: str) -> None:
    import pyarrow as pa

    schema = table.schema_arrow
    if field not in schema.names:
        have = ", ".join(schema.names[:8])
        raise UserError(f"{path}: there is no column {field!r}; it has {have}.", hint=TEXT_FIELD)
    kind = schema.field(field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{path}: column {field!r} is {kind}, not text.")
