"""Sweeps over recipes: through the kit's launcher, and unchanged through hydra-submitit-launcher."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..conftest import until
from ..project import Project

RECIPE = """
import os, sys
from dataclasses import dataclass
from pathlib import Path
from nemotron.kit import App, Artifact, ArtifactInput


@dataclass
class Config:
    n: float = 1
    job: str = "${hydra:job.num}"
    day: str = "${now:%Y}"
    out: str = "${oc.env:NEMO_RUN_DIR}/out"


def score(config: Config) -> float:
    assert config.day.startswith("20") and config.out.endswith(f"/jobs/{config.job}/out"), config
    print(f"job {config.job} pid {os.getpid()}")
    if config.n < 0:
        raise ValueError("n is negative")
    if config.n > 100:
        sys.exit(7)
    return config.n * 2


@dataclass
class MakeConfig:
    n: float = 1
    name: str = ""


def make(config: MakeConfig) -> Artifact:
    folder = Path("made"); folder.mkdir()
    (folder / "n").write_text(str(config.n))
    artifact = Artifact(path=folder)
    artifact.save(name="Made")
    return artifact


@dataclass
class ReadConfig:
    data_path: Path
    n: int = 0


def read(config: ReadConfig) -> str:
    return (config.data_path / "n").read_text()


app = App("demo")
app.command("score", Config, score)
app.command("make", MakeConfig, make)
app.command("read", ReadConfig, read, artifacts={"data": ArtifactInput("Made:latest", {"path": "data_path"})})
app.command("script", Config, score, script_path=Path(__file__).with_name("script.py"))

if __name__ == "__main__":
    app.run()
"""

SCRIPT = """
import json, os
from nemotron.kit.train_script import load_omegaconf_yaml, parse_config_and_overrides

path, _ = parse_config_and_overrides("none.yaml")
config = load_omegaconf_yaml(path)
with open(os.path.join(os.environ["NEMO_RUN_DIR"], "metrics.jsonl"), "w") as file:
    print(json.dumps({"step": 1, "loss": config.n + 0.5}), file=file)
