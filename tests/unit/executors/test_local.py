"""Jobs of this machine, as far as no process is started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.errors import NemotronError
from nemotron_kit.executors.base import PlanContext, executor_for
from nemotron_kit.runs.folder import create_run
from nemotron_kit.spec.runconfig import RunConfig


def test_a_detached_job_is_run_by_the_profiles_python(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    local = executor_for(RunConfig(python="~/there/python"))
    run = create_run("20261130-000000-a-b-000000", {}, [{"config.yaml": ""}], starts_here=True)
    plan: Any = SimpleNamespace(job=0, environment={}, mode="batch", paths=local.paths(run.id, 0))
    with pytest.raises(NemotronError, match=f"python: {home}/there/python: No such file"):
        local.submit(run, [plan])
    state = run.job().state()
    assert (state.state, str(state.error).startswith("the worker did not start")) == ("failed", True)


@pytest.mark.parametrize(("mode", "single", "noted"), [("batch", False, True), ("batch", True, False)])
def test_a_sweep_has_the_launchs_python_and_says_so(home: Path, mode: str, single: bool, noted: bool) -> None:
    local = executor_for(RunConfig(python="/opt/python"))
    run_id = "20261130-000000-a-b-000000"
    context = PlanContext(local.resources(None), local.paths(run_id, 0), {}, run_id, 0, "a", mode, single=single)
    assert any("python: no effect on a sweep" in note for note in local.plan(context).notes) is noted
