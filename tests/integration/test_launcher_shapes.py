"""The jobs of `hydra/launcher=nemo_run` on this machine do what those of Hydra's basic launcher do: see shapes.py.

In CI a share of the programs by this package's own processes; `NEMOTRON_SHAPES=all` runs all of them, by NeMo-Run and
hydra-submitit-launcher as well, which takes some minutes.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ..shapes import DIFFERENT, NOT_BY_SUBMITIT, PROGRAMS, SHARE, TASKS, Ended, run_program, run_tasks

KIT = ["hydra/launcher=nemo_run", "hydra.launcher.via=kit"]
LAUNCHERS = {
    "kit": KIT,
    "nemo_run": ["hydra/launcher=nemo_run", "hydra.launcher.via=nemo_run"],
    "submitit": ["hydra/launcher=submitit_local"],
}
NEEDS = {"nemo_run": "nemo_run", "submitit": "submitit"}
ALL = os.environ.get("NEMOTRON_SHAPES") == "all"
# In this order: what is left of the files for submitit is less.
USED = [name for name in LAUNCHERS if name == "kit" or (ALL and find_spec(NEEDS[name]))]


Tasks = dict[str, tuple[dict[str, Any], Ended]]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    """What each launcher's sweep of TASKS came to. submitit's, and basic's beside it, are of those that it can run."""
    can = [name for name in TASKS if name not in NOT_BY_SUBMITIT]
    sweeps = {"basic": ([], list(TASKS)), **{name: (LAUNCHERS[name], list(TASKS)) for name in USED}}
    if "submitit" in USED:
        sweeps |= {"submitit": (LAUNCHERS["submitit"], can), "basic for submitit": ([], can)}
    return {
        name: run_tasks(tmp_path_factory.mktemp(name.split()[0]), tasks, words, {})
        for name, (words, tasks) in sweeps.items()
    }


@pytest.mark.parametrize("name", TASKS)
def test_what_comes_back(tasks: Tasks, name: str) -> None:
    basic = tasks["basic"][0][name]
    for launcher in set(USED) - {"submitit"}:
        other = tasks[launcher][0][name]
        if name not in DIFFERENT:
            assert other == basic, launcher
        elif name in ("object", "exit 0"):
            assert other == ["value", "NoneType", "None"], launcher
        else:
            assert other[:2] == ["raised", "JobFailed"], launcher
            assert basic[1] in other[2] or "exit code" in other[2], launcher
    if "submitit" in USED and name not in NOT_BY_SUBMITIT:
        assert tasks["submitit"][0][name] == tasks["basic for submitit"][0][name]


@pytest.mark.parametrize("launcher", USED)
def test_what_is_left(tasks: Tasks, launcher: str) -> None:
    basic = tasks["basic for submitit" if launcher == "submitit" else "basic"][1].files
    other = tasks[launcher][1].files
    assert sorted(other) == sorted(basic)
    assert {name: text for name, text in other.items() if basic[name] != text} == {}
    assert any("INFO __main__ i 1" in str(text) for name, text in basic.items() if name.endswith(".log"))


@pytest.mark.parametrize("name", [name for name in PROGRAMS if ALL or name in SHARE])
def test_a_program(tmp_path: Path, name: str) -> None:
    program, basic = PROGRAMS[name], run_program(tmp_path / "basic", name, [], {})
    assert basic.code == program.code, basic.said
    for launcher in USED:
        other = run_program(tmp_path / launcher, name, LAUNCHERS[launcher], {})
        if launcher == "submitit":  # its jobs are another program: they have its sys.argv[0]
            pairs = zip(_words(other), _words(basic), strict=True)
            assert [pair for pair in pairs if len(set(pair)) > 1 and not pair[0].endswith("/_submit.py")] == []
            other.files.pop("said", None), basic.files.pop("said", None)
        assert other.files == basic.files, (launcher, other.said)
        assert other.code == (1 if program.differs else basic.code), program.differs or other.said


def _words(ended: Ended) -> list[str]:
    return " ".join(ended.files.get("said", ())).split()
