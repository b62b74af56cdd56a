"""Time limits, preemption and failures on the real Slurm: what runs again does so by itself, and what ended is told
apart."""

# ruff: noqa: F811
from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import Unreachable
from nemotron_kit.executors.base import executor_for
from nemotron_kit.launch.status import record
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.spec.plan import stored_plan

from .docker_world import tool
from .slurm_world import World, log, made_world, run_of, until, world  # noqa: F401


def look(job: JobFolder) -> str:
    """What an observer sees now, and puts on record."""
    run = run_of(job)
    try:
        seen = executor_for(stored_plan(run).settings).observe(run, [job])
    except Unreachable:
        return "unreachable"
    record([job], seen)
    return seen[job.number].state


def kill_rank(job: JobFolder, rank: int) -> None:
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = entry.read_bytes().split(b"\0")
            if f"NEMO_RUN_DIR={job.path}".encode() in variables and f"RANK={rank}".encode() in variables:
                os.kill(int(entry.parent.name), signal.SIGKILL)


def started(job: JobFolder) -> bool:
    return "from step" in log(job)


@dataclass(frozen=True)
class Slow:
    """Jobs that mostly wait, on a node of their own, while the other tests run on the other one."""

    world: World
    long: JobFolder
    over: JobFolder
    good: JobFolder
    bad: JobFolder


