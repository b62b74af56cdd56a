"""Sweeps on a real Slurm, through ssh too: other people's apps, recipes, and hydra-submitit-launcher over recipes."""

from __future__ import annotations

import getpass
import json
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
import pytest

from ..conftest import until
from ..programs import TOLD_SWEEPER
from ..project import Project, files_with
from .slurm_world import ENV as PROFILES

pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")

APP = """
import os, signal, sys, time
from dataclasses import dataclass
import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from helper import WORD


@dataclass
class Config:
    x: float = 1.0
    how: str = "return"


ConfigStore.instance().store("config", Config)


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    assert type(OmegaConf.to_object(cfg)) is Config
    print("said", WORD, "id", HydraConfig.get().job.id, "rank", os.environ.get("RANK"), flush=True)
    if cfg.how == "value": raise ValueError("bad", cfg.x)
    if cfg.how == "exit": sys.exit(3)
    if cfg.how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if cfg.how == "sleep": time.sleep(300)
    if cfg.how == "nap": print(time.time()); time.sleep(2); print(time.time())
    if cfg.how == "env": print("token", os.environ["DEMO_TOKEN"])
    return [cfg.x, float(os.environ.get("WORLD_SIZE", 1))]


if __name__ == "__main__":
    main()
"""

RECIPE = """
from dataclasses import dataclass
from nemotron.kit import App


@dataclass
class Config:
    n: float = 1
    job: str = "${hydra:job.num}"


def score(config: Config) -> float:
    print("scored", config.job)
    with open("mine.txt", "w") as file:
        file.write("x")
    if config.n < 0:
        raise ValueError("n is negative")
    return config.n * 2


app = App("demo")
app.command("score", Config, score)

if __name__ == "__main__":
    app.run()
"""

ENV = f"""
[cli]
recipes = ["./demo"]
{PROFILES}
[far]
extends = "C"
tunnel = "ssh"
host = "nk-plain"
user = "THE_USER"
python = "THE_PYTHON"
remote_job_dir = "THE_ROOT"

[box]
executor = "docker"
container_image = "THE_IMAGE"
python = "python3"
mounts = ["THE_PACKAGES:/packages:ro"]
env_vars = {{PYTHONPATH = "/packages"}}
extra = {{network = "none"}}
max_parallel = 2
"""


class World(Project):
    def __init__(self, place: Path, slurm: Any) -> None:
        text = ENV.replace("THE_USER", getpass.getuser()).replace("THE_PYTHON", sys.executable)
        text = text.replace("THE_ROOT", str(place / "far"))
        files = {
            "app.py": APP,
            "helper.py": "WORD = 'first'\n",
            "demo/__init__.py": "",
            "demo/__main__.py": RECIPE,
            "env.toml": text.replace("THE_PACKAGES", str(Path(hydra.__file__).parents[1])),
            "../plugins/hydra_plugins/told.py": TOLD_SWEEPER,
        }
        super().__init__(place / "app", files, place / "home", **slurm.env, PYTHONPATH=str(place / "plugins"))
        self.home.mkdir(mode=0o700)
        self.slurm = slurm

    def said(self, *words: str, code: int = 0, **env: str) -> str:
        """What `python WORDS` prints."""
        done = self.forked("python", *words, code=code, timeout=200, **env)
        return done.stdout + done.stderr

    def app(self, *words: str, profile: str = "C", code: int = 0, **env: str) -> str:
        return self.said("app.py", "-m", *_launcher(profile), *words, code=code, **env)

    def log(self, number: int) -> str:
        return (self.newest / "jobs" / str(number) / "logs" / "job.log").read_text()

    def queued(self) -> list[str]:
        names = [path.stem for path in self.newest.glob("slurm/*.json")]
        return [
            name for intent in names for name in self.slurm.run("squeue", "-h", "-o", "%j").split() if intent in name
        ]


def _launcher(profile: str) -> list[str]:
    return ["hydra/launcher=nemo_run", f"hydra.launcher.profile={profile}", "hydra.sweep.dir=out"]


@pytest.fixture
def world(slurm: Any, tmp_path: Path) -> World:
    return World(tmp_path, slurm)


def test_what_comes_back(world: World) -> None:
    said = world.app("hydra/sweeper=told", "x=2", "how=return,value,exit,kill")
    told = [line for line in said.splitlines() if line.startswith(("RETURNED", "RAISED"))]
    assert told[0] == "RETURNED [2.0, 1.0]"
    assert told[1] == "RAISED ValueError ('bad', 2.0) None"
    assert told[2].endswith(" 3")
    assert told[3].endswith(" 137")
    assert [record["state"] for record in world.exits()] == ["succeeded", "failed", "failed", "failed"]
    # One sbatch for all of them; Hydra's job.id is Slurm's, and the user's files have Hydra's own layout.
    (submission,) = (json.loads(path.read_text()) for path in world.newest.glob("slurm/*.json"))
    assert f"id {submission['job']}_1" in world.log(1)
    assert "x: 2" in (world.folder / "out" / "3" / ".hydra" / "config.yaml").read_text()


