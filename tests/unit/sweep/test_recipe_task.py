"""What a recipe's jobs refuse of another launcher's settings."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.sweep.recipe_task import refuse_several_tasks


@pytest.mark.parametrize("settings", [{"nodes": 2}, {"tasks_per_node": 2}, {"nodes": 1, "tasks_per_node": 2}])
def test_several_copies_of_a_job_are_refused(settings: dict[str, Any]) -> None:
    """submitit would run the handler in each of its tasks, all of them with one record."""
    with pytest.raises(UserError, match="each job of a recipe 2 times") as refused:
        refuse_several_tasks(settings)
    assert "hydra/launcher=nemo_run" in str(refused.value.hint)


def test_one_process_per_job_is_what_every_launcher_may_start() -> None:
    for settings in ({}, {"nodes": 1, "tasks_per_node": 1}, {"nodes": None}):
        refuse_several_tasks(settings)
