"""What a job prints and logs is in its log on Slurm and in a container, as it is on this machine: see
tests/integration/test_job_logs.py."""

# ruff: noqa: F811
from __future__ import annotations

import pytest

from ..log_lines import SAYS, TOKEN, WORDS, check
from . import docker_world
from .slurm_world import APP, World, world  # noqa: F401

docker_world_of = docker_world.world


PROFILES = """
[say]
extends = "C"
secrets = ["SAID_TOKEN"]

[say-two]
extends = "say"
nodes = 2
nproc_per_node = 2
"""


def with_say(world: World) -> World:
    with (world.folder / "env.toml").open("a") as file:
        file.write(PROFILES)
    (world.folder / "says.py").write_text(SAYS)
    (world.folder / "work.py").write_text(
        APP.replace(
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


def test_in_a_container_without_hydra(docker_world_of: World) -> None:
    world = with_say(docker_world_of)
    done = world.run("say", *WORDS, "--run", "say", **TOKEN)
    assert done.returncode == 0, done.stderr
    check(done.stdout, known="no Hydra")
