from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training.data import BlendSource, read_blend


def blend(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "blend.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_flat_list_of_weights_and_prefixes(tmp_path: Path) -> None:
    path = blend(tmp_path, {"train": ["0.7", "/d/a", 0.3, "/d/b"], "valid": ["1", "v"], "test": None})
    assert read_blend(path) == {
        "train": [BlendSource(0.7, "/d/a"), BlendSource(0.3, "/d/b")],
        "valid": [BlendSource(1.0, str(tmp_path / "v"))],
    }


def test_a_source_of_weight_zero_is_left_out(tmp_path: Path) -> None:
    path = blend(tmp_path, {"train": ["0", "/d/a", "1", "/d/b"], "valid": ["0", "/d/c"]})
    assert read_blend(path) == {"train": [BlendSource(1.0, "/d/b")]}  # and a split that has no other


@pytest.mark.parametrize("entries", [["0.3", "/d/a", "0.7", "/d/b"], ["/d/a", "/d/b"], ["/d/a"], ["1", "/d/a"]])
def test_megatron_core_reads_the_same(tmp_path: Path, entries: list[str]) -> None:
    judge = pytest.importorskip("megatron.core.datasets.utils")
    prefixes, weights = judge.get_blend_from_list(entries)
    sources = read_blend(blend(tmp_path, {"train": entries}))["train"]
    assert [source.prefix for source in sources] == list(prefixes)
    assert [source.weight for source in sources] == (weights or [None] * len(sources))


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ('{"train": ["1", ', "not JSON"),
        ("[1, 2]", "not an object of lists"),
        ({"train": "x"}, "not an object of lists"),
        ({"training": ["1", "/d/a"]}, "unknown split 'training'; did you mean train"),
        ({"train": ["1", "/d/a", "2"]}, "train is not weight, prefix"),
        ({"train": [["1", "/d/a"], ["2", "/d/b"]]}, "train is not weight, prefix"),
        ({"train": ["x", "/d/a", "2", "/d/b"]}, "train is not weight, prefix"),
        ({"train": ["-1", "/d/a"]}, "weight -1.0"),
        ({"train": ["nan", "/d/a"]}, "weight nan"),
        ({"train": ["inf", "/d/a"]}, "weight inf"),
        ({"train": ["1", 5]}, "'?5'?"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, value: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        read_blend(blend(tmp_path, value))


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"blend\.json: No such file[\s\S]*data prep pretrain"):
        read_blend(tmp_path / "blend.json")
