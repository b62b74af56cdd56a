"""The real recipe on a partition whose jobs are pushed out: it goes on by itself, and its curve is that of a run that
nobody disturbed, step by step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.remote.agent import slurm as slurm_agent
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import TERMINAL, JobFolder

from ..project import Project
from .follower import Follower
from .slurm_world import log, until

pytestmark = pytest.mark.timeout(600)  # the first one prepares the data
STEPS = 300
ENV = """
[calm]
executor = "slurm"
account = "research"
partition = "batch"
time = "00:10:00"

[pushed]
extends = "calm"
partition = "preempt"
"""
SAVED = "stopped with a checkpoint"
# What depends on how fast the machine was.
SPEED = ("tokens_per_second", "elapsed", "_timestamp")


class Lab(Project):
    """A folder with nano3's tiny data."""

    def __init__(self, folder: Path, slurm: Any) -> None:
        super().__init__(folder, {"env.toml": ENV}, **slurm.env)
        self.slurm = slurm

    def nemotron(self, *words: str) -> str:
        """Standard error of `nemotron WORDS`."""
        return self.forked("nemotron", *words).stderr

    def pretrain(self, profile: str, *words: str) -> JobFolder:
        more = (f"train.train_iters={STEPS}", "train.eval_interval=50", "logger.log_interval=1")
        said = self.nemotron("nano3", "pretrain", "-c", "tiny", *more, "--batch", profile, *words)
        found = re.search(r"(\S+) is submitted", said)
        assert found, said
        return RunFolder(self.home / "runs" / found[1]).job()

    def push_out(self, job: JobFolder, word: str = SAVED) -> None:
        """A job that goes first takes the node, and gives it back once this one's log has said `word` once more."""
        times = log(job).count(word)
        node = job.state().facts["scheduler"]["node"]
        words = ["-A", "research", "-p", "interactive", "-w", node, "--exclusive", "-o", "/dev/null"]
        urgent = self.slurm.run("sbatch", "--parsable", *words, "--wrap", "sleep 120").strip()
        try:
            until(lambda: log(job).count(word) > times, 60, lambda: log(job))
        finally:
            self.slurm.run("scancel", urgent)


@pytest.fixture(scope="module")
def lab(slurm: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    for module in ("nemo_run", "torch", "transformers"):
        pytest.importorskip(module)
    made = Lab(tmp_path_factory.mktemp("lab"), slurm)
    made.nemotron("nano3", "data", "prep", "pretrain", "-c", "tiny")
    yield made
    for run in (made.home / "runs").glob("2*"):
        for record in slurm_agent.read_all(run):
            slurm.run("scancel", f"--name={record.name}", check=False)


def rows(job: JobFolder) -> list[dict[str, Any]]:
    path = job.path / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curve(job: JobFolder) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in SPEED} for row in rows(job)]


def test_nano3_goes_on_where_it_was_pushed_out(lab: Lab, tmp_path: Path) -> None:
    job = lab.pretrain("pushed", "--run.exclude", "n2")
    calm = lab.pretrain("calm", "--run.exclude", "n1")
    watching = Follower(["attach", job.run_id], lab.env, lab.folder, tmp_path / "shown")
    for _ in range(2):
        done = len(rows(job))
        until(lambda more=done + 10: len(rows(job)) >= more, 90, lambda: log(job))
        lab.push_out(job)
    for each in (job, calm):
        until(lambda each=each: each.state().state in TERMINAL, 120, lambda each=each: log(each))
        assert each.state().state == "succeeded", log(each)
    assert watching.to_the_end().code == 0, watching.said()
    assert watching.out.read_text() == log(job)
    assert [row["step"] for row in rows(job) if "loss" in row] == list(range(1, STEPS + 1))
    assert curve(job) == curve(calm)
    assert model(job) == model(calm)
    # Those that the job wrote: attach may have seen it run before.
    assert sum(entry["state"] == "running" and "versions" in entry for entry in job.history()) == 3
    assert len(slurm_agent.read_all(job.path.parent.parent)) == 1
    assert log(job).count(SAVED) == 2


def model(job: JobFolder) -> bytes:
    (weights,) = job.path.glob(f"pretrain-tiny/model-*{STEPS}/*.safetensors")
    return weights.read_bytes()


def test_nano3_pushed_out_before_it_has_begun_comes_again(lab: Lab) -> None:
    """TERM ends it while it still imports: there is no checkpoint, and nothing to lose."""
    job = lab.pretrain("pushed", "train.train_iters=5", "--run.exclude", "n2")
    until(lambda: job.state().state == "running", 60)
    lab.push_out(job, "killed by SIGTERM")
    until(lambda: job.state().state in TERMINAL, 120, lambda: log(job))
    assert job.state().state == "succeeded", log(job)
    assert [row["step"] for row in rows(job) if "loss" in row] == list(range(1, 6))
