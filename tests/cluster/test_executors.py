"""The executors that need Slurm, ssh or Docker keep the contract of all executors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ..executor_contract import ExecutorContract, Target
from .slurm_world import World

SLURM = {"executor": "slurm", "account": "research", "partition": "batch", "time": "00:05:00"}


def _slurm(request: pytest.FixtureRequest, _: Path) -> tuple[dict[str, str], dict[str, Any]]:
    return request.getfixturevalue("slurm").env, SLURM


def _docker(request: pytest.FixtureRequest, _: Path) -> tuple[dict[str, str], dict[str, Any]]:
    docker = request.getfixturevalue("docker")
    return docker.env, {"executor": "docker", "container_image": docker.image, "extra": {"network": "none"}}


def _ssh(request: pytest.FixtureRequest, folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    sshd = request.getfixturevalue("sshd")
    return {"NEMOTRON_SSH_CONFIG": str(sshd.config)}, sshd.profile(f"/home/lab/{folder.name}-{os.getpid()}")


class TestThere(ExecutorContract):
    @pytest.fixture(params=[_slurm, _docker, _ssh], ids=["slurm", "docker", "ssh-slurm"])
    def target(self, request: pytest.FixtureRequest, tmp_path: Path) -> Target:
        pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
        env, profile = request.param(request, tmp_path)
        lines = [f"{key} = {_toml(value)}" for key, value in profile.items()]
        return Target(World(tmp_path, "\n".join(["[C]", *lines]) + "\n", SimpleNamespace(env=env)), "C")


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