def test_the_tree_where_it_is(world: World) -> None:
    """A program that finds its project by its own path reads what git ignores there, and writes there."""
    root = world.folder
    (root / "data").mkdir()
    (root / "data" / "d").write_text("payload")
    (root / ".gitignore").write_text("data/\nlogs/\n")
    (root / "app.py").write_text(
        "import hydra, pathlib\n"
        "root = pathlib.Path(__file__).resolve().parent\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n"
        "    (root / 'logs').mkdir(exist_ok=True)\n"
        "    (root / 'logs' / f'{cfg.n}').write_text((root / 'data' / 'd').read_text())\n"
        "if __name__ == '__main__': main()\n"
    )
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    world.app("+n=1")
    assert (root / "logs" / "1").read_text() == "payload"
    assert not (world.newest / "code").exists()


def test_what_was_just_edited_runs(world: World) -> None:
    """With a packager in the profile, a copy of the tree as it was at launch is what runs."""
    with (world.folder / "env.toml").open("a") as file:
        file.write('\n[copied]\nextends = "C"\npackager = "worktree"\n')
    (world.folder / "helper.py").write_text("WORD = 'edited'\n")
    process = world.start("python", "app.py", "-m", *_launcher("copied"), "how=nap")
    until(lambda: list(world.home.glob("runs/2*/slurm/*.json")), every=0.05)
    (world.folder / "helper.py").write_text("raise SystemExit('edited while it waited')\n")
    assert process.wait(120) == 0
    assert "said edited" in world.log(0)


def test_so_many_at_a_time(world: World) -> None:
    world.app("how=nap", "x=range(4)", "hydra.launcher.max_parallel=2")
    spans = [tuple(float(line) for line in world.log(n).splitlines()[1:3]) for n in range(4)]
    assert max(sum(1 for a, b in spans if a <= start < b) for start, _ in spans) <= 2


def test_two_nodes(world: World) -> None:
    pytest.importorskip("torch")
    said = world.app("hydra/sweeper=told", "how=return", profile="two")
    assert "RETURNED [1.0, 4.0]" in said
    logs = "".join(path.read_text() for path in (world.newest / "jobs" / "0" / "logs").glob("rank-*.log"))
    assert all(f"rank {rank}" in logs for rank in range(4))
    assert len(list((world.folder / "out").glob("*/.hydra"))) == 1


def test_a_secret_of_the_environment(world: World) -> None:
    world.app("hydra.job.env_copy=[DEMO_TOKEN]", "how=env", DEMO_TOKEN="canary-77d1")  # noqa: S106
    assert "token ***" in world.log(0)
    assert files_with("canary-77d1", world.home, world.folder) == []


@pytest.mark.parametrize("profile", ["C", "undo"])
def test_interrupted(world: World, profile: str) -> None:
    """Ctrl-C leaves a sweep on a cluster alone, unless its profile says otherwise."""
    process = world.start("python", "app.py", "-m", *_launcher(profile), "how=sleep", "x=1,2")
    try:
        logs = "runs/2*/jobs/*/logs/job.log"
        until(lambda: sum("said" in log.read_text() for log in world.home.glob(logs)) == 2, 120)
        process.send_signal(signal.SIGINT)
        said = "".join(process.communicate(timeout=120))  # its jobs would sleep for longer
        assert f"nemotron runs cancel {world.newest.name}" in said or profile == "undo"
        if profile == "undo":
            until(lambda: not world.queued(), every=0.5)
        time.sleep(1.0)  # a cancellation would have reached the queue by then
        assert bool(world.queued()) == (profile == "C")
    finally:
        process.kill()
        world.slurm.run("scancel", "--name", ",".join(world.queued()) or "none", check=False)


def test_detached(world: World) -> None:
    said = world.app("hydra/sweeper=told", "how=return,value", "hydra.launcher.detach=true")
    assert said.count("RETURNED None") == 2
    until(lambda: len(list(world.newest.glob("jobs/*/exit.json"))) == 2)
    assert [record["state"] for record in world.exits()] == ["succeeded", "failed"]


def test_an_app_through_ssh(world: World, sshd: Any) -> None:
    said = world.app(
        "hydra/sweeper=told",
        "x=3",
        "how=return,value,kill",
        profile="far",
        **sshd.env,
        NEMOTRON_SSH_CONFIG=str(sshd.config),
    )
    told = [line for line in said.splitlines() if line.startswith(("RETURNED", "RAISED"))]
    assert told[0] == "RETURNED [3.0, 1.0]"
    assert told[1] == "RAISED ValueError ('bad', 3.0) None"
    assert told[2].endswith(" 137")
    assert not (world.folder / "out" / "0").exists()
    there = world.folder.parent / "far" / "runs" / world.newest.name
    assert (there / "sweep" / "0" / ".hydra" / "config.yaml").is_file()
    assert (there / "jobs" / "0" / "code" / "helper.py").is_file()