@pytest.fixture(scope="module")
def slow(slurm: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    with made_world(slurm, tmp_path_factory.mktemp("slow")) as made:
        there = ("--run.exclude", "n1")
        yield Slow(
            made,
            long=made.batch("step", "steps=900", *there, profile="short"),
            over=made.batch("deaf", "sleep=600", "run.env.time=00:01:00", *there),
            good=made.batch("stumble", "steps=3", *there, profile="retry"),
            bad=made.batch("stumble", "steps=9", *there, profile="retry"),
        )


@pytest.fixture(autouse=True)
def begun(slow: object) -> None:
    """They begin before the first test does."""


def test_a_preempted_job_goes_on_from_its_checkpoint(world: World) -> None:
    job = world.batch("step", "steps=150", "--run.exclude", "n2", profile="preempt")
    until(lambda: started(job), 60)
    node = job.state().facts["scheduler"]["node"]
    words = ["-A", "research", "-p", "interactive", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"]
    urgent = world.slurm.run("sbatch", "--parsable", *words).strip()
    try:
        until(lambda: "told ['SIGTERM" in log(job), 60)
        assert world.wait(job, timeout=120) == "succeeded"
    finally:
        world.slurm.run("scancel", urgent)
    assert log(job).count("from step") == 2 and "from step 0, restart 1" not in log(job)


def test_the_ranks_of_two_nodes_save_and_go_on(world: World) -> None:
    """Node 1 is done long before node 0 has saved; nobody is killed for that."""
    job = world.batch("step", "steps=60", "sleep=4", profile="two")
    until(lambda: "".join(path.read_text() for path in job.path.glob("logs/rank-*.log")).count("from step") == 4, 60)
    world.slurm.run("scancel", "--signal=USR1", world.slurm_ids(run_of(job))[0])
    assert world.wait(job, "pending", "failed", timeout=60) == "pending"
    assert world.wait(job, timeout=120) == "succeeded"
    for rank in range(4):
        text = (job.path / "logs" / f"rank-{rank}.log").read_text()
        assert text.count("from step") == 2 and text.count("at step") == 2
    assert "from step 0, restart 1" not in log(job)


def test_a_rank_that_dies_ends_the_job_of_two_nodes(world: World) -> None:
    job = world.batch("deaf", "sleep=120", profile="two")
    until(lambda: (job.path / "logs" / "rank-3.log").exists() and (job.path / "logs" / "rank-3.log").stat().st_size, 60)
    kill_rank(job, 3)
    with world.seen():
        until(lambda: look(job) == "failed", 60)
    assert "node n2" in str(job.state().error) or "SIGTERM" in str(job.state().error)


def test_torchrun_starts_its_ranks_again_where_it_may(world: World) -> None:
    """On one node; PET_MAX_RESTARTS is torchrun's own setting."""
    words = ["run.env.nproc_per_node=3", 'run.env.env_vars=["PET_MAX_RESTARTS=2"]']
    job = world.batch("allreduce", "code=2", *words)
    assert world.wait(job, timeout=120) == "succeeded"
    for rank in range(3):
        assert (job.path / "logs" / f"rank-{rank}.log").read_text().count(f"rank {rank} of 3: sum 3") == 2


def test_no_more_segments_than_the_profile_allows(world: World) -> None:
    job = world.batch("step", "steps=9000", "run.env.max_segments=1")
    until(lambda: started(job), 60)
    world.slurm.run("scancel", "--signal=USR1", world.slurm_ids(run_of(job))[0])
    assert world.wait(job, "failed", timeout=60) == "failed"
    assert "stopped with a checkpoint" in str(job.state().error)


def test_what_has_stopped_is_resumed_as_a_job_of_its_own(world: World) -> None:
    """Cancelled while it ran: another job of Slurm's, which has only the ranks' folder from the first one."""
    job = world.batch("step", "steps=60")
    until(lambda: started(job), 60)
    tool(world, "runs", "cancel", job.run_id)
    assert world.wait(job, timeout=60) == "cancelled"
    assert tool(world, "runs", "resume", job.run_id).returncode == 0
    ids = world.slurm_ids(run_of(job))
    assert len(set(ids)) == 2
    assert "is" in (refused := tool(world, "runs", "resume", job.run_id)).stderr and refused.returncode == 2
    assert tool(world, "runs", "wait", job.run_id).returncode == 0
    assert job.state().state == "succeeded"
    assert log(job).count("from step") == 2 and log(job).count("from step 0, restart 0") == 1
    assert [entry["state"] for entry in job.history()].count("cancelled") == 1
    assert "has succeeded" in tool(world, "runs", "resume", job.run_id).stderr


def test_a_controller_that_is_silent_when_a_job_wants_to_go_on(world: World) -> None:
    silent, asked = world.folder / "silent", world.folder / "asked"
    env = world.fake("squeue", f'[ -e {silent} ] && {{ echo >> {asked}; exit 1; }}; exec $REAL "$@"')
    job = world.batch("step", "steps=40", **env)
    until(lambda: started(job), 60)
    silent.touch()
    world.slurm.run("scancel", "--signal=USR1", world.slurm_ids(run_of(job))[0])
    assert world.wait(job, "pending", timeout=60) == "pending"
    until(lambda: asked.exists() and asked.stat().st_size >= 2, 60)  # it asks again and again, and hears nothing
    silent.unlink()
    assert world.wait(job, timeout=90) == "succeeded"
    assert log(job).count("from step") == 2


def test_a_job_that_is_cancelled_in_slurm_stays_cancelled(world: World) -> None:
    """It saves a checkpoint and asks to go on, as for a preemption; Slurm knows better."""
    job = world.batch("step", "steps=9000")
    until(lambda: started(job), 60)
    number = world.slurm_ids(run_of(job))[0]
    world.slurm.run("scancel", number)
    with world.seen():
        until(lambda: look(job) == "cancelled", 60)
    assert job.state().state == "cancelled"
    time.sleep(3)  # a requeue would be in the queue by then
    assert world.queue("-j", number) == []


def test_a_program_without_handlers_is_not_killed_by_the_warning(world: World) -> None:
    job = world.batch("deaf", "sleep=4")
    until(lambda: "sleeping" in log(job), 60)
    world.slurm.run("scancel", "--signal=USR1", world.slurm_ids(run_of(job))[0])
    assert world.wait(job) == "succeeded"


def test_a_failure_is_retried_as_often_as_the_profile_says(slow: Slow) -> None:
    world, good, bad = slow.world, slow.good, slow.bad
    assert world.wait(good, timeout=150) == "succeeded"
    assert log(good).count("try") >= 3
    assert world.wait(bad, "failed", timeout=60) == "failed"
    assert (bad.path / "tried").read_text() == "3"
    assert "exit code 7" in str(bad.state().error) and bad.state().code == 7


def test_a_job_that_needs_more_than_its_partition_allows_goes_on_by_itself(slow: Slow) -> None:
    """The partition's limit is a minute, the profile asks for ten, the job needs about one and a half."""
    world, job = slow.world, slow.long
    run_id = world.slurm_ids(run_of(job))[0]
    assert world.wait(job, timeout=280) == "succeeded"
    text = log(job)
    assert "told ['SIGUSR1" in text and text.rstrip().endswith("at step 900, told []")
    assert text.count("from step") >= 2
    assert world.slurm_ids(run_of(job)) == [run_id], "the segments are one job of Slurm's"
    assert [entry["state"] for entry in job.history()].count("preempted") == text.count("from step") - 1


def test_a_job_over_its_time_limit_says_so(slow: Slow) -> None:
    with slow.world.seen():
        until(lambda: look(slow.over) == "failed", 180)
    state = slow.over.state()
    assert "time limit" in str(state.error) and state.code == 128 + signal.SIGTERM


def test_a_lost_node_sends_the_job_back_to_the_queue(world: World) -> None:
    """And one that must not be queued again has failed."""
    once = world.batch(
        "deaf", "sleep=300", "run.env.extra={additional_parameters:{requeue:false}}", "--run.exclude", "n1"
    )
    job = world.batch("step", "steps=100", "--run.exclude", "n1")
    until(lambda: started(job) and (once.path / "logs" / "job.log").exists(), 60)
    try:
        world.slurm.node("kill", "n2")
        with world.seen():
            until(lambda: look(job) == "pending", 90)
            until(lambda: look(once) == "failed", 60)
    finally:
        world.slurm.node("start", "n2")
    assert "node" in str(once.state().error) and once.state().code == 1
    assert world.wait(job, timeout=150) == "succeeded"
    assert log(job).count("from step") == 2
