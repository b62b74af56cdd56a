"""A sweep's jobs are submitted batch by batch, whatever another process does meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, NotSent
from nemotron_kit.executors.base import Executor, ExecutorPlan, Observation, PlanContext
from nemotron_kit.home import new_run_id
from nemotron_kit.launch import submission
from nemotron_kit.launch.queue import LAUNCH_FILE, Busy, SweepQueue, to_text
from nemotron_kit.polling import Pace
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.spec.plan import Plan
from nemotron_kit.spec.runconfig import EXECUTORS


class OneAtATime(Executor):
    """Accepts one job at a time, and ends it before it is queried. `meanwhile` are called by the submissions after the
    first one, and may raise an error."""

    submitted: ClassVar[list[int]]
    meanwhile: ClassVar[list[Any]]

    def submit(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        if self.submitted and self.meanwhile:
            self.meanwhile.pop(0)(run)
        self.submitted.extend(plan.job for plan in plans)

    def observe_many(self, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]) -> dict[str, dict[int, Observation]]:
        return {
            run.id: {
                job.number: Observation("succeeded") if job.number in self.submitted else Observation("pending")
                for job in jobs
            }
            for run, jobs in runs
        }

    def capacity(self, running: int) -> int:
        return 1 - running

    def plan(self, context: PlanContext) -> ExecutorPlan:
        raise NotImplementedError

    def read_logs(self, job: JobFolder, offsets: Mapping[str, int], limit: int, **_: Any) -> list[Any]:
        raise NotImplementedError

    cancel = plan  # type: ignore[assignment]


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(OneAtATime, "submitted", [], raising=False)
    monkeypatch.setattr(OneAtATime, "meanwhile", [], raising=False)
    monkeypatch.setitem(EXECUTORS, "one", f"{__name__}:OneAtATime")
    monkeypatch.setattr(Pace, "wait", lambda _: None)
    plan = {"recipe": "r", "stage": "s", "executor": "one", "settings": {"executor": "one"}, "mode": "run"}
    made = create_run(new_run_id("r", "s"), plan, [{"config.yaml": ""}] * 3)
    for job in made.jobs():
        files.write_text(job.path / LAUNCH_FILE, to_text(Plan.from_dict(plan, made.path, job.number)))
    SweepQueue(made).add([0, 1, 2])
    return made


def followed(run: RunFolder) -> dict[int, str]:
    ended: dict[int, str] = {}

    def end(job: JobFolder) -> None:
        assert job.number not in ended, "once"
        ended[job.number] = job.state().state

    submission.submit_and_follow(run, run.jobs(), end)
    return ended


def test_a_submission_that_is_not_known_to_have_been_made_is_made_again(run: RunFolder) -> None:
    def lost(_: RunFolder) -> None:
        raise NotSent("no answer")

    OneAtATime.meanwhile[:] = [lost]
    assert followed(run) == dict.fromkeys((0, 1, 2), "succeeded")
    assert OneAtATime.submitted == [0, 1, 2] and run.job(2).state().code == 0


def test_what_another_process_has_submitted_is_followed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = submission.submit_waiting
    calls: list[int] = []

    def busy_once(run: RunFolder, *, running: int = 0) -> list[JobFolder]:
        calls.append(running)
        if len(calls) == 2:  # `runs resume` in another terminal
            submit(run)
            raise Busy("Another process is submitting")
        return submit(run, running=running)

    monkeypatch.setattr(submission, "submit_waiting", busy_once)
    assert followed(run) == dict.fromkeys((0, 1, 2), "succeeded")


def test_a_job_that_was_dropped_has_ended(run: RunFolder) -> None:
    ended: list[int] = []

    def end(job: JobFolder) -> None:
        if not ended:  # `runs cancel` in another terminal
            submission.drop_waiting(run, [run.job(2)])
        ended.append(job.number)

    submission.submit_and_follow(run, run.jobs(), end)
    assert sorted(ended) == [0, 1, 2] and run.job(2).state().state == "cancelled" and OneAtATime.submitted == [0, 1]


def test_a_record_that_is_damaged_on_the_target_stops_no_other_job(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged(_: Plan, jobs: Sequence[JobFolder]) -> None:
        if [job.number for job in jobs] == [1]:
            raise NemotronError("jobs/1/exit.json: not valid JSON.")

    monkeypatch.setattr(submission, "mirror", damaged)
    assert followed(run) == dict.fromkeys((0, 1, 2), "succeeded")
    assert "jobs/1/exit.json: not valid JSON." in caplog.text
