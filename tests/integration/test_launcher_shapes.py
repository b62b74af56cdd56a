"""The jobs of `hydra/launcher=nemo_run` on this machine do what those of Hydra's basic launcher do: see shapes.py.

In CI a share of the programs; `NEMOTRON_SHAPES=all` runs all of them, and by hydra-submitit-launcher as well.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ..shapes import DIFFERENT, PROGRAMS, SHARE, TASKS, Ended, run_program, run_tasks

KIT = ["hydra/launcher=nemo_run", "hydra.launcher.via=kit"]
LAUNCHERS = {
    "kit": KIT,
    "nemo_run": ["hydra/launcher=nemo_run", "hydra.launcher.via=nemo_run"],
    "submitit": ["hydra/launcher=submitit_local"],
}
NEEDS = {"nemo_run": "nemo_run", "submitit": "submitit"}
ALL = os.environ.get("NEMOTRON_SHAPES") == "all"
USED = [name for name in LAUNCHERS if name == "kit" or (ALL and find_spec(NEEDS[name]))]


@pytest.fixture(scope="module")
def basic_tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Ended]:
    return run_tasks(tmp_path_factory.mktemp("basic"), list(TASKS), [], {})


@pytest.fixture(scope="module")
def kit_tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Ended]:
    return run_tasks(tmp_path_factory.mktemp("kit"), list(TASKS), KIT, {})


@pytest.mark.parametrize("name", TASKS)
def test_what_comes_back(
    basic_tasks: tuple[dict[str, Any], Ended], kit_tasks: tuple[dict[str, Any], Ended], name: str
) -> None:
    basic, kit = basic_tasks[0][name], kit_tasks[0][name]
    if name not in DIFFERENT:
        assert kit == basic
    elif name in ("object", "exit 0"):
        assert kit == ["value", "NoneType", "None"]
    else:
        assert kit[:2] == ["raised", "JobFailed"]
        assert basic[1] in kit[2] or "exit code" in kit[2]


def test_what_is_left(basic_tasks: tuple[dict[str, Any], Ended], kit_tasks: tuple[dict[str, Any], Ended]) -> None:
    basic, kit = basic_tasks[1].files, kit_tasks[1].files
    assert sorted(kit) == sorted(basic)
    assert {name: text for name, text in kit.items() if basic[name] != text} == {}
    assert any("INFO __main__ i 1" in str(text) for name, text in basic.items() if name.endswith(".log"))


@pytest.mark.parametrize("name", [name for name in PROGRAMS if ALL or name in SHARE])
def test_a_program(tmp_path: Path, name: str) -> None:
    program, basic = PROGRAMS[name], run_program(tmp_path / "basic", name, [], {})
    assert basic.code == program.code, basic.said
    for launcher in USED:
        other = run_program(tmp_path / launcher, name, LAUNCHERS[launcher], {})
        if launcher == "submitit":
            # A measure, no aim: its jobs have its own sys.argv, and its own lines in their logs.
            assert sorted(other.files) == sorted(basic.files), other.said
            continue
        assert other.files == basic.files, (launcher, other.said)
        assert other.code == (1 if program.differs else basic.code), program.differs or other.said
