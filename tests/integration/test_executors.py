"""The executors that need nothing but this machine: ours, and one of another package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.executors.base import executor_class, executor_for
from nemotron_kit.spec.runconfig import EXECUTORS, ProfileError, RunConfig, check_value

from ..cluster.slurm_world import World
from ..executor_contract import ExecutorContract, Target

MINE = '''
import os
import signal
import subprocess

from nemotron_kit.executors.base import Executor, ExecutorPlan, Observation
from nemotron_kit.polling import polls
from nemotron_kit.remote.agent import operations


class Mine(Executor):
    """Each job in a session of its own. A file that only one process can make says that it was started."""

    def plan(self, context):
        return ExecutorPlan(notes=(f"mine: {context.label}",), resources=context.resources)

    def submit(self, run, plans):
        self.prepare(run, plans)
        for plan in plans:
            job = run.job(plan.job)
            try:
                started = (job.path / "started").open("x")
            except FileExistsError:
                continue
            with job.open_log("worker") as log, started:
                given = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
                worker = subprocess.Popen(plan.launch_command, **given)
                started.write(str(worker.pid))
            for _ in polls(0.02, within=30):  # until then it would die of TERM without a word
                if job.state().state != "pending" or worker.poll() is not None:
                    break

    def observe_many(self, runs):
        states = {run.id: {job.number: job.state() for job in jobs} for run, jobs in runs}
        return {run: {n: Observation(s.state, s.code, s.error) for n, s in of.items()} for run, of in states.items()}

    def cancel(self, run, jobs):
        for job in jobs:
            job.request_cancel()
            os.killpg(int((job.path / "started").read_text()), signal.SIGTERM)

    def read_logs(self, job, offsets, limit, *, only=False, skip=()):
        given = {"job": str(job.path), "offsets": dict(offsets), "limit": limit, "only": only, "skip": skip}
        return operations.pieces(*operations.read(**given))


class Half(Executor):
    def plan(self, context):
        return ExecutorPlan()


NONE = object()
'''
POINTS = "[nemotron_kit.executors]\nmine = mine:Mine\nhalf = mine:Half\nnone = mine:NONE\ngone = nowhere:Gone\n"
ENV = '[here]\nexecutor = "local"\n[mine]\nexecutor = "mine"\nmem = "1G"\n'


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world where a distribution with an executor is installed."""
    site = tmp_path / "site"
    (site / "mine-1.0.dist-info").mkdir(parents=True)
    (site / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (site / "mine-1.0.dist-info" / "entry_points.txt").write_text(POINTS)
    (site / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return World(tmp_path, ENV, SimpleNamespace(env={}), PYTHONPATH=str(site))


class TestHere(ExecutorContract):
    @pytest.fixture(params=["here", "mine"])
    def target(self, world: World, request: pytest.FixtureRequest) -> Target:
        return Target(world, request.param)


def test_an_executor_of_another_package_is_used_as_ours_are(world: World) -> None:
    done = world.run("speak", "lines=2", "code=3", "--run", "mine")
    assert done.returncode == 1 and done.stdout.count("line 1 of rank") == 1, done.stderr
    assert "note: mine: work-speak" in done.stderr
    assert "note: mem: no effect on a job with executor 'mine'." in done.stderr
    job = world.batch("deaf", "sleep=300", profile="mine")
    assert world.wait(job, "running", timeout=60) == "running"
    assert f"{job.run_id}: cancelled" in world("nemotron", "runs", "cancel", job.run_id).stdout
    assert job.state().state == "cancelled"


def test_what_is_no_executor_is_refused_by_name(world: World) -> None:
    with pytest.raises(ProfileError, match=r"executor: 'yours' is none of local, .*, mine, half, none, gone"):
        check_value("executor", "yours", "executor")
    for name, says in {
        "half": r"'half': mine:Half lacks cancel, observe_many, submit\.",
        "none": r"'none': mine:NONE is no subclass of nemotron_kit.executors.base.Executor\.",
        "gone": r"'gone' \(nowhere:Gone\) can't be loaded: No module named 'nowhere'\.",
        "yours": r"'yours' is not known\.",
    }.items():
        with pytest.raises(UserError, match=says):
            executor_class(name)


@pytest.mark.parametrize("name", EXECUTORS)
def test_choosing_an_executor_imports_its_own_module_alone(name: str) -> None:
    text = f"""
import sys
from nemotron_kit.executors.base import executor_class
executor_class({name!r})
print(*(m for m in sys.modules if m.startswith("nemotron_kit.executors.") or m in ("nemo_run", "hydra", "torch")))
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    own = EXECUTORS[name].partition(":")[0].removeprefix("nemotron_kit.executors.").partition(".")[0]
    found = {m.removeprefix("nemotron_kit.executors.").partition(".")[0] for m in done.stdout.split()}
    assert found - {"base", "nemo_run"} == {own} and ("nemo_run" in found) <= (name != "local")
    assert "nemo_run" not in done.stdout.split()


def test_a_cloud_says_that_submitting_is_refused() -> None:
    with pytest.raises(UserError, match="submitting to skypilot has not been tested in this version, so it is refused"):
        executor_for(RunConfig(executor="skypilot")).submit(None, [])  # type: ignore[arg-type]
