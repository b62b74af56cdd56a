"""What a recipe's jobs refuse of another launcher's settings."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import create_run
from nemotron_kit.sweep.launcher import _begin
from nemotron_kit.sweep.recipe_task import RecipeTask, _end_if_stopped, refuse_several_tasks
from nemotron_kit.worker.process import Outcome


@pytest.mark.parametrize("settings", [{"nodes": 2}, {"tasks_per_node": 2}, {"nodes": 1, "tasks_per_node": 2}])
def test_several_copies_of_a_job_are_refused(settings: dict[str, Any]) -> None:
    """submitit would run the handler in each of its tasks, all of them with one record."""
    with pytest.raises(UserError, match="each job of a recipe 2 times") as refused:
        refuse_several_tasks(settings)
    assert "hydra/launcher=nemo_run" in str(refused.value.hint)


def test_one_process_per_job_is_what_every_launcher_may_start() -> None:
    for settings in ({}, {"nodes": 1, "tasks_per_node": 1}, {"nodes": None}):
        refuse_several_tasks(settings)


@pytest.mark.parametrize(
    ("code", "state", "raised"),
    [
        (130, "cancelled", KeyboardInterrupt),
        (130, "detached", KeyboardInterrupt),
        (143, "cancelled", SystemExit),
        (75, "preempted", SystemExit),
        (4, "cancelled", None),
        (143, "failed", None),
        (0, "succeeded", None),
    ],
)
def test_a_signal_to_the_launch_ends_the_sweep(code: int, state: str, raised: type[BaseException] | None) -> None:
    """Hydra's basic launcher would go on with the next job, also after `nemotron runs cancel`."""
    with pytest.raises(raised) if raised else nullcontext():
        _end_if_stopped(Outcome(code, state))


def test_a_sweep_that_starts_in_several_batches_has_all_of_its_jobs_after_the_last(home: Path) -> None:
    """With hydra.sweeper.max_batch_size a launch that is killed between two batches has not succeeded."""
    run = create_run(new_run_id("r", "s"), {"kind": "sweep"}, [], more_jobs=True)
    task, left = RecipeTask(run.path, []), []
    task.count = 2
    for number in (0, 1):
        run.add_job(number, {"config.yaml": ""})
        _begin(task, run, more=False)
        left.append((run.path / "unfinished").exists())
    assert left == [True, False]
