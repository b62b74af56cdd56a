"""Texts and rows from Parquet files, with a bound on memory and on the expansion of a file.

A column chunk may store a text once, in its dictionary, for any number of rows, so a batch has so few rows that each
could be the whole dictionary. The sizes declared by the footer and the dictionary page are checked first, and the sizes
read are counted as well, since the declared ones may be wrong. A single page is bounded by the format only: 2 GiB.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

from nemotron_kit.data_prep import sources
from nemotron_kit.data_prep.config import DEFAULT_MAX_DOC_SIZE, TEXT_FIELD, RowCounts, show_size
from nemotron_kit.data_prep.line_streams import EXPANDED, MAX_EXPANSION
from nemotron_kit.data_prep.shard_plan import FilePart, SourceFile
from nemotron_kit.errors import UserError

_ROWS = 256  # of a batch
_BATCH = 64 << 20  # bytes of a batch, as far as can be told before
_HINT = (
    "That is how a decompression bomb looks. If it is meant, write the column without a dictionary and with less "
    "compression."
)
_Column = Callable[[Any], Any]
_Chunks = dict[str, list[Any]]  # leaf → its chunk's metadata in each row group


def parquet_texts(file: SourceFile, piece: FilePart, field: str, rows: RowCounts) -> Iterator[str]:
    """The texts of a piece; only the row groups that contain some are read. A row whose text is null or empty is left
    out. Raises UserError for a file that is no Parquet."""
    with sources.open_binary(file.path) as stream:
        table = _opened(stream, file.path)
        column = _column(table, file.path, field)
        given = 0
        for number, scalar, packed in _scalars(stream, file, piece, table, [field], [field], column, rows.max_size):
            rows.rows += 1
            text, size = _text(scalar, rows, f"{file.path}, row {number + 1}", field)
            given += size
            if given > EXPANDED and given > MAX_EXPANSION * packed:
                raise UserError(
                    f"{file.path}: column {field!r} gives {show_size(given)} by row {number + 1} out of "
                    f"{show_size(packed)}, over {MAX_EXPANSION} times as much.",
                    hint=_HINT,
                )
            if text:
                yield text


def parquet_records(
    file: SourceFile, piece: FilePart, field: str, others: Sequence[str], rows: RowCounts
) -> Iterator[tuple[dict[str, Any], Callable[[UserError], UserError]]]:
    """(record, its location) of each row of a piece: the column `field` and those of `others` that exist. A struct's
    null fields are left out: in a table all rows have all of them, whatever was given."""
    with sources.open_binary(file.path) as stream:
        table = _opened(stream, file.path)
        have = table.schema_arrow.names
        if field not in have:
            shown = ", ".join(have[:8])
            raise UserError(f"{file.path}: there is no column {field!r}; it has {shown}.", hint=TEXT_FIELD)
        columns = [field, *(name for name in others if name in have and name != field)]
        given = 0
        leaves = _leaves(table, columns)
        scalars = _scalars(
            stream, file, piece, table, leaves, columns, lambda batch: batch.to_struct_array(), rows.max_size
        )
        for number, scalar, packed in scalars:
            rows.rows += 1
            place = partial(_at_row, file.path, number)
            try:
                record = without_nulls(scalar.as_py())
            except UnicodeDecodeError as error:
                rows.refuse(place, UserError(f"not UTF-8 (byte {error.start + 1} of a text)."))
                continue
            given = _grown(given, record, packed, place)
            yield record, place


def parquet_rows(path: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Every row of a file, with its nulls: all columns, or those of `columns` that exist. Raises UserError for a file
    that can't be read."""
    import pyarrow as pa

    with sources.open_binary(path) as stream:
        table = _opened(stream, path)
        size = stream.seek(0, os.SEEK_END)
        chunks = _checked_chunks(path, size, table, _leaves(table, columns), DEFAULT_MAX_DOC_SIZE)
        number = given = packed = 0
        try:
            for group in range(table.metadata.num_row_groups):
                packed = min(packed + _packed(chunks, group), size)
                batches = _batches(stream, path, table, group, chunks, columns, DEFAULT_MAX_DOC_SIZE)
                for row in chain.from_iterable(batch.to_pylist() for batch in batches):
                    given = _grown(given, row, packed, partial(_at_row, path, number))
                    number += 1
                    yield row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a Parquet file that can be read: {error}") from error


