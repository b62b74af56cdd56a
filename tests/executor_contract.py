"""What every executor does, whatever it runs jobs on: one suite, for which a test module gives the fixture `target`."""

from __future__ import annotations

from typing import NamedTuple

from nemotron_kit.executors.base import Executor, Observation, executor_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import TERMINAL

from .cluster.slurm_world import World
from .conftest import until

MUCH = 1 << 20


class Target(NamedTuple):
    """Where jobs of slurm_world's recipe are launched, and the profile that says on what."""

    world: World
    profile: str


def seen(executor: Executor, run: RunFolder, *states: str) -> Observation:
    """Job 0 of the run once it is in one of these states; in any end, if none is named."""
    wanted = states or tuple(TERMINAL)
    found: list[Observation] = []

    def look() -> bool:
        found.append(executor.observe(run, run.jobs())[0])
        return found[-1].state in wanted

    until(look, 60)
    return found[-1]


class ExecutorContract:
    """Subclass it where there is a `target`."""

    def test_a_job_is_prepared_and_submitted_as_often_as_asked_and_runs_once(self, target: Target) -> None:
        run, plans = target.world.planned("speak", "lines=3", "code=5", profile=target.profile)
        assert plans[0].problems == ()
        with target.world.seen():
            executor = executor_for(plans[0].settings)
            for _ in range(2):
                executor.prepare(run, plans)
            for _ in range(2):
                executor.submit(run, plans)
            end = seen(executor, run)
            assert (end.state, end.code) == ("failed", 5)
            executor.submit(run, plans)
            assert executor.observe(run, run.jobs())[0].state == "failed"
            job = run.job()
            whole = b"".join(piece.data for piece in executor.read_logs(job, {"job": 0}, MUCH, only=True))
            assert whole.count(b"line 0 of rank") == 1 and b"last words" in whole
            at = whole.index(b"line 1")
            (piece,) = executor.read_logs(job, {"job": at}, 7, only=True)
            assert (piece.name, piece.offset, piece.data) == ("job", at, whole[at : at + 7])
            assert executor.read_logs(job, {"job": len(whole)}, MUCH, only=True) == []

    def test_one_job_is_cancelled_and_many_runs_are_asked_about_at_once(self, target: Target) -> None:
        world, profile = target
        (run, plans), (other, others) = (world.planned("deaf", "sleep=300", profile=profile) for _ in range(2))
        with world.seen():
            executor = executor_for(plans[0].settings)
            assert executor.capacity(0) is None or executor.capacity(0)
            executor.submit(run, plans)
            executor.submit(other, others)
            seen(executor, run, "running")
            executor.cancel(run, run.jobs())
            assert seen(executor, run).state == "cancelled"
            found = executor.observe_many([(run, run.jobs()), (other, other.jobs())])
            assert found[run.id][0].state == "cancelled" and found[other.id][0].state in ("pending", "running")
            executor.cancel(other, other.jobs())
            assert seen(executor, other).state == "cancelled"
