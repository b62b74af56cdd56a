"""Which code, and which files, decide whether a stage would do the same again."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_kit.app import App, Command
from nemotron_kit.launch.fingerprint import Fingerprint, code_of, named_files

from ...project import write_files

FILES = {
    "mine/__init__.py": "from mine import tree\n",
    "mine/tree.py": "",
    "mine/stages/__init__.py": "",
    "mine/stages/train.py": (
        "import json, numpy\nfrom dataclasses import dataclass\nfrom .. import steps\nfrom mine.stages.more import x\n"
        "NAMED = 'mine.by_name:main'\n@dataclass\nclass Config:\n    n: int = 1\ndef main(cfg):\n    import beside\n"
    ),
    "mine/stages/more.py": "x = 1\n",
    "mine/stages/evaluate.py": "from nemotron_kit.training import pretrain\n",
    "mine/steps.py": "from . import missing\n",
    "mine/by_name.py": "def main(cfg): ...\n",
    "beside.py": "",
    "unused.py": "",
}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    write_files(tmp_path, FILES)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield App("mine").command("train", "mine.stages.train:Config", "mine.stages.train:main")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_the_code_is_what_the_handler_imports(command: Command, tmp_path: Path) -> None:
    before = code_of(command)
    assert "beside" not in sys.modules and "mine.stages.train" not in sys.modules
    names = {str(Path(name).relative_to(tmp_path)) for name in before if name != "nemotron_kit"}
    used = {
        "mine/__init__.py",
        "mine/tree.py",
        "mine/stages/__init__.py",
        "mine/stages/train.py",
        "mine/stages/more.py",
    }
    assert names - used == {"mine/steps.py", "mine/by_name.py", "beside.py"}
    (tmp_path / "mine/stages/evaluate.py").write_text("changed = True\n")
    assert code_of(command) == before
    (tmp_path / "beside.py").write_text("changed = True\n")
    changes = Fingerprint(code=code_of(command)).changes(Fingerprint(code=before), [])
    assert changes == [f"code: {tmp_path / 'beside.py'} changed"]


def test_of_the_kit_it_is_the_version_and_the_engines_that_are_used(command: Command) -> None:
    assert not any(name.startswith("nemotron_kit/") for name in code_of(command))
    other = App("mine").command("evaluate", "mine.stages.train:Config", "mine.stages.evaluate:main")
    kits = {name for name in code_of(other) if name.startswith("nemotron_kit/")}
    assert "nemotron_kit/training/pretrain_config.py" in kits
    assert not any(name.startswith("nemotron_kit/cli") for name in kits)


def test_files_that_the_config_names_and_what_they_list(tmp_path: Path) -> None:
    write_files(tmp_path, dict.fromkeys(("rows.jsonl", "texts/a.txt", "out/result.bin"), "x"))
    (tmp_path / "blend.json").write_text(
        '{"datasets": [{"path": "rows.jsonl"}, {"path": "texts"}, {"path": "hf://a/b"}]}'
    )
    config = {"blend": "blend.json", "out": str(tmp_path / "out"), "name": "tiny", "text": "a\nb", "long": "x" * 300}
    before = named_files(config, [tmp_path])
    assert {Path(name).name for name in before} == {"blend.json", "rows.jsonl", "texts"}
    (tmp_path / "out/result.bin").write_text("a stage's own output")
    assert named_files(config, [tmp_path]) == before
    (tmp_path / "texts/a.txt").write_text("other")
    assert Fingerprint(files=named_files(config, [tmp_path])).changes(Fingerprint(files=before), []) == [
        f"{tmp_path / 'texts'} changed"
    ]


def test_changes_are_told() -> None:
    before = Fingerprint(config={"a": 1, "b": [1, 2], "gone": None}, files={"/x/in": "1", "/out/y": "1"})
    now = Fingerprint(config={"a": 2, "b": [1, 2], "new": "v"}, files={"/x/in": "2", "/out/y": "2"})
    assert now.changes(before, ["/out"]) == ["a 1 → 2", "gone null → (not set)", "new (not set) → v", "/x/in changed"]
    assert Fingerprint.from_dict(now.to_dict()) == now
    assert Fingerprint.from_dict({"config": 3, "code": None}) == Fingerprint()


def test_of_a_listed_folder_every_name_counts_and_a_dangling_link_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemotron_kit.launch.fingerprint._MOST_FILES", 1)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("x")
    (tmp_path / "texts/gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "blend.json").write_text('{"path": "texts"}')
    before = named_files({"blend": "blend.json"}, [tmp_path])
    (tmp_path / "texts/z.txt").write_text("x")
    assert named_files({"blend": "blend.json"}, [tmp_path]) != before
