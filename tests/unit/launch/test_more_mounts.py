"""Folders that a container needs, known once it is planned."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.executors.base import executor_for
from nemotron_kit.executors.slurm.script import FILE
from nemotron_kit.spec.plan import Plan
from nemotron_kit.spec.runconfig import RunConfig

RUN = "/h/runs/20261124-171204-work-read-1f03a7"
CONFIG = RunConfig(executor="slurm", account="a", partition="p", container_image="/x.sqsh")


def plan(config: RunConfig, files: dict[str, str], **more: Any) -> Plan:
    place = {"root": "/h", "run": RUN, "python": "python3", "kit": "/h/kit/k", "artifacts": "/h/artifacts"}
    stored = {"recipe": "work", "stage": "read", "mode": "batch", "place": place, "settings": asdict(config)}
    return Plan.from_dict({**stored, "files": files, **more}, Path(RUN))


def with_folders(plan: Plan) -> Plan:
    return executor_for(plan.settings).with_folders(plan, ["/h/runs/other"])


def test_on_slurm_the_script_is_rendered_again() -> None:
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    more = with_folders(plan(CONFIG, {FILE: "", "job.json": "{}"}))
    assert more.mounts == (RUN, "/h/artifacts", "/h/code", "/h/kit/k", "/h/runs/other")
    assert more.files["job.json"] == "{}" and more.problems == ()
    assert (
        f"--container-mounts {RUN}:{RUN}," in more.files[FILE] and ",/h/runs/other:/h/runs/other," in more.files[FILE]
    )
    assert f"python3 /h/kit/k {RUN}/jobs/0 || nemotron_end" in more.files[FILE]
    shared = with_folders(replace(plan(CONFIG, {}), single=False))
    assert shared.files == {} and shared.mounts == more.mounts


def test_on_docker_it_is_read_only() -> None:
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    more = with_folders(plan(replace(CONFIG, executor="docker", container_image="image"), {})).container
    assert more is not None
    at = more.arguments.index("--entrypoint=")
    assert more.arguments[at - 1] == "--mount=type=bind,source=/h/runs/other,target=/h/runs/other,readonly"
    assert more.arguments[at:] == ("--entrypoint=", "image", "python3", "/h/kit/k", f"{RUN}/jobs/0")


def test_where_nothing_has_to_be_mounted_the_plan_stays() -> None:
    bare = plan(replace(CONFIG, container_image=None), {FILE: ""}, mounts=[])
    refused = replace(plan(CONFIG, {}, mounts=[]), problems=("no",))
    assert with_folders(bare) is bare
    assert with_folders(refused) is refused
