"""The srun line that leads into a job's allocation, and into its container."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import UserError
from nemotron_kit.executors.slurm.client import Slurm
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.job import JobFolder, JobState
from nemotron_kit.spec.plan import Plan

ALONE = JobState("running", facts={"scheduler": {"kind": "slurm", "job": "12"}})
TASK = JobState("running", facts={"scheduler": {"kind": "slurm", "job": "12_3"}})


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    found = JobFolder(tmp_path / "runs" / "20261124-171204-work-speak-1f03a7" / "jobs" / "0")
    found.path.mkdir(parents=True)
    return found


def line(job: JobFolder, *command: str, state: JobState = ALONE, **settings: Any) -> list[str]:
    plan = Plan.from_dict({"settings": settings}, job.path.parent.parent)
    return Slurm(plan.settings).shell(plan, job, state, list(command), "n2")


def began(job: JobFolder, *steps: str) -> None:
    for step in steps:
        job.transition("running", scheduler={"kind": "slurm", "job": "12_3", "step": step})
    job.transition("running", observed=True, scheduler={"kind": "slurm", "job": "12_3"})


def test_a_job_without_a_container_is_entered_in_its_folder(job: JobFolder) -> None:
    words = line(job)
    assert words[:2] == ["srun", "--jobid=12"] and f"--chdir={job.path}" in words and "--nodelist=n2" in words
    assert words[-2:] == ["/bin/bash", "-l"] and not any(word.startswith("--container") for word in words)


def test_a_task_of_an_array_has_a_number_of_its_own(job: JobFolder) -> None:
    with pytest.raises(UserError, match="not begun yet"):
        line(job, state=TASK)
    began(job, "15.1")
    assert line(job, state=TASK)[:2] == ["srun", "--jobid=15"]


def test_a_container_is_entered_by_the_step_that_runs_the_worker(job: JobFolder) -> None:
    image = {"container_image": "/x.sqsh"}
    with pytest.raises(UserError, match="not begun yet"):
        line(job, **image)
    began(job, "12.1", "12.2")
    words = line(job, **image)
    assert "--container-name=12.2:exec" in words and f"--container-workdir={job.path}" in words
    assert words[-1] == "/bin/sh" and not any(word.startswith("--chdir") for word in words)
    assert line(job, "ls", "-l", **image)[-2:] == ["ls", "-l"]


def test_a_container_with_a_name_of_its_own(job: JobFolder) -> None:
    extra = {"srun_args": ["--mpi=none", "--container-name=mine:no_exec"]}
    assert "--container-name=mine:exec" in line(job, container_image="/x.sqsh", extra=extra)


def test_a_shell_is_opened_in_one_job(home: Path) -> None:
    run = create_run(new_run_id("mine", "go"), {"executor": "local"}, [{"config.yaml": "{}\n"}] * 3)
    with pytest.raises(UserError, match=rf"{run.id}/1-2 are 2 jobs; a shell is opened in one\.\nName it: {run.id}/1"):
        run_tool("runs", ["shell", f"{run.id}/1-2"])


def test_a_container_of_apptainer_is_entered_with_the_modules_that_bring_it(job: JobFolder) -> None:
    image = {"container_runtime": "apptainer", "container_image": "/x.sif"}
    assert line(job, "ls", "a b", **image)[-2:] == ["ls", "a b"]
    *_, shell, option, text = line(job, "ls", "a b", **image, modules=["apptainer/1.4"])
    assert (shell, option) == ("bash", "-c")
    bin_folder = job.path / "bin"
    bin_folder.mkdir()
    for name in ("apptainer", "module"):
        (bin_folder / name).write_text('#!/bin/sh\necho "${0##*/}" "$@" "$#"\n')
        (bin_folder / name).chmod(0o755)
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin"}
    done = subprocess.run([shell, option, text], env=environment, capture_output=True, text=True, check=True)
    first, last = done.stdout.splitlines()
    assert first == "module load apptainer/1.4 2" and last.startswith("apptainer exec ") and " /x.sif ls a b " in last
