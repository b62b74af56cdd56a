"""Hydra's settings for sweeps say what to type when there is no sweep."""

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.cli import sweep
from nemotron_kit.cli.request import Job
from nemotron_kit.cli.run_job import asks_hydra, normalized
from nemotron_kit.discovery import Tree
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.process_facts import process_facts

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


def test_a_sweep_that_failed_between_two_jobs_is_on_record_as_failed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = create_run(new_run_id("demo", "train"), {"kind": "sweep", "launcher": process_facts()}, [], more_jobs=True)
    run.add_job(0, {"config.yaml": "a: 0\n"}, attached=True).finish(0)
    with pytest.raises(OSError, match="No space left"):
        sweep._failed(run, OSError(28, "No space left on device", "/h/jobs/1"), True, 2)
    printed = json.loads(capsys.readouterr().out)
    assert (printed["state"], printed["exit_code"], printed["jobs"]) == ("failed", 1, {"succeeded": 1})
    assert run.summary().error == printed["error"] == "/h/jobs/1: No space left on device"
    # Nor is a job running whose end the full disk could not record: its process ends now.
    run.add_job(1, {"config.yaml": "a: 1\n"}, attached=True).transition("running")
    with pytest.raises(NemotronError, match="1 of 2 jobs did not succeed"):
        sweep._failed(run, OSError(28, "No space left on device"), True, 2)
    assert json.loads(capsys.readouterr().out)["jobs"] == {"succeeded": 1, "failed": 1}
