"""Sequences packed into rows: where they go, what the rows say, and what a reader of such rows demands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nemotron_kit.data_prep.packing import PackedWriter, pack
from nemotron_kit.errors import UserError

from .conftest import check_row

ALGORITHMS = ("first_fit_shuffle", "first_fit_decreasing", "concatenative")


def lengths_of_chats(count: int, most: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Log-normal, as conversations are: most are short, a few fill a row."""
    drawn = np.random.default_rng(seed).lognormal(6.3, 1.0, count)
    return np.clip(drawn.astype(np.int64), 16, most)


def rows_of(lengths: Any, size: int, algorithm: str) -> list[list[int]]:
    packing = pack(lengths, size, algorithm, np.random.default_rng(1))
    return [packing.order[a:b].tolist() for a, b in zip(packing.bounds[:-1], packing.bounds[1:], strict=True)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_sequence_is_in_one_row_and_no_row_is_too_long(algorithm: str) -> None:
    lengths = lengths_of_chats(2_000, 4_096)
    rows = rows_of(lengths, 4_096, algorithm)
    assert sorted(n for row in rows for n in row) == list(range(2_000))
    assert max(lengths[row].sum() for row in rows) <= 4_096
    assert rows == rows_of(lengths, 4_096, algorithm)
    assert rows_of([], 10, algorithm) == []


def test_first_fit_decreasing_fills_rows() -> None:
    lengths = lengths_of_chats(10_000, 4_096)
    assert lengths.sum() / (len(rows_of(lengths, 4_096, "first_fit_decreasing")) * 4_096) >= 0.995
    assert sorted(rows_of([80, 20, 70, 30], 100, "first_fit_decreasing")) == [[0, 1], [2, 3]]


def test_concatenative_keeps_the_order() -> None:
    assert rows_of([40, 50, 20, 100, 1], 100, "concatenative") == [[0, 1], [2], [3], [4]]


def test_first_fit_is_what_a_plain_loop_gives() -> None:
    lengths = lengths_of_chats(300, 512, seed=5)
    order = np.argsort(-lengths, kind="stable").tolist()
    plain: list[list[int]] = []
    for number in order:
        fits = (row for row in plain if sum(lengths[n] for n in row) + lengths[number] <= 512)
        row = next(fits, None)
        plain.append([number]) if row is None else row.append(number)
    assert sorted(rows_of(lengths, 512, "first_fit_decreasing")) == sorted(plain)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_written_rows_hold_the_sequences_and_their_shifted_masks(tmp_path: Path, algorithm: str) -> None:
    rng = np.random.default_rng(2)
    path = tmp_path / "train" / "a.parquet"
    given = {}
    with PackedWriter(path, 64, algorithm=algorithm, row_group_size=7) as writer:
        for number in range(200):
            ids = np.concatenate([[1000 + number], rng.integers(4, 900, rng.integers(1, 90))])
            mask = rng.integers(0, 2, len(ids))
            writer.add(ids, mask)
            given[1000 + number] = (ids[:64].tolist(), [*mask[1:64].tolist(), 0])
        written = writer.publish()
    table = pq.read_table(path)
    types = {field.name: str(field.type.value_type) for field in table.schema}
    assert types == {"input_ids": "int32", "loss_mask": "uint8", "seq_start_id": "int32"}
    found = {}
    for row in table.to_pylist():
        ids, mask, starts = row["input_ids"], row["loss_mask"], row["seq_start_id"]
        check_row(ids, mask, starts, 64)
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            found[ids[start]] = (ids[start:end], mask[start:end])
    assert found == given
    assert written is not None
    assert (writer.sequences, writer.rows) == (200, table.num_rows)
    assert writer.tokens == sum(len(ids) for ids, _ in given.values())
    assert writer.loss_tokens == sum(sum(mask) for _, mask in given.values())
    assert writer.cut > 0
    assert written.size == path.stat().st_size


def test_nothing_written_is_no_file(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "valid" / "a.parquet", 64) as writer:
        assert writer.publish() is None
    with PackedWriter(tmp_path / "train" / "a.parquet", 64) as writer:
        writer.add([1, 2], [0, 1])  # never published
    assert not list(tmp_path.rglob("*.*"))


BAD = [
    ([], [], [], "it is empty"),
    ([5, 6], [0], [0], "2 tokens, 1 mask values"),
    ([5, 6, 7], [0, 0, 0], [0], "pack_size is 2"),
    ([5, 6], [0, 0], [1], "does not begin at 0"),
    ([5, 6], [0, 0], [0, 0], "starts do not grow"),
    ([5, 6], [0, 0], [0, 2], "begins behind its end"),
    ([5, 6], [1, 0], [0, 1], "not 0 at the end of each"),
    ([5, 6], [2, 0], [0], "not of 0 and 1"),
]


@pytest.mark.parametrize(("ids", "mask", "starts", "why"), BAD)
def test_a_row_that_readers_refuse(ids: list[int], mask: list[int], starts: list[int], why: str) -> None:
    with pytest.raises(UserError, match=why):
        check_row(ids, mask, starts, 2)
