"""`nano3 data import` and `model import`: what was made elsewhere becomes an artifact, and stays what it is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ..project import Project

Nemotron = Callable[..., str]


@pytest.fixture
def nemotron(tmp_path: Path) -> Nemotron:
    """`nemotron("import", …)` is what `nemotron nano3 import …` printed."""
    project = Project(tmp_path)

    def said(*words: str, code: int = 0) -> str:
        done = project("nemotron", "nano3", *words, code=code)
        return done.stdout + done.stderr

    return said


def test_data_by_its_blend(nemotron: Nemotron, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "blend.json").write_text(json.dumps({"train": ["1.0", "a"], "valid": [], "test": []}))
    assert "art://nano3-pretrain-data:v0" in nemotron("data", "import", "pretrain", "shards/blend.json")
    nemotron("data", "import", "pretrain", "shards", "-n", "mine")
    assert "mine:v0" in nemotron("pretrain", "-c", "tiny", "--art.data", "mine", "--dry-run")
    assert "nano3-pretrain-data:v0" in nemotron(
        "pretrain", "-c", "tiny", "--art.data", "nano3/pretrain/data", "--dry-run"
    )


def test_a_model_with_its_step(nemotron: Nemotron, tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "weights").write_text("w")
    nemotron("model", "import", "sft", "ckpt", "-s", "50", "--name", "m")
    record = json.loads((tmp_path / "home" / "artifacts" / "m" / "v0" / "version.json").read_text())
    assert (record["type"], record["fields"]["step"]) == ("ModelArtifact", 50)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("model", "import", "rl", "nowhere"), "nowhere: no such folder"),
        (("data", "import", "rl", "."), "manifest.json: no such file"),
        (("data", "import", "pretrain", "broken"), "not valid JSON"),
        (("data", "import", "sft"), "path has no value"),
    ],
)
def test_a_wrong_path_leaves_nothing(nemotron: Nemotron, tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "blend.json").write_text("{")
    assert text in nemotron(*words, code=2)
    assert not (tmp_path / "home" / "runs").exists()
