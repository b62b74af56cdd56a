"""Each folder of examples/ does what the page beside it says: its lines, typed in a copy of the folder."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from .document.extract import REPOSITORY
from .document.pages import Line, sections, steps
from .document.world import World

EXAMPLES = REPOSITORY / "examples"
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
NEEDS = {"optuna": "optuna", "slurm": "nemo_run"}


def lines(name: str) -> list[Line]:
    """What the page says to type in a folder, without the `cd` that leads there."""
    first, *typed = [step for step in steps(EXAMPLES / "README.md", name) if isinstance(step, Line)]
    assert first.text == f"cd {name}"
    return typed


def test_the_page_has_a_section_for_each_folder() -> None:
    assert sorted(sections(EXAMPLES / "README.md")) == FOLDERS


def test_no_example_gets_into_the_wheel() -> None:
    built = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert built["wheel"]["only-include"] == ["nemotron_kit", "conf", "recipes"]
    assert not [name for name in built["sdist"]["include"] if "examples" in name or "tests" in name]


def of_plain_hydra(world: World, shown: list[str]) -> None:
    assert "lr=0.4 ends at 0.0000" in shown[0]
    assert "2 succeeded" in shown[2] and "lr=0.4 ends at" in shown[3]
    (multirun,) = (world.folder / "multirun").glob("*/*")
    assert "ends at 0.1074" in (multirun / "0" / "app.log").read_text()


def of_recipe(world: World, shown: list[str]) -> None:
    assert "--name" in shown[0]
    assert (world.folder / "greetings" / "greeting.txt").read_text() == "Hello, Ada!\n" * 2
    assert "Greeting:v0" in shown[2]


def of_pipeline(world: World, shown: list[str]) -> None:
    assert shown[2].splitlines()[0] == shown[4].splitlines()[0] == '{"be,": 2}'
    assert json.loads((world.folder / "other_counts" / "counts.json").read_text()) == {"one": 1, "two": 1}
    assert world.registry.find("Words-corpus:v0").document["metadata"] == {"lines": 2}
    assert world.parents("Words-counts:v0") == ["Words-corpus:v0"]
    assert world.parents("Words-counts:v1") == ["Words-corpus:v1"]
    assert "Counts" in shown[5]
    assert '{"be,": 2}' in shown[6] and '"that": 1' in shown[7]
    assert shown[8].count("words all") == shown[8].count("succeeded") == 2


def of_optuna(world: World, shown: list[str]) -> None:
    assert "4 succeeded" in shown[1]
    logs = [(job / "logs" / "job.log").read_text() for job in world.runs()]
    plan = json.loads((world.runs()[0].parent.parent / "plan.json").read_text())
    assert plan["direction"] == "minimize"  # Optuna's own, which nothing on the command line says
    assert len({log.split("error=")[0] for log in logs}) == 4 and all("error=" in log for log in logs)


def of_slurm(world: World, shown: list[str]) -> None:
    assert {"cluster", "cluster_short", "away"} <= {line.split()[0] for line in shown[0].splitlines()[1:]}
    for words in ("#SBATCH --account=my-account", "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8"):
        assert words in shown[2]
    assert "/lustre/me/nemotron" in shown[1] and "login.example.com" in shown[1]
    assert not (world.home / "runs").exists()


CHECKS: dict[str, Callable[[World, list[str]], None]] = {
    "plain_hydra": of_plain_hydra,
    "recipe": of_recipe,
    "pipeline": of_pipeline,
    "optuna": of_optuna,
    "slurm": of_slurm,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_example(tmp_path: Path, name: str) -> None:
    if not find_spec(NEEDS.get(name, "hydra")):
        pytest.skip(f"{NEEDS[name]} is not installed")
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    world = World({}, tmp_path / "examples" / name, tmp_path / "home")
    CHECKS[name](world, [world.run(line.text, code=line.code).out for line in lines(name) if not line.skipped])
