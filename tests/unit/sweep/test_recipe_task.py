"""What a recipe's jobs refuse of another launcher's settings."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.sweep.recipe_task import _end_if_stopped, refuse_several_tasks
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
