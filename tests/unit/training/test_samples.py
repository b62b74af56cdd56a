from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training.data import BlendSamples, BlendSource, HeldOutSamples, read_blend
from nemotron_kit.training.engine import _too_short


def source(write_shard, path: Path, first: int, tokens: int, weight: float | None = 1.0) -> BlendSource:
    """A shard of documents of 7 tokens that counts up from `first`."""
    stream = list(range(first, first + tokens))
    return BlendSource(weight, write_shard(path, [stream[n : n + 7] for n in range(0, tokens, 7)], np.int32))


def test_an_epoch_reads_every_window_once(tmp_path: Path, write_shard) -> None:
    samples = BlendSamples([source(write_shard, tmp_path / "a", 0, 101)], seq_length=10, seed=1)
    epochs = [[int(samples[n][0]) for n in range(10 * epoch, 10 * epoch + 10)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, 100, 10))
    assert epochs[0] != sorted(epochs[0]) and epochs[0] != epochs[1] != epochs[2]
    assert [len(samples[n]) for n in range(10)] == [11] * 10
    assert all(np.array_equal(samples[n], np.arange(samples[n][0], samples[n][0] + 11)) for n in range(10))


def test_any_sample_is_found_by_itself(tmp_path: Path, write_shard) -> None:
    sources = [source(write_shard, tmp_path / name, 1000 * n, 301, 1.0 + n) for n, name in enumerate("ab")]
    in_order = BlendSamples(sources, 10, seed=3)
    expected = [in_order[n].tolist() for n in range(200)]
    for position in (199, 0, 57, 123):
        assert BlendSamples(sources, 10, seed=3)[position].tolist() == expected[position]


def test_weights_are_shares_of_the_samples(tmp_path: Path, write_shard) -> None:
    sources = [source(write_shard, tmp_path / "a", 0, 501, 3.0), source(write_shard, tmp_path / "b", 5000, 501, 1.0)]
    samples = BlendSamples(sources, 10, seed=1)
    assert sum(samples[n][0] < 5000 for n in range(40_000, 40_400)) == pytest.approx(300, abs=1)


def test_without_weights_sizes_are_shares(tmp_path: Path, write_shard) -> None:
    sources = [source(write_shard, tmp_path / "a", 0, 901, None), source(write_shard, tmp_path / "b", 5000, 101, None)]
    samples = BlendSamples(sources, 10, seed=1)
    starts = Counter(int(samples[n][0]) for n in range(100))
    assert len(starts) == 100 and set(starts.values()) == {1}  # one epoch of both


def test_another_seed_is_another_order_and_another_folder_is_not(tmp_path: Path, write_shard) -> None:
    def order(folder: str, seed: int) -> list[int]:
        samples = BlendSamples([source(write_shard, tmp_path / folder / "a", 0, 501)], 10, seed)
        return [int(samples[n][0]) for n in range(50)]

    assert order("here", 1) == order("there", 1) != order("here", 2)


def test_a_shard_too_small_for_a_window_is_passed_over(tmp_path: Path, write_shard) -> None:
    sources = [source(write_shard, tmp_path / "a", 0, 5), source(write_shard, tmp_path / "b", 5000, 101)]
    samples = BlendSamples(sources, 10, seed=1)
    assert all(samples[n][0] >= 5000 for n in range(20))
    assert samples.too_short == [str(tmp_path / "a")]
    assert _too_short(samples)[0].startswith("Not trained on, as it is shorter than 11 tokens, whatever its weight: ")
    with pytest.raises(UserError, match=r"No shard of the train split holds 11 tokens \(.*/a\)[\s\S]*seq_length"):
        BlendSamples(sources[:1], 10, seed=1)


def test_held_out_windows_come_once_and_in_order(tmp_path: Path, write_shard) -> None:
    sources = [source(write_shard, tmp_path / "a", 0, 55), source(write_shard, tmp_path / "b", 5000, 31)]
    samples = HeldOutSamples(sources, 10, None)
    assert [int(samples[n][0]) for n in range(len(samples))] == [0, 10, 20, 30, 40, 5000, 5010, 5020]
    few = HeldOutSamples(sources, 10, 4)
    assert [int(few[n][0]) for n in range(len(few))] == [0, 20, 40, 5010]
    assert len(HeldOutSamples(sources, 10, 99)) == 8


def test_the_prepared_folder_reads(tiny_data: Path) -> None:
    samples = BlendSamples(read_blend(tiny_data)["train"], 16, seed=1)
    assert samples.describe() == [[2.0, 199], [1.0, 99]]
