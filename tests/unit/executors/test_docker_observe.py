"""What a job without a container is, on its way or lost, and what a container mounts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.executors import docker
from nemotron_kit.executors.base import PlanContext
from nemotron_kit.runs.folder import create_run
from nemotron_kit.spec.paths import RemotePaths
from nemotron_kit.spec.plan import Container
from nemotron_kit.spec.resources import resources_of
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


def test_the_engine_is_asked_once_for_all_jobs_that_are_cancelled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def answer(*arguments: str, **_: object) -> str:
        asked.append(arguments)
        return f"/nk-{run.id}-0 running\n/nk-{run.id}-2 running\n" if arguments[0] == "container" else ""

    monkeypatch.setattr(docker, "_docker", answer)
    run = create_run("20260102-030405-work-speak-abc123", {"executor": "docker"}, [{"job.json": "{}"}] * 3)
    docker.Docker(RunConfig()).cancel(run, run.jobs())
    assert [arguments[0] for arguments in asked] == ["container", "stop"]
    assert asked[1][2:] == (f"nk-{run.id}-0", f"nk-{run.id}-2") and all(job.cancel_requested for job in run.jobs())
    docker.Docker(RunConfig()).cancel(run, [])
    assert len(asked) == 2


@pytest.mark.parametrize("mount", ["/data", "~/data:/data", "data", "/data:data", "/a:/b:ro:z"])
def test_a_mount_that_would_be_an_empty_volume_is_a_problem(tmp_path: Path, mount: str) -> None:
    settings = RunConfig(executor="docker", container_image="image", mounts=["/x:/x", "/y:/z:ro,z", "volume:/v", mount])
    paths = RemotePaths.from_dict(
        {"root": "/h", "run": "/h/runs/r", "python": "p", "kit": "/k", "artifacts": "/a"}, "/h/runs/r", 0
    )
    context = PlanContext(resources_of(settings, None), paths, {}, "r", 0, "label", "run")
    assert [problem.field for problem in docker._problems(settings, context)] == [f"mounts={mount}"]


def test_a_folder_that_is_not_there_is_not_made_by_docker(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RunConfig(executor="docker", container_image="image", mounts=[f"{tmp_path}:/a", f"{tmp_path}/no:/b"])
    run = create_run("20260102-030405-work-speak-abc123", {"executor": "docker"}, [{"job.json": "{}"}])
    container = Container("name", "image", ())
    monkeypatch.setattr(docker, "_docker", lambda *_, **__: "x")
    monkeypatch.setattr(docker.Docker, "prepare", lambda *_: None)
    with pytest.raises(UserError, match=f"mounts: {tmp_path}/no does not exist"):
        docker.Docker(settings).submit(run, [SimpleNamespace(container=container, job=0)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("fields", "names"),
    [({}, ""), ({"retries": 2}, "retries"), ({"retries": 2, "nproc_per_node": 2}, ""),
     ({"retries": 2, "max_segments": 3, "nproc_per_node": 2}, "max_segments")],
)  # fmt: skip
def test_a_note_names_what_docker_ignores_only(fields: dict[str, int], names: str) -> None:
    settings = RunConfig(executor="docker", **fields)  # type: ignore[arg-type]
    paths = RemotePaths.from_dict({"root": "/h"}, "/h/runs/r", 0)
    planned = docker.Docker(settings).plan(PlanContext(resources_of(settings, None), paths, {}, "r", 0, "label", "run"))
    assert planned.notes == (
        (f"{names}: no effect on Docker, where no scheduler starts the job again.",) if names else ()
    )
