"""How a job ended, told apart on the real Slurm: by its own exit code, a signal, scancel."""

# ruff: noqa: F811
from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder

from .docker_world import tool
from .slurm_world import World, until, world  # noqa: F401
from .test_slurm_faults import stop_worker


def shown(world: World, job: JobFolder) -> dict[str, Any]:
    """Its job's part of `nemotron runs show --json`."""
    said: dict[str, Any] = json.loads(tool(world, "runs", "show", job.run_id, "--json").stdout)
    (record,) = said["job_records"]
    assert (said["state"], said["exit_code"]) == (record["state"], record["exit_code"])
    return dict(record)


def ended(world: World, job: JobFolder) -> tuple[str, int, str]:
    """State, exit code and reason, once it is over."""
    record = until(lambda: found if (found := shown(world, job))["finished_at"] else None, 60)
    return record["state"], record["exit_code"], str(record["error"])


def sleeping(world: World, *words: str) -> JobFolder:
    job = world.batch("deaf", "sleep=300", *words)
    until(lambda: (job.path / "logs" / "job.log").exists() and (job.path / "logs" / "job.log").stat().st_size, 60)
    return job


def number(world: World, job: JobFolder) -> str:
    return world.slurm_ids(RunFolder(job.path.parent.parent))[0]


def test_the_jobs_own_exit_code_is_on_record_and_the_launchs_is_1(world: World) -> None:
    done = world.run("speak", "code=42", "lines=1", "--run", "C")
    assert done.returncode == 1
    job = world.job(done.stderr)
    assert ended(world, job) == ("failed", 42, "exit code 42")
    accounted = ["sacct", "-nXPj", number(world, job), "-oExitCode"]
    assert until(lambda: world.slurm.run(*accounted).strip() == "42:0", 20), "Slurm's own tools show it, too"
    assert "42" in tool(world, "runs").stdout


def test_scancel_is_cancelled_and_not_code_0(world: World) -> None:
    job = sleeping(world)
    world.slurm.run("scancel", number(world, job))
    state, code, why = ended(world, job)
    assert (state, code) == ("cancelled", 128 + signal.SIGTERM) and "Slurm" in why
    assert tool(world, "runs", "wait", job.run_id).returncode == 4


def test_scancel_of_a_job_that_never_ran(world: World) -> None:
    job = world.batch("speak", "run.env.extra={additional_parameters:{hold:true}}")
    world.slurm.run("scancel", number(world, job))
    assert ended(world, job)[0] == "cancelled"
    assert not (job.path / "logs").exists()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_signal_from_nowhere_is_128_and_its_number(world: World, name: str) -> None:
    job = sleeping(world)
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = (entry.parent / "cmdline").read_bytes()
            if f"NEMO_RUN_DIR={job.path}".encode() in entry.read_bytes().split(b"\0") and b"--rank" in words:
                os.kill(int(entry.parent.name), getattr(signal, name))
        except OSError:
            continue
    code = 128 + getattr(signal, name)
    assert ended(world, job) == ("failed", code, f"killed by {name} (exit code {code})")


def test_a_worker_that_is_killed_with_all_its_children(world: World) -> None:
    """As the kernel does for want of memory: nobody is left to write a record."""
    job = sleeping(world)
    stop_worker(RunFolder(job.path.parent.parent))
    state, code, why = ended(world, job)
    assert (state, code) == ("failed", 128 + signal.SIGKILL) and "Slurm reports FAILED" in why
