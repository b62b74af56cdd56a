"""The small recipe of slurm_world, launched into containers of the real engine of scripts/cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .slurm_world import World

ENV = """
[C]
executor = "docker"
container_image = "IMAGE"
extra = { network = "none" }

[secret]
extends = "C"
secrets = ["WORK_TOKEN"]

[here]
executor = "local"

[undo]
extends = "C"
cancel_on_interrupt = true

[absent]
extends = "C"
container_image = "localhost:1/nowhere/nothing:1"

[nopython]
extends = "C"
python = "/nowhere/python"

[apart]
extends = "C"
remote_job_dir = "REMOTE"
artifacts_root = "REMOTE/registry"
"""


def tool(world: World, *words: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """`nemotron WORDS`, in the world's folder, however that ends."""
    return world.forked("nemotron", *words, code=None, timeout=timeout, **env)


def containers(world: World, run_id: str) -> list[str]:
    """The names of a run's containers, whatever their state."""
    text: str = world.slurm.run(
        "docker", "ps", "--all", f"--filter=label=nemotron-kit.run={run_id}", "--format={{.Names}}"
    )
    return text.split()


@pytest.fixture
def world(docker: Any, tmp_path: Path) -> Iterator[World]:
    """An empty world; whatever it left running is removed afterwards."""
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    profiles = ENV.replace("IMAGE", docker.image).replace("REMOTE", str(tmp_path / "remote"))
    made = World(tmp_path, profiles, docker)
    yield made
    left = [name for run in (made.home / "runs").glob("2*") for name in containers(made, run.name)]
    if left:
        docker.run("docker", "rm", "--force", *left, check=False)
