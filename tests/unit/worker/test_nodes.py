"""Which node a worker is on, and where nodes meet."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.executors.slurm import script
from nemotron_kit.runs.job import NODES, JobFolder
from nemotron_kit.worker import WORKER_KILLED, distributed, elastic
from nemotron_kit.worker.distributed import Node, first_host, this_node, with_others, write_end
from nemotron_kit.worker.process import Outcome

TWO = {
    "SLURM_JOB_ID": "1234567", "SLURM_NODEID": "1", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[01-02]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1", "SLURMD_NODENAME": "n02",
}  # fmt: skip


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("n1", "n1"), ("n[1-2]", "n1"), ("n[01-10,12]", "n01"), ("a,b", "a"), ("gpu-[7,9]-x", "gpu-7-x"),
        ("rack1-n[003]", "rack1-n003"), ("", ""), ("rack[2-3]n[01-04],x", "rack2n01"), ("a,b[1-2]", "a"),
    ],
)  # fmt: skip
def test_the_first_of_a_node_list(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


def test_a_node_of_two() -> None:
    node = this_node(TWO)
    assert (node.rank, node.count, node.head, node.name) == (1, 2, "10.0.0.1", "n02")
    assert node.log == "node-1" and not node.is_head
    assert this_node({**TWO, "SLURM_NODEID": "0"}).log == "job"


def test_jobs_that_can_run_at_once_do_not_meet() -> None:
    jobs = [
        this_node({**TWO, "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_JOB_ID": str(number)})
        for number in range(5000, 5400)
    ]
    assert len({node.port for node in jobs}) == len({node.rdzv_id for node in jobs}) == 400
    assert all(1024 < node.port < 32768 for node in jobs)


def test_a_task_of_an_array_says_which() -> None:
    node = this_node({**TWO, "SLURM_ARRAY_JOB_ID": "1234500", "SLURM_ARRAY_TASK_ID": "67"})
    assert node.job == node.rdzv_id == "1234500_67"
    assert node.port == this_node(TWO).port


def test_a_step_has_the_number_that_slurm_gives_it() -> None:
    assert this_node(TWO).step is None
    array = {**TWO, "SLURM_ARRAY_JOB_ID": "1234500", "SLURM_ARRAY_TASK_ID": "67", "SLURM_STEP_ID": "1"}
    assert this_node(array).step == "1234567.1"


def test_without_slurm_there_is_one_node() -> None:
    assert this_node({}) == Node()


@pytest.mark.parametrize(("signals", "left"), [([], set()), (["TERM"], {"TERM"})])
def test_a_node_that_fails_by_itself_is_no_preemption_of_the_first(
    tmp_path: Path, signals: list[str], left: set[str]
) -> None:
    """srun then sends TERM to the others; the scheduler sends it to all."""
    job, second = JobFolder(tmp_path), this_node(TWO)
    write_end(job, second, Outcome(1, "failed", "exit code 137", job_exit_code=137), set(signals))
    seen = {"TERM"}
    outcome = with_others(job, Node(count=2), Outcome(143, "failed", "exit code 143"), seen)
    assert (outcome.error, outcome.recorded) == ("node n02: exit code 137", 137)
    assert seen == left


@pytest.mark.parametrize(
    ("earlier", "own", "queued", "left", "again"),
    [
        ([], 0, 0, 2, True),  # the first failure, of what is no torchrun or was killed whole
        ([], 2, 0, 2, False),  # both were used in place
        ([], 1, 0, 2, True),
        ([1], 0, 0, 1, True),
        ([1], 1, 0, 1, False),
        ([], 0, 1, 1, True),
        ([1], 0, 1, 0, False),
    ],
)
def test_retries_are_those_in_place_and_those_of_the_queue_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: list[int], own: int, queued: int, left: int, again: bool
) -> None:
    job = JobFolder(tmp_path)
    job.transition("pending")
    for number, count in enumerate([*earlier, own]):
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        monkeypatch.setenv(elastic.NODES_FOLDER, str(job.path / NODES))
        for attempt in range(count):
            nodes = elastic._Nodes(SimpleNamespace(nnodes="1", node_rank=0), attempt)
            nodes.note_restarts(attempt + 1)
    for _ in range(queued):
        job.transition("pending", retry=True)
    spec: Any = SimpleNamespace(retries=2, nproc_per_node=2, ray=None, torchrun=True, module=None)
    command = distributed._command(job, spec, Node())
    assert [word for word in command if "max-restarts" in word] == ([f"--max-restarts={left}"] if left else [])
    outcome: Any = SimpleNamespace(state="failed")
    assert distributed._is_requeued(job, spec, outcome, set()) is again
    job.begin_again()
    assert distributed._is_requeued(job, spec, outcome, set())


@pytest.mark.parametrize(
    ("marker", "code", "state", "preempted", "requeued", "counted"),
    [
        ("killed", 137, "RUNNING", False, True, True),
        ("killed", 9, "RUNNING", False, True, True),
        ("told killed", 137, "RUNNING", False, True, True),  # of another node, and this one has saved
        ("killed", 137, "RUNNING", True, True, False),  # a preemption costs no retry
        ("killed", 137, "CANCELLED", False, False, False),
        ("killed", 1, "RUNNING", False, False, False),
        ("killed", 143, "RUNNING", False, False, False),
        ("killed", 143, "RUNNING", True, True, False),
        ("told killed", 75, "RUNNING", False, True, False),
        ("told", 137, "RUNNING", False, False, False),
        ("always", 137, "RUNNING", False, True, False),
        ("", 137, "RUNNING", False, False, False),
    ],
)
def test_a_script_requeues_the_job_of_a_worker_that_was_killed(
    tmp_path: Path, marker: str, code: int, state: str, preempted: bool, requeued: bool, counted: bool
) -> None:
    """`marker` is what the worker has left, `code` srun's; the next segment's worker is told by a variable."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {state}\n")
    shown = "PreemptTime=2026-11-30" if preempted else "PreemptTime=None"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n[ $1 = show ] && echo {shown} || echo $2 >{tmp_path}/asked\n")
    for name in ("squeue", "scontrol"):
        (tmp_path / name).chmod(0o755)
    begin = script._SETUP.format(marker=tmp_path / "again", killed=tmp_path / "killed", variable="KILLED")
    end = f'echo "${{KILLED:-}}" >{tmp_path}/seen\necho {marker} >{tmp_path}/again\nnemotron_end {code}'

    def segment(text: str) -> int:
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
        return subprocess.run(["bash", "-c", f"{begin}\n{text}"], env=env, capture_output=True, check=False).returncode

    assert segment(end) == code and (tmp_path / "asked").exists() is requeued
    assert (tmp_path / "killed").exists() is counted and not (tmp_path / "again").exists()
    segment(end)
    assert (tmp_path / "seen").read_text() == ("1\n" if counted else "\n")


def test_a_kill_is_counted_when_the_next_worker_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm").mkdir()
    job = JobFolder(tmp_path / "jobs/0")
    job.path.mkdir(parents=True)
    job.transition("pending")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    spec: Any = SimpleNamespace(retries=1)
    marker = distributed.requeue_marker(job)
    distributed._prepare_for_a_kill(job, spec)
    assert marker.read_text() == "killed" and distributed._retries(job) == 0
    monkeypatch.setenv(WORKER_KILLED, "1")
    distributed._prepare_for_a_kill(job, spec)
    assert not marker.exists() and distributed._retries(job) == 1 and WORKER_KILLED not in os.environ
    monkeypatch.setenv(WORKER_KILLED, "1")
    assert "all retries are used up (retries=1)" in str(distributed._prepare_for_a_kill(job, spec))
