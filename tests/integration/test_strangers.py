"""Whose code runs: not what lies in the working folder under the name of a module of the standard library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """
from dataclasses import dataclass

import beside
from demo.inside import doubled
from nemotron.kit import App


@dataclass
class Config:
    n: int = 1


def score(config: Config) -> int | float:
    import calendar, json, random, types
    assert calendar.isleap(2000) and json.dumps([random.random(), types.__name__]) and beside.HERE
    print(f"doubled {doubled(config.n)}")
    return 0.5


app = App("demo")
app.command("score", Config, score)
"""
PROGRAM = """
import hydra, parts


@hydra.main(version_base="1.3", config_path=None)
def main(config):
    import json
    assert json.dumps([]) == "[]"
    print("parts", parts.HERE, config.n)
    return 0.5


main()
"""
HOSTILE = "import os\nopen(os.environ['MARK'], 'a').write(__name__ + ' ')\nraise SystemExit('hostile ' + __name__)\n"
NAMES = ("json", "random", "types", "calendar", "queue", "logging", "shlex", "socket")


class Folder:
    """A project whose folder holds hostile modules beside a recipe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("demo", "program", "project"):
            (path / name).mkdir()
        (path / "demo/__init__.py").write_text(RECIPE)
        (path / "demo/inside.py").write_text("def doubled(n):\n    return 2 * n\n")
        (path / "beside.py").write_text("HERE = True\n")
        (path / "program/app.py").write_text(PROGRAM)
        (path / "program/parts.py").write_text("HERE = True\n")
        (path / "env.toml").write_text('[cli]\nrecipes = ["demo"]\n[two]\nnproc_per_node = 2\n')
        for name in NAMES:
            (path / f"{name}.py").write_text(HOSTILE)
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.env = {**kept, "NEMOTRON_HOME": str(path / "home"), "OMP_NUM_THREADS": "1", "MARK": str(path / "mark")}

    def __call__(self, *line: str) -> str:
        program = [str(Path(sys.executable).with_name("nemotron"))] if line[0] == "nemotron" else [sys.executable]
        done = subprocess.run(
            [*program, *line[1:]], cwd=self.path, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip
        logs = "".join(file.read_text() for file in self.path.glob("home/runs/*/jobs/*/logs/*.log"))
        marked = (self.path / "mark").read_text() if (self.path / "mark").exists() else ""
        assert done.returncode == 0 and not marked, f"ran: {marked}\n{done.stdout}\n{logs}"
        return done.stdout + logs


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        ["nemotron", "demo", "score"],
        ["nemotron", "demo", "score", "--run", "two"],
        ["nemotron", "demo", "score", "-m", "n=1,2", "hydra/launcher=nemo_run"],
    ],
    ids=["in-process", "torchrun", "sweep"],
)
def test_a_module_in_the_working_folder_is_not_the_standard_librarys(folder: Folder, line: list[str]) -> None:
    assert "doubled 2" in folder(*line)


def test_the_same_of_a_job_of_its_own(folder: Folder) -> None:
    folder("nemotron", "demo", "score", "--batch", "local")
    (run,) = (path.name for path in (folder.path / "home/runs").iterdir() if not path.name.startswith("."))
    assert "doubled 2" in folder("nemotron", "runs", "logs", run, "-f")


def test_a_program_still_imports_what_lies_beside_it(folder: Folder) -> None:
    assert "parts True 1" in folder("python", "program/app.py", "-m", "+n=1", "hydra/launcher=nemo_run")