def _leaves(table: Any, columns: Sequence[str] | None) -> list[str]:
    """The paths of these columns' leaves (None: of all)."""
    every = (table.schema.column(number).path for number in range(len(table.schema.names)))
    return [
        path
        for path in every
        if columns is None or any(path == name or path.startswith(f"{name}.") for name in columns)
    ]


def _grown(given: int, record: Any, packed: int, place: Callable[[UserError], UserError]) -> int:
    """The size of the texts so far with this record's. Raises UserError if it grows as only a decompression bomb
    does."""
    given += _text_size(record)
    if given > EXPANDED and given > MAX_EXPANSION * packed:
        grown = f"{show_size(given)} so far out of {show_size(packed)}"
        raise place(UserError(f"{grown}, over {MAX_EXPANSION} times as much.", hint=_HINT))
    return given


def _at_row(path: str, number: int, error: UserError) -> UserError:
    return UserError(f"{path}, row {number + 1}: {error.message}", hint=error.hint)


def without_nulls(value: Any) -> Any:
    """A record's value without what is null in its objects."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _text_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_text_size, items))


def count_parquet_rows(file: SourceFile, limit: int) -> int:
    """How many rows a file has, `limit` at most."""
    with sources.open_binary(file.path) as stream:
        return min(limit, int(_opened(stream, file.path).metadata.num_rows))


def _text(scalar: Any, rows: RowCounts, at: str, field: str) -> tuple[str, int]:
    """(the text of a row, its bytes); of one that is empty or can't be used ""."""
    scalar = getattr(scalar, "value", scalar)  # of a dictionary's entry
    size = scalar.as_buffer().size if scalar.is_valid else 0
    if not size:
        rows.empty += 1
    elif size > rows.max_size:
        rows.refuse(rows.too_large, f"{at}: a text")
    else:
        try:
            return scalar.as_py(), size
        except UnicodeDecodeError as error:
            rows.refuse(UserError, f"{at}: {field!r} is not UTF-8 (byte {error.start + 1}).")
    return "", size