def test_an_app_in_containers(world: World, docker: Any) -> None:
    text = (world.folder / "env.toml").read_text()
    (world.folder / "env.toml").write_text(text.replace("THE_IMAGE", docker.image))
    said = world.app("hydra/sweeper=told", "x=3", "how=return,value,kill,nap", profile="box", **docker.env)
    told = [line for line in said.splitlines() if line.startswith(("RETURNED", "RAISED"))]
    assert told[0] == "RETURNED [3.0, 1.0]"
    assert told[1] == "RAISED ValueError ('bad', 3.0) None"
    assert told[2].endswith(" 137")
    assert told[3] == "RETURNED [3.0, 1.0]"
    assert (world.newest / "sweep" / "0" / ".hydra" / "config.yaml").is_file()
    assert not (world.folder / "out" / "0").exists()


@pytest.mark.parametrize("profile", ["C", "far"])
def test_a_recipe(world: World, sshd: Any, profile: str) -> None:
    words = ["recipe=demo", "stage=score", "n=1,-1,3", *_launcher(profile)[:2]]
    said = world.said("-m", "nemotron_kit", "-m", *words, code=1, **sshd.env, NEMOTRON_SSH_CONFIG=str(sshd.config))
    assert "1 of 3 jobs did not succeed (job 1)" in said
    assert [record.get("value") for record in world.exits()] == [2.0, None, 6.0]
    # What it wrote by a relative path lies in its copy of the code, and its record says so.
    assert [record["written"]["files"] for record in world.exits()] == [["mine.txt"]] * 3
    plan = json.loads((world.newest / "plan.json").read_text())
    assert (plan["recipe"], plan["executor"], plan["kind"]) == ("demo", "slurm", "sweep")


def test_a_recipe_submitted(world: World) -> None:
    """The prompt is back at once, with what can be done next."""
    said = world.said("-m", "nemotron_kit", "-m", "recipe=demo", "stage=score", "n=1,2", "--batch", "C")
    name = world.newest.name
    assert all(f"  nemotron runs {command} {name}\n" in said for command in ("show", "attach", "cancel"))
    nemotron = "import sys; from nemotron_kit.cli.main import nemotron; sys.exit(nemotron())"
    assert "[job 1] scored 1" in world.said("-c", nemotron, "runs", "attach", name)
    assert re.search(r"^1(?: \*)? +succeeded +2\b", world.said("-c", nemotron, "runs", "show", name), re.MULTILINE)


@pytest.mark.skipif(not find_spec("optuna"), reason="hydra-optuna-sweeper is not installed")
def test_a_study(world: World) -> None:
    """Optuna finds the same as with Hydra's basic launcher; trials are arrays, and a killed one has failed."""
    (world.folder / "bowl.py").write_text(
        "import hydra, os, signal\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n"
        "    if cfg.get('hard') and cfg.x > 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return (cfg.x - 2) ** 2\n"
        "if __name__ == '__main__': main()\n"
    )
    study = ["hydra/sweeper=optuna", "+x=interval(-10,10)", "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4",
             "hydra.sweeper.sampler.seed=1"]  # fmt: skip
    world.said("bowl.py", "-m", *study, "hydra.sweep.dir=basic")
    world.said("bowl.py", "-m", *_launcher("C"), *study)
    assert len(list(world.newest.glob("slurm/*.sh"))) == 2
    best = [(world.folder / name / "optimization_results.yaml").read_text() for name in ("basic", "out")]
    assert best[0] == best[1]
    world.said("bowl.py", "-m", *_launcher("C"), *study, "+hard=true", "hydra.sweeper.max_failure_rate=1")
    assert {record["state"] for record in world.exits()} == {"succeeded", "failed"}


@pytest.mark.skipif(not find_spec("submitit"), reason="hydra-submitit-launcher is not installed")
def test_a_recipe_through_submitit(world: World) -> None:
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=batch", "hydra.launcher.timeout_min=5"]
    words = ["recipe=demo", "stage=score", "n=1,2", "hydra.launcher.account=research"]
    said = world.said("-m", "nemotron_kit", "-m", *words, *launcher, "hydra.launcher.mem_gb=1")
    assert "of 2 jobs 2 succeeded" in said
    assert [record["value"] for record in world.exits()] == [2.0, 4.0]


def test_another_attempt_has_an_answer_of_its_own(world: World) -> None:
    """The first fails with an exception, the second is killed: the sweeper hears of the second."""
    text = (world.folder / "app.py").read_text()
    (world.folder / "app.py").write_text(
        text.replace(
            '    if cfg.how == "exit"',
            '    first = os.environ["NEMO_RUN_DIR"] + "/first"\n'
            '    if not os.path.exists(first): open(first, "w").close(); raise ValueError("the first")\n'
            '    if cfg.how == "exit"',
        )
    )
    with (world.folder / "env.toml").open("a") as file:
        file.write('\n[again]\nextends = "C"\nretries = 1\n')
    said = world.app("hydra/sweeper=told", "how=kill,return", profile="again")
    told = [line for line in said.splitlines() if line.startswith(("RETURNED", "RAISED"))]
    assert told[0].endswith(" 137")
    assert "the first" not in told[0]
    assert told[1] == "RETURNED [1.0, 1.0]"
