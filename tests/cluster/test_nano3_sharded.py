"""The real recipe on a model that two nodes share: a rank that dies costs what was done since the last checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.runs.job import TERMINAL, JobFolder
from nemotron_kit.training import checkpoint

from .slurm_world import log, until
from .test_nano3_preempted import Lab, lab, rows

__all__ = ["lab"]

ENV = """
[pair]
extends = "calm"
nodes = 2
nproc_per_node = 1
retries = 1
"""
STEPS = 30
SETTINGS = ("train.eval_iters=8", "train.eval_interval=15", "checkpoint.save_interval=5")


def losses(job: JobFolder) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(job) if "loss" in row}


def process_of(job: JobFolder, rank: int) -> int | None:
    """The process that trains as this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            wanted = (f"NEMO_RUN_DIR={job.path}", f"RANK={rank}", "WORLD_SIZE=2")
            if all(entry.encode() in environment for entry in wanted):
                return int(folder.name)
    return None


def test_a_rank_that_dies_on_the_second_node_costs_one_interval(lab: Lab) -> None:
    with (lab.folder / "env.toml").open("a", encoding="utf-8") as file:
        file.write(ENV)
    words = (*SETTINGS, f"train.train_iters={STEPS}")
    job = lab.pretrain("pair", *words, "train.parallelism={fsdp_size: 2, ep_size: 2}")
    calm = lab.pretrain("calm", *words)
    until(lambda: len(losses(job)) >= 12, 150, lambda: log(job))
    killed = process_of(job, 1)
    assert killed is not None, log(job)
    os.kill(killed, signal.SIGKILL)
    for each in (job, calm):
        until(lambda each=each: each.state().state in TERMINAL, 200, lambda each=each: log(each))
        assert each.state().state == "succeeded", log(each)
    assert log(job).count("Sharded over 2 processes (fsdp_size 2, ep_size 2)") == 2
    assert "all ranks start again from their last checkpoint (restart 1 of 1)" in log(job)
    assert not any(entry.get("retry") for entry in job.history())  # in one allocation
    resumed = [line for line in log(job).splitlines() if "Resuming from" in line]
    assert len(resumed) == 1 and any(f"(step {step})" in resumed[0] for step in (10, 15)), resumed
    expected: Any = losses(calm)
    assert losses(job) == pytest.approx(expected, rel=1e-5) and len(expected) == STEPS
    newest = checkpoint.latest(job.path / "pretrain-tiny")
    assert newest is not None and len(list(newest.glob("shards/*.safetensors"))) == 2
