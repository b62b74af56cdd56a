"""Sweeps that are larger than what the cluster takes at once, and launches that die while they submit."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from ..conftest import until
from .test_launcher_slurm_apps import World

JOBS = 12


@pytest.fixture
def world(slurm: Any, tmp_path: Path) -> World:
    return World(tmp_path, slurm)


def fake(world: World, program: str, script: str) -> dict[str, str]:
    """A PATH on which `program` is `script` ($REAL is the real one)."""
    folder = world.folder.parent / "bin"
    folder.mkdir(exist_ok=True)
    (folder / program).write_text(f"#!/bin/bash\nREAL=/usr/bin/{program}\n{script}\n")
    (folder / program).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def room_for(world: World, count: int) -> dict[str, str]:
    """A PATH on which the controller takes only so many jobs more than it has now."""
    queued = len(world.slurm.run("squeue", "-h", "-r", "-t", "all", "-o", "%A").split())
    most = math.ceil((queued + count) / 0.95)
    return fake(world, "scontrol", f'"$REAL" "$@" | sed "s/^MaxJobCount .*/MaxJobCount = {most}/"')


def submissions(world: World) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(world.newest.glob("slurm/*.json"))]


def nemotron(world: World, *words: str, code: int = 0) -> str:
    program = "import sys; from nemotron_kit.cli.main import nemotron; sys.exit(nemotron())"
    return world.said("-c", program, *words, code=code)


def resume(world: World) -> str:
    return nemotron(world, "runs", "resume", "latest")


def wait(world: World) -> list[str]:
    until(lambda: len(list(world.newest.glob("jobs/*/exit.json"))) == JOBS, 120)
    return [record["state"] for record in world.exits()]


def test_what_does_not_fit_is_submitted_as_others_end(world: World) -> None:
    world.app(f"x=range({JOBS})", **room_for(world, 5))
    assert wait(world) == ["succeeded"] * JOBS
    parts = [set(found["jobs"]) for found in submissions(world)]
    assert len(parts) > 1
    assert sorted(number for part in parts for number in part) == list(range(JOBS))


def test_what_does_not_fit_waits_for_resume(world: World) -> None:
    said = world.app(f"x=range({JOBS})", "hydra.launcher.detach=true", **room_for(world, 5))
    given = sum(len(found["jobs"]) for found in submissions(world))
    assert 0 < given < JOBS
    assert f"{JOBS - given} jobs are still to be submitted: nemotron runs resume {world.newest.name}" in said
    shown = nemotron(world, "runs", "show", "latest")
    assert f"{JOBS - given} to be submitted: nemotron runs resume" in shown
    assert "unknown" not in shown
    nemotron(world, "runs", "attach", "latest")  # to the end of those that were submitted
    assert f"{JOBS - given} jobs submitted" in resume(world)
    assert wait(world) == ["succeeded"] * JOBS
    assert "0 jobs submitted" in resume(world)
    assert sorted(number for found in submissions(world) for number in found["jobs"]) == list(range(JOBS))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_launch_that_is_killed_while_it_submits(world: World, when: str) -> None:
    kill = "kill -9 $PPID"
    script = f"{kill}; exit 1" if when == "before" else f'out=$("$REAL" "$@"); {kill}; echo "$out"'
    path = fake(world, "sbatch", script)
    line = ["app.py", "-m", "hydra/launcher=nemo_run", "hydra.launcher.profile=C", "hydra.sweep.dir=out"]
    world("python", *line, f"x=range({JOBS})", code=-9, **path)
    assert f"{JOBS} jobs submitted" in resume(world)
    assert wait(world) == ["succeeded"] * JOBS
    (only,) = submissions(world)
    words = ["sacct", "-n", "-X", "-P", f"--name={only['name']}", "-S", "now-1hour", "-o", "JobID"]
    # Accounting lags behind.
    until(lambda: len(world.slurm.run(*words, check=False).split()) >= JOBS, every=0.5)
    assert len(world.slurm.run(*words, check=False).split()) == JOBS


def test_a_sweep_that_slurm_refuses(world: World) -> None:
    said = world.app("x=1,2", "+hydra.launcher.env.account=nobody", code=2)
    assert "Slurm refused the job" in said
    assert [record["state"] for record in world.exits()] == ["failed"] * 2


def test_what_waits_can_be_cancelled(world: World) -> None:
    world.app(f"x=range({JOBS})", "how=sleep", "hydra.launcher.detach=true", **room_for(world, 5))
    nemotron(world, "runs", "cancel", "latest", "--grace", "30")
    assert wait(world) == ["cancelled"] * JOBS
    refused = nemotron(world, "runs", "resume", "latest", code=2)
    assert f"no jobs that wait to be submitted; {JOBS} have stopped" in refused, "which one is to go on has to be said"


def test_a_controller_that_is_away_for_a_moment(world: World) -> None:
    """Nothing was submitted, which is known; going on submits them, and they do not stay failed."""
    away = 'echo "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)" >&2'
    said = world.app(
        f"x=range({JOBS})", "hydra.launcher.detach=true", code=3, **fake(world, "sbatch", f"{away}; exit 1")
    )
    assert "Unable to contact slurm controller" in said
    assert f"{JOBS} jobs submitted" in resume(world)
    assert "failed" not in nemotron(world, "runs", "show", "latest")
    assert wait(world) == ["succeeded"] * JOBS
