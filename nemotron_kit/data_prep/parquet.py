"""Texts of parquet files: one column, streamed in small batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nemotron_kit.data_prep import store
from nemotron_kit.data_prep.jsonlines import SMALL
from nemotron_kit.data_prep.plan import Piece, SourceFile
from nemotron_kit.data_prep.rows import TEXT_FIELD, Rows
from nemotron_kit.data_prep.sizes import show_size
from nemotron_kit.data_prep.streams import MAX_EXPANSION
from nemotron_kit.errors import UserError

_BATCH = 256  # rows
# Row numbers and their texts.
_Texts = tuple[Sequence[int], Sequence[str | None]]
_Column = Callable[[Any], Any]


def texts(file: SourceFile, piece: Piece, field: str, rows: Rows) -> Iterator[str]:
    """The texts of a piece. A row whose text is null or empty is left out. Raises UserError for what is no parquet."""
    wanted = _by_number(file, piece) if file.rows is not None or file.size <= SMALL else _by_range(piece)
    with store.open_binary(file.path) as stream:
        table = _opened(stream, file.path)
        column = _column(table, file.path, field)
        _check_expansion(table, file.path, field, rows.max_size)
        for numbers, batch in wanted(table, field, column):
            rows.rows += len(batch)
            for number, text in zip(numbers, batch, strict=True):
                if not text:
                    rows.empty += 1
                elif len(text) > rows.max_size:
                    rows.refuse(rows.too_large, f"{file.path}, row {number + 1}: a text")
                else:
                    yield text


def count_rows(file: SourceFile, limit: int) -> int:
    """How many rows a file has, `limit` at most."""
    with store.open_binary(file.path) as stream:
        return min(limit, int(_opened(stream, file.path).metadata.num_rows))


def _by_number(file: SourceFile, piece: Piece) -> Any:
    def read(table: Any, field: str, column: _Column) -> Iterator[_Texts]:
        parts, row = frozenset(piece.parts), 0
        for batch in table.iter_batches(_BATCH, columns=[field], use_threads=False):
            most = len(batch) if file.rows is None else file.rows - row
            numbers = [n for n in range(row, row + min(most, len(batch))) if n % piece.of in parts]
            found = column(batch).to_pylist()
            yield numbers, [found[number - row] for number in numbers]
            row += len(batch)
            if file.rows is not None and row >= file.rows:
                return

    return read


def _by_range(piece: Piece) -> Any:
    """Rows [n·part/of, n·(part+1)/of): only the row groups that hold some of them are read."""

    def read(table: Any, field: str, column: _Column) -> Iterator[_Texts]:
        rows = table.metadata.num_rows
        ranges = [(rows * part // piece.of, rows * (part + 1) // piece.of) for part in piece.parts]
        first = 0
        for group in range(table.metadata.num_row_groups):
            last = first + table.metadata.row_group(group).num_rows
            inside = [(max(a, first) - first, min(b, last) - first) for a, b in ranges if a < last and b > first]
            if inside:
                for numbers, batch in _group(table, field, column, group, inside):
                    yield range(first + numbers.start, first + numbers.stop), batch
            first = last

    return read


def _group(
    table: Any, field: str, column: _Column, group: int, ranges: list[tuple[int, int]]
) -> Iterator[tuple[range, list[str | None]]]:
    at = 0
    for batch in table.iter_batches(_BATCH, row_groups=[group], columns=[field], use_threads=False):
        if at >= ranges[-1][1]:
            return
        for start, end in ranges:
            start, end = max(start - at, 0), min(end - at, len(batch))
            if start < end:
                yield range(at + start, at + end), column(batch).slice(start, end - start).to_pylist()
        at += len(batch)


def _opened(stream: Any, path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a valid parquet file: {error}") from error


def _column(table: Any, path: str, field: str) -> _Column:
    """Takes the column out of a batch: the one called `field`, or with dots (`doc.body.text`) one inside structs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = table.schema_arrow
    names = [field] if field in schema.names else field.split(".")
    if names[0] not in schema.names:
        have = ", ".join(schema.names[:8])
        raise UserError(f"{path}: there is no column {field!r}; it has {have}.", hint=TEXT_FIELD)
    kind = schema.field(names[0]).type
    for name in names[1:]:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            raise UserError(f"{path}: there is no column {field!r}: {name!r} is not in {kind}.", hint=TEXT_FIELD)
        kind = kind.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{path}: column {field!r} is {kind}, not text.")
    if len(names) == 1:
        return lambda batch: batch.column(0)
    return lambda batch: pc.struct_field(batch.column(0), names[1:])


def _check_expansion(table: Any, path: str, field: str, most: int) -> None:
    """Refuse a column whose data grows as only a decompression bomb does: a page of it is unpacked at once."""
    for group in range(table.metadata.num_row_groups):
        info = table.metadata.row_group(group)
        for number in range(info.num_columns):
            chunk = info.column(number)
            if chunk.path_in_schema != field or chunk.total_uncompressed_size <= most:
                continue
            if chunk.total_uncompressed_size > MAX_EXPANSION * max(chunk.total_compressed_size, 1):
                held, packed = show_size(chunk.total_uncompressed_size), show_size(chunk.total_compressed_size)
                raise UserError(
                    f"{path}: row group {group} holds {held} in {packed}, more than {MAX_EXPANSION} times as much.",
                    hint="That is how a decompression bomb looks. If it is meant, write it with other compression.",
                )
