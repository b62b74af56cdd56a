"""What a job without a container is: on its way, or lost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nemotron_kit.executors import docker
from nemotron_kit.runs.folder import create_run
from nemotron_kit.spec.runconfig import RunConfig


@pytest.mark.parametrize(
    ("log_age", "state", "says"),
    [
        (None, "pending", "not submitted yet"),
        (1.0, "pending", "it is being started"),
        (docker.START_SECONDS + 1, "failed", "is gone and left no record"),
    ],
)
def test_a_pending_job_without_a_container(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_age: float | None, state: str, says: str
) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\necho 'Error: No such container' >&2\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    run = create_run("20260102-030405-work-speak-abc123", {"executor": "docker"}, [{"job.json": "{}"}])
    if log_age is not None:
        run.job().open_log("worker").close()
        os.utime(run.job().log_path("worker"), (time.time() - log_age,) * 2)
    seen = docker.Docker(RunConfig()).observe(run, run.jobs())[0]
    assert seen.state == state and says in f"{seen.reason} {seen.error}"
