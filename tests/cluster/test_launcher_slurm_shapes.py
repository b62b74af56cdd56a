"""The jobs of `hydra/launcher=nemo_run` on Slurm do what those of Hydra's basic launcher do: see shapes.py.

In CI a share of them; `NEMOTRON_SHAPES=all` runs all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ..shapes import DIFFERENT, PROGRAMS, TASKS, run_program, run_tasks

PROFILE = """
[c]
executor = "slurm"
account = "research"
partition = "batch"
time = "00:05:00"
"""
ALL = os.environ.get("NEMOTRON_SHAPES") == "all"
SHARE = ["tuple", "numpy", "value error", "own error", "exit", "typed", "resolvers", "hydra", "folders", "program",
         "relative", "own folder", "logging", "stdin"]  # fmt: skip
NAMES = list(TASKS) if ALL else SHARE
LAUNCHER = ["hydra/launcher=nemo_run", "hydra.launcher.profile=c"]


def _env(slurm: Any, folder: Path) -> dict[str, str]:
    (folder / "env.toml").write_text(PROFILE)
    (folder / "home").mkdir(mode=0o700)
    return {**slurm.env, "NEMOTRON_ENV_FILE": str(folder / "env.toml")}


def test_one_sweep_of_many_tasks(slurm: Any, tmp_path: Path) -> None:
    for name in ("basic", "slurm"):
        (tmp_path / name).mkdir()
    basic, left = run_tasks(tmp_path / "basic", NAMES, [], {})
    told, there = run_tasks(tmp_path / "slurm", NAMES, LAUNCHER, _env(slurm, tmp_path / "slurm"))
    assert {name: told[name] for name in NAMES if told[name] != basic[name] and name not in DIFFERENT} == {}
    assert all(told[name] != basic[name] for name in NAMES if name in DIFFERENT)
    assert sorted(there.files) == sorted(left.files)
    assert {name: text for name, text in there.files.items() if left.files[name] != text} == {}


@pytest.mark.skipif(not ALL, reason="NEMOTRON_SHAPES=all runs the programs, too")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program(slurm: Any, tmp_path: Path, name: str) -> None:
    for folder in ("basic", "slurm"):
        (tmp_path / folder).mkdir()
    basic = run_program(tmp_path / "basic", name, [], {})
    other = run_program(tmp_path / "slurm", name, LAUNCHER, _env(slurm, tmp_path / "slurm"))
    assert other.files == basic.files, other.said
    assert other.code == (1 if PROGRAMS[name].differs else basic.code), other.said