def _groups(file: SourceFile, piece: FilePart, table: Any) -> Iterator[tuple[int, int, list[range]]]:
    """(row group, its first row, ranges of rows in it) with rows of a piece. Where rows are dealt, these are those of
    the sample whose number modulo `of` is one of its parts; else rows [n·part/of, n·(part+1)/of) of the file's n."""
    parts, rows = frozenset(piece.parts), table.metadata.num_rows
    ranges = [range(rows * part // piece.of, rows * (part + 1) // piece.of) for part in piece.parts]
    first = 0
    for group in range(table.metadata.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        if file.is_dealt:
            most = count if file.rows is None else min(count, file.rows - first)
            wanted = [range(n, n + 1) for n in range(most) if (first + n) % piece.of in parts]
        else:
            wanted = [r for r in (range(max(r.start - first, 0), min(r.stop - first, count)) for r in ranges) if r]
        if wanted:
            yield group, first, wanted
        first += count


def _scalars(
    stream: Any,
    file: SourceFile,
    piece: FilePart,
    table: Any,
    leaves: Sequence[str],
    columns: Sequence[str],
    take: _Column,
    most: int,
) -> Iterator[tuple[int, Any, int]]:
    """(number, scalar, compressed bytes read so far) of a piece's rows, which `take` makes of the batches of these
    columns. What the footer says of their leaves is checked first."""
    chunks = _checked_chunks(file.path, file.size, table, leaves, most)
    packed = 0
    for group, first, wanted in _groups(file, piece, table):
        packed = min(packed + _packed(chunks, group), file.size)
        batches = _batches(stream, file.path, table, group, chunks, columns, most)
        for number, scalar in _wanted(map(take, batches), first, wanted):
            yield number, scalar, packed


def _packed(chunks: _Chunks, group: int) -> int:
    """The compressed bytes of a row group."""
    return sum(of_leaf[group].total_compressed_size for of_leaf in chunks.values())


def _batches(
    stream: Any, path: str, table: Any, group: int, chunks: _Chunks, columns: Sequence[str] | None, most: int
) -> Iterator[Any]:
    """The batches of a row group, each of so many rows as may be in memory at a time."""
    counts = (_batch_rows(stream, of_leaf[group], path, leaf, most) for leaf, of_leaf in chunks.items())
    count = min(counts, default=_ROWS)
    yield from table.iter_batches(count, row_groups=[group], columns=columns, use_threads=False)


def _wanted(arrays: Iterable[Any], first: int, wanted: list[range]) -> Iterator[tuple[int, Any]]:
    """(number, scalar) of the wanted rows of a group, which are in order; `first` is the group's first."""
    at = 0
    left = deque(wanted)  # where rows are dealt, a range for each of them
    for array in arrays:
        end = at + len(array)
        while left and left[0].start < end:
            rows = left.popleft()
            here = range(rows.start, min(rows.stop, end))
            yield from zip((first + n for n in here), array.slice(here.start - at, len(here)), strict=True)
            if rows.stop > end:
                left.appendleft(range(end, rows.stop))
        if not left:
            return
        at = end


def _batch_rows(stream: Any, chunk: Any, path: str, field: str, most: int) -> int:
    """How many rows of a chunk may be in memory at a time. Raises UserError for a dictionary that expands like a
    decompression bomb."""
    offsets = [chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None]
    stream.seek(min(offset for offset in offsets if offset))
    kind, size, packed = _page_sizes(stream.read(32)) or (_DICTIONARY, chunk.total_uncompressed_size, 0)
    if kind != _DICTIONARY:
        size = 0
    elif size > most and size > MAX_EXPANSION * max(packed, 1):
        raise UserError(
            f"{path}: the dictionary of column {field!r} holds {show_size(size)} in {show_size(packed)}, over "
            f"{MAX_EXPANSION} times as much.",
            hint=_HINT,
        )
    average: int = chunk.total_uncompressed_size // max(chunk.num_values, 1)
    return max(1, min(_ROWS, _BATCH // max(size, average, 1)))


_DICTIONARY = 2


def _page_sizes(header: bytes) -> list[int] | None:
    """(type, size, compressed size) of a page: the first fields of its header, in Thrift's compact protocol. None for
    an invalid header."""
    found, at = [], 0
    for _ in range(3):
        if header[at : at + 1] != b"\x15":  # the next field, an i32
            return None
        number = shift = 0
        while True:
            at += 1
            if at >= len(header) or shift > 28:
                return None
            number |= (header[at] & 0x7F) << shift
            shift += 7
            if header[at] < 0x80:
                break
        at += 1
        found.append(number >> 1)  # none is negative
    return found


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
    if schema.names.count(names[0]) != 1:
        have = ", ".join(schema.names[:8])
        many = "more than one column" if names[0] in schema.names else "no column"
        raise UserError(f"{path}: there is {many} {field!r}; it has {have}.", hint=TEXT_FIELD)
    kind = schema.field(names[0]).type
    for name in names[1:]:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            raise UserError(f"{path}: there is no column {field!r}: {name!r} is not in {kind}.", hint=TEXT_FIELD)
        kind = kind.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    # A writer that met no text in a whole file has written a column of nulls.
    if not any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    ):
        raise UserError(f"{path}: column {field!r} is {kind}, not text.")
    if len(names) == 1:
        return lambda batch: batch.column(0)
    return lambda batch: pc.struct_field(batch.column(0), names[1:])


def _checked_chunks(path: str, size: int, table: Any, leaves: Sequence[str], most: int) -> _Chunks:
    """Leaf → what the footer of a file of `size` bytes says about it in each row group. Raises UserError for one whose
    data grows as only a decompression bomb does."""
    numbers = {path: number for number, path in enumerate(_leaves(table, None))}
    groups = [table.metadata.row_group(group) for group in range(table.metadata.num_row_groups)]
    chunks = {leaf: [group.column(numbers[leaf]) for group in groups] for leaf in leaves}
    for leaf, of_leaf in chunks.items():
        _check_footer(path, size, leaf, of_leaf, most)
    return chunks


def _check_footer(path: str, file_size: int, field: str, chunks: list[Any], most: int) -> None:
    """Refuse a column whose data grows as only a decompression bomb does, in one row group or in all."""
    sizes = [(f"row group {n} ", c.total_uncompressed_size, c.total_compressed_size) for n, c in enumerate(chunks)]
    sizes.append(("", sum(size for _, size, _ in sizes), min(sum(packed for *_, packed in sizes), file_size)))
    for where, size, packed in sizes:
        if size > most and size > MAX_EXPANSION * max(packed, 1):
            raise UserError(
                f"{path}: {where}column {field!r} holds {show_size(size)} in {show_size(packed)}, "
                f"over {MAX_EXPANSION} times as much.",
                hint=_HINT,
            )
