"""Cancelling real processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemotron_kit.cli.runs.control import cancel
from nemotron_kit.errors import UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.cancel import cancel_jobs
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.process_facts import process_facts

from ...conftest import until

MakeRun = Callable[..., RunFolder]
Started = list[subprocess.Popen[bytes]]

# A job that starts a child and says when both are up; "stubborn" ones ignore TERM.
JOB = """
import signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def started() -> Iterator[Started]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def start(started: Started, *words: str, session: bool) -> tuple[subprocess.Popen[bytes], int]:
    process = subprocess.Popen([sys.executable, "-c", JOB, *words], stdout=subprocess.PIPE, start_new_session=session)
    started.append(process)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", 5, every=0.02)
    return True


def test_a_session_of_its_own_is_stopped_with_its_children(make_run: MakeRun, started: Started) -> None:
    process, child = start(started, session=True)
    job = make_run().job()
    job.transition("running", process=process_facts(process.pid))
    state = cancel_jobs([job])[0]
    assert (state.state, state.code) == ("cancelled", 128 + signal.SIGTERM)
    assert gone(process.pid) and gone(child)
    assert cancel_jobs([job])[0].state == "cancelled", "twice is once"


@pytest.mark.parametrize("session", [True, False])
def test_what_ignores_term_is_killed_after_the_grace(make_run: MakeRun, started: Started, session: bool) -> None:
    process, child = start(started, "stubborn", session=session)
    job = make_run().job()
    job.transition("running", process=process_facts(process.pid))
    state = cancel_jobs([job], grace=0.2)[0]
    assert (state.state, state.code) == ("cancelled", 128 + signal.SIGKILL)
    assert gone(process.pid) and gone(child)


def test_the_group_of_whoever_started_it_is_left_alone(make_run: MakeRun, started: Started) -> None:
    process, _ = start(started, session=False)  # in this test's own process group
    assert os.getpgid(process.pid) == os.getpgid(0)
    job = make_run().job()
    job.transition("running", process=process_facts(process.pid))
    assert cancel_jobs([job])[0].state == "cancelled"


def test_a_pid_that_is_another_process_now_is_not_touched(make_run: MakeRun, started: Started) -> None:
    process, _ = start(started, session=True)
    job = make_run().job()
    job.transition("running", process={**process_facts(process.pid), "started": 1})
    assert cancel_jobs([job])[0].state == "failed"
    assert process.poll() is None


def test_pending_finished_and_elsewhere(make_run: MakeRun) -> None:
    pending, done, elsewhere, queued = make_run().job(), make_run(codes=(0,)).job(), make_run().job(), make_run().job()
    assert cancel_jobs([pending])[0].state == "cancelled"
    assert cancel_jobs([done])[0].state == "succeeded"
    elsewhere.transition("running", process={**process_facts(), "host": "node-7"}, writer="node-7-12")
    with pytest.raises(UserError, match="runs on node-7"):
        cancel_jobs([pending, elsewhere])
    queued.transition("pending", scheduler={"slurm": 12})
    with pytest.raises(UserError, match="is no process of this machine"):
        cancel_jobs([queued])
    (pending.path / "exit.json").write_text("[]")
    with pytest.raises(UserError, match=r"can't be stopped: .*expected a JSON object, got list\.\Z"):
        cancel_jobs([pending])
    for pid in (0, -1, "x"):
        elsewhere.transition("running", process={**process_facts(), "pid": pid})
        with pytest.raises(UserError, match="can't be stopped"):
            cancel_jobs([pending, elsewhere])
    assert not elsewhere.cancel_requested and not queued.cancel_requested


def test_the_jobs_of_one_process_end_together(make_run: MakeRun, started: Started) -> None:
    process, _ = start(started, session=True)
    jobs = make_run(codes=(None, None, 0)).jobs()
    for job in jobs[:2]:
        job.transition("running", process=process_facts(process.pid))
    assert [state.state for state in cancel_jobs(jobs)] == ["cancelled", "cancelled", "succeeded"]


def test_cancelling_a_sweep_between_two_jobs_stops_its_launch(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its next job would run: the launch is no job's process now."""
    with subprocess.Popen(["sleep", "60"]) as launch:
        plan = {"kind": "sweep", "launcher": process_facts(launch.pid)}
        run = create_run(new_run_id("demo", "train"), plan, [], more_jobs=True)
        run.add_job(0, {"config.yaml": "a: 0\n"}).finish(0)
        assert cancel([run.id]) == 0 and launch.wait(10) == -signal.SIGTERM
    assert "failed: stopped by `nemotron runs cancel`" in capsys.readouterr().out
    assert cancel([run.id]) == 0 and "has ended already: failed" in capsys.readouterr().out
