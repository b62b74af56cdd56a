"""Blend files: the two forms, and what is said about a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_kit.data_prep import DataBlend, Dataset
from nemotron_kit.errors import UserError


def load(tmp_path: Path, text: str) -> DataBlend:
    path = tmp_path / "blend.json"
    path.write_text(text, encoding="utf-8")
    return DataBlend.load(path)


def test_datasets_form(tmp_path: Path) -> None:
    blend = load(
        tmp_path, '{"datasets": [{"name": "a", "path": "a.jsonl"}, {"name": "b", "path": "hf://o/b", "weight": 2}]}'
    )
    assert blend.splits == {"all": (Dataset("a", "a.jsonl"), Dataset("b", "hf://o/b", weight=2.0))}
    assert blend.folder == tmp_path


def test_split_form_keeps_only_the_splits_that_are_there(tmp_path: Path) -> None:
    blend = load(tmp_path, '{"train": [{"name": "a", "path": "a", "split": "train", "subset": "s"}], "valid": []}')
    assert list(blend.splits) == ["train"]
    assert blend.datasets == [Dataset("a", "a", split="train", subset="s")]


def test_a_key_that_begins_with_an_underscore_is_a_comment(tmp_path: Path) -> None:
    """JSON has none, and the reference's blends have such keys."""
    blend = load(tmp_path, '{"_why": "x", "datasets": [{"name": "a", "path": "a.jsonl", "_note": "y"}]}')
    assert blend.splits == {"all": (Dataset("a", "a.jsonl"),)}


BAD = [
    ("[]", "one JSON object"),
    ("{}", "neither 'datasets' nor 'train'"),
    ('{"valid": [{"name": "a", "path": "a"}]}', "neither 'datasets' nor 'train'"),
    ('{"datasets": [{"name": "a", "path": "a"}], "train": [{"name": "b", "path": "b"}]}', "exclude each other"),
    ('{"dataset": []}', "unknown key 'dataset'. Did you mean datasets"),
    ('{"datasets": []}', "at least one dataset"),
    ('{"datasets": ["a.jsonl"]}', "datasets[0]: expected an object"),
    ('{"datasets": [{"path": "a"}]}', "datasets[0].name: expected text, got None"),
    ('{"datasets": [{"name": "a", "path": 3}]}', "datasets[0].path: expected text, got 3"),
    ('{"datasets": [{"name": "a", "path": "a", "wieght": 1}]}', "unknown key 'wieght'. Did you mean weight"),
    ('{"datasets": [{"name": "a", "path": "a", "weight": "1"}]}', "datasets[0].weight: expected a number"),
    ('{"datasets": [{"name": "a", "path": "a", "weight": -1}]}', "datasets[0].weight: expected a number of 0 or more"),
    ('{"datasets": [{"name": "a", "path": "a", "weight": NaN}]}', "datasets[0].weight: expected a number"),
    (f'{{"datasets": [{{"name": "a", "path": "a", "weight": {10**400}}}]}}', "datasets[0].weight: expected a number"),
    ('{"datasets": [{"name": "a", "path": "a", "weight": 0}]}', "every weight is 0"),
    ('{"datasets": [{"name": "a", "path": "a"}, {"name": "a", "path": "b"}]}', "two datasets are called 'a'"),
    ('{"datasets": [{"name": "a", "path": "a", "path": "b"}]}', "the key 'path' is given twice"),
    ('{"datasets": [\n  {"name": "a",\n   "path": }\n]}', "line 3, column 12"),
    ("[" * 100_000, "recursion"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    assert says in error.value.message
    assert str(tmp_path / "blend.json") in error.value.message


def test_missing_file_folder_and_binary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        DataBlend.load(tmp_path / "no.json")
    with pytest.raises(UserError, match="is a folder"):
        DataBlend.load(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not UTF-8 text"):
        DataBlend.load(tmp_path / "b.json")
