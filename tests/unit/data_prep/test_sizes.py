"""Sizes as people write them, and values that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_kit.data_prep import DataPrepConfig, PerSplitConfig
from nemotron_kit.data_prep.config import parse_size, show_size
from nemotron_kit.errors import UserError

SIZES = [("256MB", 256 << 20), ("1G", 1 << 30), ("500MiB", 500 << 20), ("1.5 kb", 1536), (4096, 4096), ("12", 12)]


@pytest.mark.parametrize(("text", "count"), SIZES)
def test_parse_size(text: str | int, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "12 parsecs", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="shard_size"):
        parse_size(text)


def test_show_size() -> None:
    assert [show_size(n) for n in (0, 999, 1500, 36.8e12)] == ["0 B", "999 B", "1.5 kB", "36.8 TB"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_shards": 4, "shard_size": "1MB"}, "exclude each other"),
        ({"num_shards": 0}, "num_shards=0: must be at least 1"),
        ({"sample": 0}, "sample=0: must be at least 1"),
        ({"max_doc_tokens": 0}, "max_doc_tokens=0"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"per_split": PerSplitConfig(valid_shards=-1)}, "can't be negative"),
    ],
)
def test_values_that_make_no_sense(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DataPrepConfig(**values).check()


def test_without_per_split_nothing_is_held_out() -> None:
    assert DataPrepConfig(per_split=None).held_out == (0, 0)
    assert DataPrepConfig(per_split=PerSplitConfig(enabled=False)).held_out == (0, 0)
    assert DataPrepConfig().held_out == (1, 1)
