"""Hydra's settings for sweeps say what to type when there is no sweep."""

from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.cli import sweep
from nemotron_kit.cli.request import Job
from nemotron_kit.cli.run_job import asks_hydra, normalized
from nemotron_kit.discovery import Tree
from nemotron_kit.errors import UserError

SWEEPS = ["hydra/launcher=nemo_run", "hydra/sweeper=optuna", "hydra.launcher.profile=C", "hydra.sweep.dir=/x"]


@pytest.mark.parametrize("override", SWEEPS)
def test_what_is_about_a_sweep_needs_one(override: str) -> None:
    with pytest.raises(UserError, match="has no effect on a single job") as error:
        normalized(Job("r", "go", overrides=(override,)))
    assert error.value.hint and "-m" in error.value.hint and "--run PROFILE" in error.value.hint
    for flags in (("--multirun",), ("--cfg=hydra",), ("--info=all",)):
        assert normalized(Job("r", "go", overrides=(override,), flags=flags)).overrides == (override,)
    assert normalized(Job("r", "go", overrides=(override, "hydra.mode=MULTIRUN"))).multirun


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job("r", "go", flags=("--multirun", "--cfg=job")), "--multirun and --cfg exclude each other"),
        (Job("r", "go", flags=("--info=all",), json=True), "--info does not print JSON"),
        (Job("r", "go", flags=("--resolve",)), "--resolve is an option of --cfg"),
    ],
)
def test_options_that_would_have_no_effect(job: Job, message: str) -> None:
    with pytest.raises(UserError, match=message):
        asks_hydra(job)


def test_a_sweep_interrupted_before_its_first_job_leaves_no_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(task: Any, _: object) -> None:
        (task.folder / "jobs" / "0").mkdir()  # as Hydra does for its log
        seen.append(task.folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_hydra_main", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep._sweep(Job("r", "go", flags=("--multirun",)), [], ["nemotron"], Tree(), None)
    assert seen and not seen[0].exists()


def test_a_sweep_of_no_jobs_leaves_no_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a range that is empty: Hydra's sweepers launch none, without a word."""
    monkeypatch.setattr(sweep, "_hydra_main", lambda *_: None)
    with pytest.raises(UserError, match="has no jobs"):
        sweep._sweep(Job("r", "go", flags=("--multirun",)), [], ["nemotron"], Tree(), None)
    assert not list((home / "runs").iterdir())
