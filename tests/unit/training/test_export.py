"""The exported model is always the one of the run that made it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training.export import export, require_place
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
