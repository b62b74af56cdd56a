from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training.data import TokenShard, read_blend

DOCUMENTS = [[1, 2, 3], [], [65000], list(range(500, 700))]


def test_documents_are_what_was_written(tmp_path: Path, write_shard) -> None:
    shard = TokenShard(write_shard(tmp_path / "a", DOCUMENTS))
    assert [list(document) for document in shard] == DOCUMENTS
    assert len(shard) == 4
    assert shard.token_count == 204
    with pytest.raises(IndexError):
        shard[4]
    with pytest.raises(IndexError):
        shard[-1]


def test_a_view_can_not_be_written_to(tmp_path: Path, write_shard) -> None:
    with pytest.raises(ValueError, match="read-only"):
        TokenShard(write_shard(tmp_path / "a", DOCUMENTS))[0][0] = 7


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint16])
def test_every_integer_type(tmp_path: Path, write_shard, dtype) -> None:
    shard = TokenShard(write_shard(tmp_path / "a", [[1, 2], [100]], dtype))
    assert shard[1].dtype == dtype
    assert list(shard[1]) == [100]


def test_an_empty_shard_reads_as_empty(tmp_path: Path, write_shard) -> None:
    shard = TokenShard(write_shard(tmp_path / "a", []))
    assert (len(shard), shard.token_count) == (0, 0)


def test_megatron_core_reads_the_same_documents(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    judge = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    random = np.random.default_rng(1)
    documents = [random.integers(0, 60000, random.integers(1, 300)) for _ in range(200)]
    builder = judge.IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.uint16)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "a.idx"))
    shard, theirs = TokenShard(tmp_path / "a"), judge.IndexedDataset(str(tmp_path / "a"))
    assert len(shard) == len(theirs) == 200
    for mine, other, document in zip(shard, theirs, documents, strict=True):
        assert np.array_equal(mine, other) and np.array_equal(mine, document)
        assert mine.dtype == other.dtype


def test_a_megatron_document_may_hold_several_sequences(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    judge = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = judge.IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.int32)
    builder.add_document(torch.arange(10), [4, 6])
    builder.finalize(str(tmp_path / "a.idx"))
    assert [list(part) for part in TokenShard(tmp_path / "a")] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]


def test_an_index_cut_anywhere_is_refused(tmp_path: Path, write_shard) -> None:
    prefix = write_shard(tmp_path / "a", DOCUMENTS)
    idx = Path(f"{prefix}.idx")
    whole = idx.read_bytes()
    for length in range(len(whole)):
        idx.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.idx"):
            TokenShard(prefix)
    idx.write_bytes(whole + b"\x00")
    with pytest.raises(UserError, match=r"a\.idx"):
        TokenShard(prefix)


def test_any_flipped_bit_of_an_index_is_refused(tmp_path: Path, write_shard) -> None:
    prefix = write_shard(tmp_path / "a", DOCUMENTS)
    idx = Path(f"{prefix}.idx")
    whole = idx.read_bytes()
    unread = range(len(whole) - 8 * len(DOCUMENTS), len(whole) - 8)  # inner document marks: nothing is read by them
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        idx.write_bytes(changed)
        if bit // 8 not in unread:
            with pytest.raises(UserError, match=r"a\.(idx|bin)"):
                TokenShard(prefix)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\x00", lambda data: b""])
def test_a_bin_of_another_length_is_refused(tmp_path: Path, write_shard, change) -> None:
    prefix = write_shard(tmp_path / "a", DOCUMENTS)
    bin_ = Path(f"{prefix}.bin")
    bin_.write_bytes(change(bin_.read_bytes()))
    with pytest.raises(UserError, match=r"a\.bin: .* bytes, but its index says 408"):
        TokenShard(prefix)


@pytest.mark.parametrize("ending", ["idx", "bin"])
def test_a_missing_file_is_named(tmp_path: Path, write_shard, ending) -> None:
    prefix = write_shard(tmp_path / "a", DOCUMENTS)
    Path(f"{prefix}.{ending}").unlink()
    with pytest.raises(UserError, match=rf"a\.{ending}: No such file"):
        TokenShard(prefix)


@pytest.mark.parametrize("ending", ["idx", "bin"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path, write_shard, ending) -> None:
    prefix = write_shard(tmp_path / "a", [[1, 2], [3]])
    Path(f"{prefix}.{ending}").unlink()
    os.mkfifo(f"{prefix}.{ending}")
    with pytest.raises(UserError, match=rf"a\.{ending}: is a FIFO, not a regular file"):
        TokenShard(prefix)
    os.mkfifo(tmp_path / "blend.json")
    with pytest.raises(UserError, match=r"blend\.json: is a FIFO, not a regular file"):
        read_blend(tmp_path / "blend.json")
