"""What a job prints and logs is in its log on Slurm and in a container, as it is on this machine: see
tests/integration/test_job_logs.py."""

# ruff: noqa: F811
from __future__ import annotations

import getpass
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from ..log_lines import SAYS, TOKEN, WORDS, check
from ..programs import WORK
from ..project import files_with
from . import docker_world
from .slurm_world import World, world  # noqa: F401

docker_world_of = docker_world.world


PROFILES = """
[say]
extends = "C"
secrets = ["SAID_TOKEN"]

[say-two]
extends = "say"
nodes = 2
nproc_per_node = 2

[say-far]
extends = "say"
tunnel = "ssh"
host = "nk-plain"
user = "THE_USER"
python = "THE_PYTHON"
remote_job_dir = "THE_FOLDER"
"""


def with_say(world: World) -> World:
    profiles = PROFILES.replace("THE_USER", getpass.getuser()).replace("THE_PYTHON", sys.executable)
    with (world.folder / "env.toml").open("a") as file:
        file.write(profiles.replace("THE_FOLDER", str(world.folder.parent / "far")))
    (world.folder / "says.py").write_text(SAYS)
    (world.folder / "work.py").write_text(
        WORK.replace(
            'app.command("alone"', 'from says import say_it\napp.command("say", Config, say_it)\napp.command("alone"'
        )
    )
    return world


@pytest.mark.parametrize(("profile", "ranks"), [("say", 1), ("say-two", 4)])
def test_on_slurm(world: World, profile: str, ranks: int) -> None:
    done = with_say(world).run("say", *WORDS, "--run", profile, **TOKEN)
    assert done.returncode == 0, done.stderr
    check(done.stdout, known="RUN nemotron", ranks=ranks)
    logs = {path.name: path.read_text() for path in (world.job(done.stderr).path / "logs").iterdir()}
    assert TOKEN["SAID_TOKEN"] not in str(logs)
    # The node's log has each line that a rank's own has.
    check("".join(text for name, text in logs.items() if "rank" not in name), known="RUN nemotron", ranks=ranks)


def test_over_ssh(world: World, sshd: Any) -> None:
    env = {**TOKEN, **sshd.env, "NEMOTRON_SSH_CONFIG": str(sshd.config)}
    done = with_say(world).run("say", *WORDS, "--run", "say-far", **env)
    assert done.returncode == 0, done.stderr
    check(done.stdout, known="RUN nemotron")
    assert files_with(TOKEN["SAID_TOKEN"], world.folder.parent) == []


@pytest.mark.skipif(not find_spec("submitit"), reason="hydra-submitit-launcher is not installed")
def test_under_submitit(world: World) -> None:
    """Its jobs find a recipe as every command does: in a folder that env.toml names."""
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=batch", "hydra.launcher.timeout_min=5"]
    of_slurm = ["hydra.launcher.account=research", "hydra.launcher.mem_gb=1"]
    with_say(world).env.update(TOKEN)
    with (world.folder / "env.toml").open("a") as file:
        file.write('[cli]\nrecipes = ["./work"]\n')
    (world.folder / "work").mkdir()
    (world.folder / "work.py").rename(world.folder / "work" / "__init__.py")
    line = ["python", "-m", "nemotron_kit", "-m", "recipe=work", "stage=say", *WORDS, *launcher, *of_slurm]
    world(*line, PYTHONPATH=".")
    job = world.only_run().job(0)
    check((job.path / "logs" / "job.log").read_text(), known="MULTIRUN nemotron")
    assert files_with(TOKEN["SAID_TOKEN"], world.folder.parent) == []


def test_in_a_container_without_hydra(docker_world_of: World) -> None:
    world = with_say(docker_world_of)
    done = world.run("say", *WORDS, "--run", "say", **TOKEN)
    assert done.returncode == 0, done.stderr
    check(done.stdout, known="no Hydra")
