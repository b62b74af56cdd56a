"""A command's work, divided among the jobs of an array: what is planned, and what a cluster behind ssh would get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.cli import run_array
from nemotron_kit.cli.main import nemotron
from nemotron_kit.executors.slurm import client
from nemotron_kit.home import nemotron_home
from nemotron_kit.remote import ssh

ENV = """
[far]
executor = "slurm"
account = "a"
partition = "cpu"
tunnel = "ssh"
host = "login"
user = "me"
remote_job_dir = "/lustre/me"
nodes = 2
max_parallel = 3
"""


def test_an_array_behind_ssh_is_planned_without_a_connection(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "env.toml").write_text(ENV)
    made: list[Any] = []

    class Kept(run_array._Jobs):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)

    def connected(*_: Any) -> Any:
        raise AssertionError("a dry-run connects to nothing")

    def no_room(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_array, "_Jobs", Kept)
    monkeypatch.setattr(ssh, "transport_for", connected)
    words = ["nano3", "data", "prep", "pretrain", "-c", "tiny", "--batch", "far", "tasks=4", "output_dir=out"]
    assert nemotron([*words, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert any("6 jobs of one run" in line for line in shown["array"]), shown["array"]
    jobs = made[0]
    plans = [jobs.planned(number).plan for number in range(6)]
    folder = f"/lustre/me/runs/{plans[0].run_id}"
    assert [plan.config["step"] for plan in plans] == ["plan", *["shards"] * 4, "finish"]
    assert [plan.config["task"] for plan in plans[1:5]] == [0, 1, 2, 3]
    assert {plan.config["output_dir"] for plan in plans} == {f"{folder}/jobs/0/code/out"}
    assert not (home := nemotron_home() / "runs").exists()
    words = [*words, "--name", "base", "--tag", "kept"]
    assert nemotron([*words, "--dry-run", "--json"]) == 0
    jobs = made.pop()
    run = run_array._record(jobs, None, jobs.composed)
    assert (run.labels(), len(run.jobs())) == ({"name": "base", "tags": ["kept"], "note": None}, 6)
    jobs = made.pop()
    monkeypatch.setattr(run_array.SweepQueue, "add", no_room)
    with pytest.raises(OSError, match="No space left"):
        run_array._record(jobs, None, jobs.composed)
    assert [each.name for each in home.iterdir()] == [run.id]
    (call,) = client._calls(plans[1:5], 1000)
    lines = call.text.splitlines()
    assert "#SBATCH --array=0-3%3" in lines and "#SBATCH --nodes=1" in lines
    run = next(line for line in lines if line.startswith("srun "))
    assert f"{folder}/slurm/{call.intent}.json" in run and str(project) not in call.text
