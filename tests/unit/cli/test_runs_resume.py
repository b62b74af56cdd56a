"""`nemotron runs resume` where there is nothing that it could submit; the rest runs on a real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_kit.cli.runs import main
from nemotron_kit.errors import UserError
from nemotron_kit.runs import create_run, new_run_id


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


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "--help"]) == 0
    assert "None is submitted twice" in " ".join(capsys.readouterr().out.split())