"""

PROFILES = """
[cli]
recipes = ["../recipes/demo"]
[here]
executor = "local"
[there]
executor = "local"
"""

needs_nemo_run = pytest.mark.skipif(not find_spec("nemo_run"), reason="NeMo-Run is not installed")
VIA = [pytest.param("nemo_run", marks=needs_nemo_run), "kit"]


class Recipe(Project):
    def sweep(self, stage: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.forked("python", "-m", "nemotron_kit", "-m", "recipe=demo", f"stage={stage}", *words, code=code)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    package = {"__init__.py": "", "__main__.py": RECIPE, "script.py": SCRIPT}
    files = {f"../recipes/demo/{name}": text for name, text in package.items()}
    return Recipe(tmp_path / "work", {**files, "env.toml": PROFILES}, tmp_path / "home")


@pytest.mark.parametrize("via", VIA)
def test_a_sweep_is_one_record(recipe: Recipe, via: str) -> None:
    done = recipe.sweep("score", "n=1,2,3", "hydra/launcher=nemo_run", f"hydra.launcher.via={via}")
    assert "of 3 jobs 3 succeeded" in done.stderr
    assert [record["value"] for record in recipe.exits()] == [2.0, 4.0, 6.0]
    logs = [(recipe.newest / "jobs" / str(n) / "logs" / "job.log").read_text() for n in range(3)]
    assert [log.split()[1] for log in logs] == ["0", "1", "2"]
    assert len({log.split()[3] for log in logs}) == 3
    plan = json.loads((recipe.newest / "plan.json").read_text())
    assert (plan["kind"], plan["recipe"], plan["stage"], plan["executor"]) == ("sweep", "demo", "score", "local")
    # Scripts and handlers get config.yaml: there is no pickle, and Hydra's own files are the kit's, masked.
    job = recipe.newest / "jobs" / "1"
    assert not (job / "hydra.json").exists()
    assert "n: 2" in (job / ".hydra" / "config.yaml").read_text().replace("'", "")


def test_hydras_own_values_in_a_single_job(recipe: Recipe) -> None:
    line = ["python", "-m", "nemotron_kit", "recipe=demo", "stage=make", "name=${hydra:job.name}"]
    assert json.loads(recipe(*line, "--dry-run", "--json").stdout)["config"]["name"] == "nemotron"
    recipe(*line)
    assert "name: nemotron" in (recipe.newest / "jobs" / "0" / "config.yaml").read_text()


def test_a_script_and_its_metric(recipe: Recipe) -> None:
    words = ["hydra/launcher=nemo_run", "hydra.launcher.via=kit", "hydra.launcher.objective=loss"]
    recipe.sweep("script", "n=1,2", *words)
    assert [record["state"] for record in recipe.exits()] == ["succeeded"] * 2
    done = recipe.sweep("script", "n=1", *words[:2], "hydra.launcher.objective=accuracy", code=1)
    assert "logged no metric 'accuracy'" in done.stderr


@pytest.mark.skipif(not find_spec("optuna"), reason="hydra-optuna-sweeper is not installed")
def test_optuna_gets_the_metric_that_is_named_and_says_before_the_first_trial_that_none_is(recipe: Recipe) -> None:
    study = ["hydra/sweeper=optuna", "n=range(1,4)", "hydra.sweeper.n_trials=2"]
    done = recipe.sweep("make", *study, code=2)
    assert "the handler of demo make returns an artifact" in done.stderr
    assert not (recipe.folder / "made").exists() and not recipe.runs()
    launcher = ["hydra/launcher=nemo_run", "hydra.launcher.via=kit", "hydra.launcher.objective=loss"]
    kept = f"hydra.sweeper.storage=sqlite:///{recipe.folder}/study.db"
    recipe.sweep("script", *study, *launcher, kept, "hydra.sweeper.study_name=kept")
    assert (recipe.folder / "study.db").stat().st_size > 0
    best = (recipe.newest / "optimization_results.yaml").read_text()
    (told,) = re.findall(r"best_value: (.+)", best)
    logged = [json.loads(path.read_text().splitlines()[-1]) for path in recipe.newest.glob("jobs/*/metrics.jsonl")]
    assert float(told) == min(row["loss"] for row in logged)


def test_failures(recipe: Recipe) -> None:
    done = recipe.sweep("score", "n=1,-1,200", "hydra/launcher=nemo_run", "hydra.launcher.via=kit", code=1)
    assert "2 of 3 jobs did not succeed (job 1, 2)" in done.stderr
    assert "ValueError: n is negative" in done.stderr
    assert "Traceback" not in done.stderr
    assert [record["code"] for record in recipe.exits()] == [0, 1, 7]


def test_every_job_of_a_sweep_reads_the_same_version(recipe: Recipe) -> None:
    recipe("python", "-m", "nemotron_kit", "recipe=demo", "stage=make", "n=5")
    recipe.sweep("read", "n=1,2", "hydra/launcher=nemo_run", "hydra.launcher.via=kit")
    pins = [
        json.loads((recipe.newest / "jobs" / str(n) / "artifacts.json").read_text())["inputs"]["data"] for n in range(2)
    ]
    assert pins[0] == pins[1]
    assert [record["value"] for record in recipe.exits()] == ["5.0", "5.0"]


def test_a_profile_is_named_once(recipe: Recipe) -> None:
    words = ["n=1,2", "hydra/launcher=nemo_run", "hydra.launcher.via=kit"]
    done = recipe.sweep("score", *words, "run.profile=here", "hydra.launcher.profile=there", code=2)
    assert "run.profile" in done.stderr and "hydra.launcher.profile" in done.stderr
    assert not list((recipe.home / "runs").glob("*"))
    recipe.sweep("score", *words, "hydra.launcher.profile=here")
    assert json.loads((recipe.newest / "plan.json").read_text())["profile"] == "here"
    recipe("nemotron", "demo", "score", "--run", "there", "-m", "n=1,2")
    assert json.loads((recipe.newest / "plan.json").read_text())["profile"] == "there"


def test_a_detached_sweep(recipe: Recipe) -> None:
    done = recipe("nemotron", "demo", "score", "--batch", "here", "-m", "n=1,2,3")
    assert f"nemotron runs show {recipe.newest.name}" in done.stderr
    until(lambda: len(list(recipe.newest.glob("jobs/*/exit.json"))) == 3)
    assert [record["value"] for record in recipe.exits()] == [2.0, 4.0, 6.0]


@pytest.mark.skipif(not find_spec("submitit"), reason="hydra-submitit-launcher is not installed")
def test_submitit_on_this_machine(recipe: Recipe) -> None:
    recipe("python", "-m", "nemotron_kit", "recipe=demo", "stage=make", "n=5")
    for name in ("json", "random", "logging"):  # submitit starts its workers without -P
        (recipe.folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working folder ran')\n")
    done = recipe.sweep("score", "n=1,2", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    assert "of 2 jobs 2 succeeded" in done.stderr
    assert [record["value"] for record in recipe.exits()] == [2.0, 4.0]
    recipe.sweep("read", "n=1,2", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    assert [record["value"] for record in recipe.exits()] == ["5.0", "5.0"]
    done = recipe.sweep("score", "n=1,-1", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", code=1)
    assert "1 of 2 jobs did not succeed (job 1)" in done.stderr
    assert "n is negative" in done.stderr
