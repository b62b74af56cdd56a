"""Packed rows: several sequences in one row of at most `pack_size` tokens, written as Parquet.

A row is `input_ids`; `loss_mask`, where 1 at i says that predicting `input_ids[i + 1]` counts, so that the last of each
sequence is 0; and `seq_start_id`, where each sequence begins (the first at 0, without a final boundary).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemotron_kit.data_prep.config import CONCATENATIVE, FIRST_FIT_DECREASING, FIRST_FIT_SHUFFLE
from nemotron_kit.data_prep.indexed import HashedFile, WrittenShard, write_errors

if TYPE_CHECKING:
    import pyarrow as pa

Ids = NDArray[np.int32]
Mask = NDArray[np.uint8]
Order = NDArray[np.int64]
# What is packed at a time, so that memory is bounded: sequences, and tokens where sequences are long.
WINDOW = 10_000
WINDOW_TOKENS = 4 << 20
_PIECES = 16  # of a window, when it is written


@dataclass(frozen=True)
class Packing:
    """`order` lists sequences by row; row r has those from `bounds[r]` to `bounds[r + 1]` of it."""

    order: Order
    bounds: Order


def pack(lengths: Sequence[int] | Order, size: int, algorithm: str, rng: np.random.Generator | None = None) -> Packing:
    """Assign sequences (given by their lengths, each at most `size`) to rows of at most `size` tokens.

    concatenative keeps the order and begins a row when the next sequence doesn't fit. The others are first-fit bin
    packing (Johnson 1973): each sequence goes to the first row with room for it; first_fit_decreasing takes the longest
    sequences first, first_fit_shuffle an order from `rng`. The resulting rows are shuffled with `rng`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and int(lengths.max()) > size:
        raise ValueError(f"a sequence of {int(lengths.max())} tokens does not fit into rows of {size}")
    rng = rng or np.random.default_rng(0)
    if algorithm == CONCATENATIVE:
        return _concatenative(lengths, size)
    if algorithm == FIRST_FIT_DECREASING:
        return _in_order(np.argsort(-lengths, kind="stable"), lengths, size, rng)
    if algorithm == FIRST_FIT_SHUFFLE:
        return _in_order(rng.permutation(len(lengths)), lengths, size, rng)
    raise ValueError(f"no packing algorithm {algorithm!r}")


def _concatenative(lengths: Order, size: int) -> Packing:
    bounds = [0]
    left = size
    for number, length in enumerate(lengths.tolist()):
        if length > left:
            bounds.append(number)
            left = size
        left -= length
    if len(lengths):
        bounds.append(len(lengths))
    return Packing(np.arange(len(lengths), dtype=np.int64), np.asarray(bounds, dtype=np.int64))


def _in_order(order: Order, lengths: Order, size: int, rng: np.random.Generator) -> Packing:
    """First fit in this order. The first rows have the longest sequences, or are the fullest, so the rows are shuffled:
    any part of them is then representative."""
    rows = _first_fit(lengths[order], size)
    rows = rng.permutation(int(rows.max()) + 1 if len(rows) else 0)[rows]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(rows))])
    return Packing(order[np.argsort(rows, kind="stable")], bounds)


