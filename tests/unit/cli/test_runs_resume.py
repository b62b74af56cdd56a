"""`nemotron runs resume` where there is nothing that it could submit; the rest runs on a real Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nemotron_kit.cli.runs import main
from nemotron_kit.errors import UserError
from nemotron_kit.execution.hydra_launcher.queue import SweepQueue
from nemotron_kit.execution.ledger import refresh
from nemotron_kit.runs import RunFolder, create_run, new_run_id
from nemotron_kit.runs.process import process_facts


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path))


def test_one_that_is_no_sweep() -> None:
    create_run(new_run_id("nano3", "pretrain"), {"executor": "slurm"}, [{}])
    with pytest.raises(UserError, match="no jobs that wait"):
        main(["resume", "latest"])


def test_a_sweep_whose_launch_died_while_it_planned() -> None:
    plan = {"kind": "sweep", "executor": "slurm", "command_line": "python app.py -m x=1,2"}
    create_run(new_run_id("app", ""), plan, [{}])
    with pytest.raises(UserError, match="before anything was submitted") as raised:
        main(["resume", "latest"])
    assert raised.value.hint == "Launch it again: python app.py -m x=1,2"


def test_jobs_that_a_dead_launch_never_listed_have_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["sleep", "60"]) as launch:
        plan = {"kind": "sweep", "executor": "slurm", "launcher": process_facts(launch.pid)}
        run = create_run(new_run_id("app", ""), plan, [{}, {}])
        SweepQueue(run).add([0])
        assert refreshed(run) == ["pending", "pending"], "it may still list them"
        launch.kill()
        launch.wait()
    assert refreshed(run) == ["pending", "failed"]
    assert main(["show", run.id, "--job", "1"]) == 0
    assert "its launch ended before it was submitted" in capsys.readouterr().out


def refreshed(run: RunFolder) -> list[str]:
    refresh([run])
    return [job.state().state for job in run.jobs()]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "--help"]) == 0
    assert "None is submitted twice" in " ".join(capsys.readouterr().out.split())
