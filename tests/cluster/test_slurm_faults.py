"""What goes wrong between a launch and Slurm, injected where it hurts: one job each time, and nothing taken for known
that isn't."""

# ruff: noqa: F811
from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import Unreachable, UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.remote.agent import slurm
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.spec.plan import stored_plan

from .slurm_world import World, run_of, until, world  # noqa: F401

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster"


def only_submission(run: RunFolder) -> slurm.Submission:
    (found,) = slurm.read_all(run.path)
    return found


def controller(world: World) -> int:
    """Its process id: a test before may have had it started anew."""
    answer = subprocess.run([SCRIPT, "status", "--json"], capture_output=True, text=True, check=False)
    world.slurm.facts["pids"].update(json.loads(answer.stdout)["parts"]["slurm"]["pids"])
    return int(world.slurm.facts["pids"]["slurmctld"])


def restart(world: World) -> None:
    subprocess.run([SCRIPT, "up", "slurm"], check=True, capture_output=True)
    controller(world)


def stop_worker(run: RunFolder) -> None:
    """The worker and what it started are killed: nobody writes a record."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes()
            if str(run.job().path).encode() in words and b"srun" not in words:
                os.kill(int(entry.parent.name), signal.SIGKILL)


def test_a_reply_that_is_lost(world: World) -> None:
    """The controller stops as sbatch asks: sbatch says "timed out", and the job is queued all the same."""
    pid = controller(world)
    run, plans = world.planned("speak", "lines=1")
    env = world.fake("sbatch", f'kill -STOP {pid}; exec $REAL "$@"')
    try:
        with world.seen(**env), pytest.raises(Unreachable, match="isn't known whether the job was submitted"):
            executor_for(plans[0].settings).submit(run, plans)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert only_submission(run).job is None
    with world.seen():
        until(lambda: _answers(world), 60)
        executor_for(plans[0].settings).submit(run, plans)
        assert only_submission(run).job is not None
        assert world.wait(run.job()) == "succeeded"
    assert world.jobs_named(only_submission(run).name) == 1


def test_a_launch_whose_reply_is_lost_says_so_and_finds_its_job_later(world: World) -> None:
    pid = controller(world)
    env = world.fake("sbatch", f'kill -STOP {pid}; exec $REAL "$@"')
    try:
        done = world.run("speak", "lines=1", "--batch", "C", timeout=280, **env)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.returncode == 3, done.stderr
    assert "isn't known whether the job was submitted" in done.stderr
    run = world.only_run()
    with world.seen():
        until(lambda: _answers(world), 60)
        until(lambda: executor_for(stored_plan(run).settings).observe(run, run.jobs())[0].state == "succeeded", 60)
    assert world.jobs_named(only_submission(run).name) == 1


def test_a_controller_that_dies_as_sbatch_asks(world: World) -> None:
    run, plans = world.planned("speak", "lines=1")
    env = world.fake("sbatch", f'kill -9 {controller(world)}; exec $REAL "$@"')
    try:
        with world.seen(**env), pytest.raises(Unreachable, match="isn't known whether"):
            executor_for(plans[0].settings).submit(run, plans)
        assert only_submission(run).job is None
    finally:
        restart(world)
    with world.seen():
        executor_for(plans[0].settings).submit(run, plans)
        assert world.wait(run.job()) == "succeeded"
    assert world.jobs_named(only_submission(run).name) == 1


def test_a_controller_that_is_dead_before_anything_was_asked(world: World) -> None:
    os.kill(controller(world), signal.SIGKILL)
    try:
        done = world.run("speak", "lines=1", "--batch", "C")
    finally:
        restart(world)
    assert done.returncode == 3
    assert "Nothing was submitted" in done.stderr
    run = world.only_run()
    assert run.job().state().state == "failed" and slurm.read_all(run.path) == []


@pytest.mark.parametrize(
    "script",
    [
        "kill -9 $PPID; exit 1",
        'kill -9 $PPID; sleep 3; exec $REAL "$@"',
        '$REAL "$@"; kill -9 $PPID',
    ],
    ids=["before sbatch", "sbatch goes on by itself", "after sbatch"],
)
def test_a_launch_that_is_killed_and_submitted_again(world: World, script: str) -> None:
    run, plans = world.planned("speak", "lines=1")
    with world.seen(**world.fake("sbatch", script)):
        child = os.fork()
        if child == 0:  # no test goes on in here
            try:
                executor_for(plans[0].settings).submit(run, plans)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with world.seen():
        executor_for(plans[0].settings).submit(run, plans)
        assert world.wait(run.job()) == "succeeded"
    time.sleep(1)  # a second submission would be in the queue by then
    assert world.jobs_named(only_submission(run).name) == 1


def test_two_launches_of_the_same_at_once(world: World) -> None:
    run, plans = world.planned("speak", "lines=1")
    with world.seen(**world.fake("sbatch", 'sleep 0.5; exec $REAL "$@"')):
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                try:
                    executor_for(plans[0].settings).submit(run, plans)
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert world.wait(run.job()) == "succeeded"
    assert world.jobs_named(only_submission(run).name) == 1


@pytest.mark.parametrize(
    "script",
    [
        'echo "Welcome to the cluster!"; echo 4711 is your lucky number; exec $REAL "$@"',
        '$REAL "$@"; echo "Thank you for flying with us."',
        'echo Welcome; $REAL "$@"; code=$?; echo "Bye, job submitted"; exit $code',
    ],
    ids=["before", "after", "around"],
)
def test_a_banner_around_the_answer(world: World, script: str) -> None:
    job = world.batch("speak", "lines=1", **world.fake("sbatch", script))
    assert world.wait(job) == "succeeded"
    submission = only_submission(run_of(job))
    assert job.state().facts["scheduler"]["job"] == submission.job
    assert world.jobs_named(submission.name) == 1


def test_an_answer_from_one_of_many_clusters(world: World) -> None:
    run, plans = world.planned("speak", "lines=1")
    with world.seen(**world.fake("sbatch", '$REAL "$@" | sed "s/$/;nk/"')):
        executor_for(plans[0].settings).submit(run, plans)
    assert only_submission(run).cluster == "nk"
    assert world.wait(run.job()) == "succeeded"


def test_a_job_that_squeue_has_forgotten(world: World) -> None:
    run, plans = world.planned("deaf", "sleep=60")
    with world.seen():
        executor_for(plans[0].settings).submit(run, plans)
        until(lambda: run.job().state().state == "running", 60)
        stop_worker(run)
        until(lambda: not world.queue("-j", world.slurm_ids(run)[0]), 60)
    with world.seen(**world.fake("squeue", "exit 0")):
        seen = until(lambda: _ended(run), 60)
    assert seen.state == "failed" and seen.code
    assert "Slurm reports FAILED" in str(seen.error)


def test_squeue_and_sacct_silent_for_long(world: World) -> None:
    """An attached launch neither fails nor succeeds nor cancels: it goes on looking, and in the end knows."""
    env = world.fake(
        "sacct", f'[ -e {world.folder}/silent ] && {{ echo "sacct: error: down" >&2; exit 1; }}; exec $REAL "$@"'
    )
    world.fake("squeue", f'[ -e {world.folder}/silent ] && exit 1; exec $REAL "$@"')
    world.fake("scancel", f'touch {world.folder}/cancelled; exec $REAL "$@"')
    process = world.start("python", "work.py", "deaf", "sleep=60", "--run", "C", env=env)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("sleeping")
    (world.folder / "silent").touch()
    stop_worker(world.only_run())
    told = ""
    for told in process.stderr:
        if "unreachable, still trying" in told:
            break
    assert process.poll() is None
    with world.seen(**env), pytest.raises(Unreachable):
        executor_for(stored_plan(world.only_run()).settings).observe(world.only_run(), world.only_run().jobs())
    (world.folder / "silent").unlink()
    assert process.wait(60) == 1
    assert "unreachable, still trying" in told and "Slurm reports FAILED" in process.stderr.read()
    assert not (world.folder / "cancelled").exists()


def test_what_accounting_says_of_a_job_without_a_record(world: World) -> None:
    run, plans = world.planned("speak", "lines=1")
    with world.seen():
        executor_for(plans[0].settings).submit(run, plans)
        assert world.wait(run.job()) == "succeeded"
    (run.job().path / "exit.json").unlink()
    number = world.slurm_ids(run)[0]
    world.fake("squeue", "exit 0")
    for state, codes, wanted, code, why in (
        ("TIMEOUT", "0:0|0:0", "failed", 143, "time limit"),
        ("OUT_OF_MEMORY", "0:125|0:125", "failed", 137, "out of memory"),
        ("NODE_FAIL", "0:0|0:0", "failed", 1, "node"),
        ("PREEMPTED", "0:15|0:0", "failed", 143, "preempted"),
        ("CANCELLED by 1000", "0:0|0:0", "cancelled", 143, "cancelled"),
        ("COMPLETED", "0:0|0:0", "succeeded", 0, "None"),
        ("FAILED", "3:0|0:0", "failed", 3, "exit code 3"),
        ("FAILED", "9:0|0:9", "failed", 137, "exit code 137"),
    ):
        env = world.fake("sacct", f"echo '{number}|{state}|2026-01-01T00:00:00|name|{codes}'")
        with world.seen(**env):
            seen = executor_for(plans[0].settings).observe(run, run.jobs())[0]
        assert (seen.state, seen.code) == (wanted, code)
        assert why in str(seen.error)


def test_a_job_that_both_have_forgotten_is_unknown(world: World) -> None:
    run, plans = world.planned("speak", "lines=1")
    with world.seen():
        executor_for(plans[0].settings).submit(run, plans)
        assert world.wait(run.job()) == "succeeded"
    (run.job().path / "exit.json").unlink()
    submission = only_submission(run)
    slurm.write(run.path, slurm.Submission(**{**vars(submission), "at": submission.at - 3600}))
    world.fake("sacct", "exit 0")
    with world.seen(**world.fake("squeue", "exit 0")):
        assert executor_for(plans[0].settings).observe(run, run.jobs())[0].state == "unknown"


def test_what_slurm_refuses_is_not_asked_for_again(world: World) -> None:
    run, plans = world.planned("speak", "run.env.account=nobody")
    with world.seen(), pytest.raises(UserError, match="Invalid account"):
        executor_for(plans[0].settings).submit(run, plans)
    assert world.jobs_named(only_submission(run).name) == 0


def test_no_slurm_at_all_is_said(world: World) -> None:
    python = Path(sys.executable)
    done = world.run("speak", "--batch", "C", PATH=str(python.parent))
    assert done.returncode != 0
    assert "Slurm's commands are not installed" in done.stderr


def _answers(world: World) -> bool:
    return bool(world.slurm.run("sinfo", "-h", check=False))


def _ended(run: RunFolder) -> Any:
    seen = executor_for(stored_plan(run).settings).observe(run, run.jobs())[0]
    return seen if seen.state in ("failed", "succeeded", "cancelled") else None