def _first_fit(lengths: Order, size: int) -> Order:
    """For each length the first row with room for it, found in O(log n) by a tree whose nodes hold the most room below
    them."""
    # Two rows that follow each other hold more than one row can, or the second would not have been begun.
    most_rows = min(len(lengths), 2 * int(lengths.sum()) // size + 2)
    leaves = 1 << max(0, (most_rows - 1).bit_length())
    room = [size] * (2 * leaves)
    rows = []
    for length in lengths.tolist():
        node = 1
        while node < leaves:
            node += node
            if room[node] < length:
                node += 1
        rows.append(node - leaves)
        most = room[node] - length
        room[node] = most
        while node > 1:
            beside = room[node ^ 1]
            if beside > most:  # max() would take a third longer, and this is where the time goes
                most = beside
            node >>= 1
            if room[node] == most:
                break
            room[node] = most
    return np.asarray(rows, dtype=np.int64)


def shifted(mask: Mask, lengths: Order) -> Mask:
    """The masks of concatenated sequences, shifted left by one within each; the last of each is 0."""
    out = np.zeros_like(mask)
    out[:-1] = mask[1:]
    out[np.cumsum(lengths) - 1] = 0
    return out


def schema() -> pa.Schema:
    """The columns of a packed file."""
    import pyarrow as pa

    types = {"input_ids": pa.int32(), "loss_mask": pa.uint8(), "seq_start_id": pa.int32()}
    return pa.schema([pa.field(name, pa.list_(kind)) for name, kind in types.items()])


def rows_of(ids: Sequence[Ids], masks: Sequence[Mask], lengths: Order, packing: Packing) -> pa.Table:
    """The rows of sequences with these tokens, (not shifted) masks and lengths."""
    import pyarrow as pa

    order = packing.order.tolist()
    lengths = lengths[packing.order]
    before = np.concatenate([[0], np.cumsum(lengths)])
    row_starts = before[packing.bounds]
    seq_starts = before[:-1] - np.repeat(row_starts[:-1], np.diff(packing.bounds))
    in_rows = pa.array(row_starts.astype(np.int32))
    tokens = np.concatenate([ids[number] for number in order])
    mask = shifted(np.concatenate([masks[number] for number in order]), lengths)
    columns = [
        pa.ListArray.from_arrays(in_rows, pa.array(tokens)),
        pa.ListArray.from_arrays(in_rows, pa.array(mask)),
        pa.ListArray.from_arrays(pa.array(packing.bounds.astype(np.int32)), pa.array(seq_starts.astype(np.int32))),
    ]
    return pa.Table.from_arrays(columns, schema=schema())


class PackedWriter:
    """Packs sequences into rows and writes them to one Parquet file, a window at a time, under a temporary name until
    `publish`. The bytes depend on the sequences, their order and the settings only.

    A context manager: a file that was not published is removed at its end. `sequences`, `tokens`, `loss_tokens` and
    `rows` count what was written, `added` the tokens added so far, `cut` the sequences longer than a row.
    """

    def __init__(
        self,
        path: Path,
        pack_size: int,
        *,
        algorithm: str = "first_fit_shuffle",
        seed: int = 42,
        row_group_size: int = 1000,
        compression: str = "zstd",
    ) -> None:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.pack_size, self.algorithm = path, pack_size, algorithm
        self.row_group_size, self.compression = row_group_size, compression
        self.added = self.cut = 0
        self.sequences = self.tokens = self.loss_tokens = self.rows = 0
        self._rng = np.random.default_rng(seed)
        # One after the other in three buffers: arrays of their own, of three splits, would leave the memory in pieces
        # that no window after the first fits into.
        self._ids, self._masks, self._lengths = array("i"), bytearray(), array("q")
        self._file = HashedFile(path)
        self._parquet: Any = None

    def __enter__(self) -> PackedWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.discard()

    def add(self, ids: Sequence[int] | Ids, mask: Sequence[int] | Mask) -> None:
        """Append a sequence; `mask` is 1 for the tokens to be trained on. A sequence longer than a row is cut."""
        ids, mask = np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=np.uint8)
        if len(ids) != len(mask) or not len(ids):
            raise ValueError(f"{len(ids)} tokens and {len(mask)} mask values are no sequence")
        self.cut += len(ids) > self.pack_size
        ids, mask = ids[: self.pack_size], mask[: self.pack_size]
        self._ids.frombytes(ids.tobytes())
        self._masks += mask.tobytes()
        self._lengths.append(len(ids))
        self.added += len(ids)
        if len(self._lengths) == WINDOW or len(self._ids) >= max(WINDOW_TOKENS, 64 * self.pack_size):
            self._flush()

    def publish(self) -> WrittenShard | None:
        """Write the pending window, sync the file, give it its name. Returns None, without a file (an earlier plan's is
        removed), if there was no sequence."""
        self._flush()
        if self._parquet is None:
            self.path.unlink(missing_ok=True)
            return None
        with write_errors(self.path):
            self._parquet.close()
        return self._file.publish()

    def _flush(self) -> None:
        if not self._lengths:
            return
        import pyarrow as pa

        lengths = np.array(self._lengths, dtype=np.int64)
        ends = np.cumsum(lengths)[:-1]
        ids = np.split(np.frombuffer(self._ids, dtype=np.int32), ends)
        masks = np.split(np.frombuffer(self._masks, dtype=np.uint8), ends)
        table = rows_of(ids, masks, lengths, pack(lengths, self.pack_size, self.algorithm, self._rng))
        del ids, masks
        self._ids, self._masks, self._lengths = array("i"), bytearray(), array("q")
        self.sequences += len(lengths)
        self.tokens += int(lengths.sum())
        self.loss_tokens += int(np.sum(table["loss_mask"].chunk(0).values.to_numpy(), dtype=np.int64))
        self.rows += table.num_rows
        if self._parquet is None:
            self._parquet = _parquet_writer(self._file, self.compression)
        # In chunks: beside a table, Parquet's writer takes several times the memory of one of its chunks.
        step = 1 + table.num_rows // _PIECES
        pieces = pa.concat_tables([table.slice(start, step) for start in range(0, table.num_rows, step)])
        with write_errors(self.path):
            self._parquet.write_table(pieces, row_group_size=self.row_group_size)
        del table, pieces
        pa.default_memory_pool().release_unused()  # the next window is a long time away


def write_tables(path: Path, tables: Iterable[pa.Table], *, row_group_size: int, compression: str) -> WrittenShard:
    """Write tables of packed rows to one file, which appears whole."""
    with HashedFile(path) as file:
        writer = _parquet_writer(file, compression)
        for table in tables:
            writer.write_table(table, row_group_size=row_group_size)
        writer.close()
        return file.publish()


class _Sink:
    """A file object for pyarrow; closing it leaves the file open for its owner."""

    closed = False

    def __init__(self, file: HashedFile) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        return view.nbytes

    def tell(self) -> int:
        return self._file.size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _parquet_writer(file: HashedFile, compression: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Token ids hardly repeat within a page: a dictionary of them costs time and saves nothing.
    return pq.ParquetWriter(
        pa.PythonFile(_Sink(file), mode="w"),
        schema(),
        compression=compression,
        use_dictionary=["loss_mask.list.element"],
        write_statistics=False,
    )
