"""The exported model is always the one of the run that made it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.artifacts import Pin
from nemotron_kit.artifacts.lineage import given_inputs
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.training.export import ChatTokens, export, model_card, require_place
from nemotron_kit.training.model import load_model, model_config, new_model

from .test_state import BLOCK

SAME = {"train": {"seed": 1, "train_iters": 4}, "checkpoint": {}}
RECORD = {"step": 4, "identity": SAME, "changes": []}


@pytest.fixture
def models() -> list:
    return [new_model(model_config(BLOCK), seed) for seed in (1, 2)]


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_an_equal_model_stays_and_any_other_is_replaced(tmp_path: Path, models: list) -> None:
    path, data = tmp_path / "model-00000004", tmp_path / "data"
    data.mkdir()
    (data / "tokenizer.json").write_text("{}")
    export(models[0], path, data, RECORD)
    (path / "metadata.json").write_text("registered")
    before = inodes(path)
    export(models[0], path, data, {**RECORD, "identity": {**SAME, "train": {"seed": 1, "train_iters": 3}}})
    assert inodes(path) == before
    export(models[1], path, data, RECORD)
    assert load_model(path).lm_head.weight.equal(models[1].lm_head.weight)
    weights = (path / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json", "training.json", "tokenizer.json"):
        (path / name).write_bytes((path / name).read_bytes()[:-1])
        export(models[1], path, data, RECORD)
        assert (path / "model.safetensors").read_bytes() == weights
        assert json.loads((path / "training.json").read_text())["step"] == 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "model-00000004"]


def test_a_model_that_cant_take_its_place_leaves_the_one_that_is_there(
    tmp_path: Path, models: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model-00000004"
    export(models[0], path, tmp_path, RECORD)
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if to == path and self.name.endswith(".tmp") and ".old" not in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(NemotronError, match=r"can't be written: No space left"):
        export(models[1], path, tmp_path, RECORD)
    assert load_model(path).lm_head.weight.equal(models[0].lm_head.weight)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model-00000004"]


def test_another_runs_model_is_not_replaced(tmp_path: Path, models: list) -> None:
    path = tmp_path / "model-00000004"
    require_place(path, SAME)
    export(models[0], path, tmp_path, RECORD)
    require_place(path, {**SAME, "train": {"seed": 1, "train_iters": 9}})
    with pytest.raises(UserError, match=r"the model of another run \(other train\)[\s\S]*Remove .*model-00000004"):
        require_place(path, {**SAME, "train": {"seed": 2, "train_iters": 4}})
    (path / "training.json").unlink()
    with pytest.raises(UserError, match=r"no training\.json in it says which run made it"):
        require_place(path, SAME)


def test_what_goes_out_with_a_model_names_no_path_of_this_machine(tmp_path: Path, models: list) -> None:
    def pin(name: str, version: int | None) -> Pin:
        return Pin(name, version, "d" * 64 if version is not None else None, "", str(tmp_path / name))

    pins = {
        "data": pin("Data", 3),
        "model": pin("base", None),
        "rows": Pin("Rows", 0, "e" * 64, "", str(tmp_path / "rl/manifest.json")),
    }
    given = {
        "data": tmp_path / "Data",
        "split": tmp_path / "Data/splits/train",
        "prompts": str(tmp_path / "rl/train/part.jsonl"),
        "more prompts": str(tmp_path / "rl/train.jsonl"),
        "base model": str(tmp_path / "base"),
        "pretrained weights": None,
    }
    settings = {
        "env": {"verifiers": {"mine": {"_target_": f"{tmp_path}/judge.py:score", "f": [f"file://{tmp_path}/a.json"]}}},
        "where": tmp_path / "x",
        "chat": "/think",
        "home": "~/models/base",
    }
    with given_inputs(pins):
        card = model_card("A model", given, {"steps": 1234, "judged by": "math/a"}, settings)
    assert str(tmp_path) not in card
    for line in (
        "| data | Data:v3 |",
        "| split | Data:v3, splits/train |",
        "| prompts | part.jsonl |",
        "| more prompts | Rows:v0, train.jsonl |",
        "| base model | base |",
        "| steps | 1,234 |",
        "| judged by | math/a |",
        "| made from | `Data:v3`, `base`, `Rows:v0` |",
        '"_target_": "judge.py:score"',
        '"a.json"',
        '"where": "x"',
        '"chat": "/think"',
        '"home": "base"',
    ):
        assert line in card
    change = {"step": 1, "name": "checkpoint.load", "there": {"path": f"{tmp_path}/old"}, "here": None}
    folder = tmp_path / "model-00000004"
    export(models[0], folder, tmp_path, {**RECORD, "identity": settings, "changes": [change]}, card=card)
    assert [file.name for file in folder.iterdir() if str(tmp_path).encode() in file.read_bytes()] == []
    assert json.loads((folder / "training.json").read_text())["changes"][0]["there"] == {"path": "old"}


@pytest.mark.parametrize(
    ("own", "stops"), [([2, 5], [2, 5]), (2, [2, 5]), (None, [5])], ids=["chat model", "base model", "none"]
)
def test_a_model_keeps_the_ends_that_it_has_beside_that_of_a_turn(own: Any, stops: list[int]) -> None:
    """The tokenizer that fine-tuning saves names the end of a turn alone: after RL the end of text was lost."""
    model = SimpleNamespace(config=SimpleNamespace(eos_token_id=own), generation_config=SimpleNamespace(eos_token_id=5))
    ChatTokens((5,), 0, "<|im_end|>", "<pad>").set_in(model)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == stops
    assert model.config.pad_token_id == 0
