"""When a job of a sweep on this machine has ended."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.sweep.local_scheduler import LocalScheduler


class Killed:
    """A starter whose workers were killed."""

    def start(self, jobs: Sequence[JobFolder]) -> None:
        for job in jobs:
            job.transition("running")
            job.record_child(os.getpid())

    def alive(self, job: JobFolder) -> bool:
        del job
        return False


@pytest.mark.parametrize(("code", "state"), [(0, "succeeded"), (7, "failed"), (None, "failed")])
def test_a_program_that_outlives_its_worker_is_waited_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, state: str
) -> None:
    run, output = create_run("20261130-000000-a-b-000000", {}, [{"config.yaml": ""}], starts_here=True), io.StringIO()
    scheduler = LocalScheduler(run, Killed(), output)
    scheduler.take({"jobs": [0], "parallel": 1})
    scheduler.turn()
    answers = iter([True, False])  # the worker is gone, its program is not
    monkeypatch.setattr("nemotron_kit.runs.job.is_gone", lambda _: next(answers))
    assert not scheduler.turn() and scheduler.busy and output.getvalue() == ""
    if code is not None:
        run.job().record_child_end(code)
    monkeypatch.setattr("nemotron_kit.runs.job.is_gone", lambda _: True)
    assert scheduler.turn() and not scheduler.busy and json.loads(output.getvalue()) == {"ended": 0}
    record = run.job().exit_record() or {}
    assert (record["state"], record["code"]) == (state, 1 if code is None else code)
