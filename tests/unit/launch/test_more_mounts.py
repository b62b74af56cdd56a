"""Folders that a container needs, known once it is planned."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.executors.slurm.script import FILE
from nemotron_kit.launch.mounts import with_folders
from nemotron_kit.spec.plan import Plan
from nemotron_kit.spec.resources import resources_of
from nemotron_kit.spec.runconfig import RunConfig

RUN = "/h/runs/20261124-171204-work-read-1f03a7"
CONFIG = RunConfig(executor="slurm", account="a", partition="p", container_image="/x.sqsh")


def plan(config: RunConfig, files: dict[str, str], **more: Any) -> Plan:
    place = {"run": RUN, "python": "python3", "kit": "/h/kit/k"}
    stored = {"recipe": "work", "stage": "read", "mode": "batch", "place": place, "settings": asdict(config)}
    return Plan.from_dict({**stored, "files": files, **more}, Path(RUN))


def test_on_slurm_the_script_is_rendered_again() -> None:
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    known = {"resources": asdict(resources_of(CONFIG, None)), "mounts": [RUN]}
    more = with_folders(plan(CONFIG, {FILE: "", "job.json": "{}"}, **known), ["/h/runs/other"])
    assert more.mounts == (RUN, "/h/runs/other") and more.files["job.json"] == "{}"
    assert f"--container-mounts {RUN}:{RUN},/h/runs/other:/h/runs/other," in more.files[FILE]
    assert f"python3 /h/kit/k {RUN}/jobs/0 || nemotron_end" in more.files[FILE]


def test_on_docker_it_is_read_only() -> None:
    words = ["docker", "run", "--entrypoint=", "image", "python3"]
    made = plan(replace(CONFIG, executor="docker"), {}, container={"name": "n", "words": words})
    more = with_folders(made, ["/h/runs/other"]).container
    mount = "--mount=type=bind,source=/h/runs/other,target=/h/runs/other,readonly"
    assert more and more.words == ("docker", "run", mount, "--entrypoint=", "image", "python3")


def test_where_nothing_has_to_be_mounted_the_plan_stays() -> None:
    bare = plan(replace(CONFIG, container_image=None), {FILE: ""}, mounts=[])
    refused = replace(plan(CONFIG, {}, mounts=[]), problems=("no",))
    assert with_folders(bare, ["/h/runs/other"]) is bare
    assert with_folders(refused, ["/h/runs/other"]) is refused
