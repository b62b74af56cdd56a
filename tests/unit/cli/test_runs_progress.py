"""The progress of what runs, in `nemotron runs`, its `--json`, and `nemotron runs watch`."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from typing import Any

import pytest
from rich.console import Console

from nemotron_kit.cli.runs import list as listing
from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.process_facts import process_facts
from nemotron_kit.runs.progress import progress_of, steps_per_second

pytestmark = pytest.mark.usefixtures("home")

PLAN = {"recipe": "demo", "stage": "go", "executor": "local", "kind": "job", "place": {"run": "/r"}}
CONFIG = "train:\n  train_iters: 100\n"


def running(*rows: dict[str, Any], config: str = CONFIG, jobs: int = 1, age: float = 0) -> RunFolder:
    """A run in this process whose jobs have these rows of metrics, the last of which was written `age` seconds ago."""
    texts = {"config.yaml": config, "metrics.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows)}
    run = create_run(new_run_id("demo", "go"), PLAN, [texts] * jobs)
    for job in run.jobs():
        job.transition("running", process=process_facts())
        os.utime(job.path / "metrics.jsonl", (time.time() - age,) * 2)
    return run


def step(number: int, **values: Any) -> dict[str, Any]:
    return {"step": number, **values}


@pytest.mark.parametrize(
    ("rows", "config", "text"),
    [
        (
            [step(10, loss=3.0, elapsed=10.0), step(20, loss=2.5, elapsed=30.0)],
            CONFIG,
            "step 20/100, 2m40s left, loss 2.5",
        ),
        # Nothing tells how many, or how fast.
        ([step(20, loss=2.5, elapsed=30.0)], CONFIG, "step 20/100, loss 2.5"),
        ([step(20, acc=0.5), step(30, acc=0.5)], "a: ${b}\n", "step 30"),
        ([step(3)], "trainer: {max_steps: -1}\n", "step 3"),
        ([step(3)], "max_steps: 7\n", "step 3/7"),
        ([step(3)], "- no: {mapping\n", "step 3"),
        # An earlier attempt got further.
        (
            [step(50, elapsed=900.0), step(10, elapsed=10.0), step(20, elapsed=20.0), step(20, valid_loss=9)],
            CONFIG,
            "step 20/100, 1m20s left, loss 9",
        ),
        (
            [step(5, valid_loss=9.0, **{"train/loss": 1.0}), {"rank": 1, "step": 9, "loss": 7}],
            CONFIG,
            "step 5/100, loss 1",
        ),
        ([step(5, loss="NaN")], CONFIG, "step 5/100, loss nan"),
        ([step(1 << 70), step(2, elapsed=1e308), step(3, elapsed="NaN", loss=True)], CONFIG, "step 3/100"),
        ([{"shards": 3, "of": 8, "tokens": 5}], CONFIG, "shard 3/8"),
        ([], CONFIG, "None"),
    ],
)
def test_progress_is_read_from_the_last_rows_and_the_config(rows: list[dict[str, Any]], config: str, text: str) -> None:
    assert str(progress_of(running(*rows, config=config).summary())) == text


def test_time_left_counts_from_the_last_row_and_never_below_0() -> None:
    rows = (step(10, elapsed=10.0), step(90, elapsed=90.0))
    found = progress_of(running(*rows, age=6).summary())
    assert found is not None
    assert found.eta == pytest.approx(4, abs=1)
    found = progress_of(running(*rows, age=600).summary())
    assert found is not None
    assert found.eta == 0


def test_without_elapsed_the_speed_is_that_since_the_start_unless_the_job_was_resumed() -> None:
    run = running(step(1000), step(1050), config="max_steps: 1100\n", age=-50)
    found = progress_of(run.summary())
    assert found is not None
    assert found.eta == pytest.approx(50, abs=3)
    run.job().transition("pending", resumed=True)
    run.job().transition("running", process=process_facts())
    found = progress_of(run.summary())
    assert found is not None
    assert (found.done, found.of, found.eta) == (1050, 1100, None)


def test_without_elapsed_the_speed_is_by_the_times_of_the_rows_also_of_a_resumed_job() -> None:
    rows = [{"step": step, "_timestamp": 1e9 + seconds} for step, seconds in ((10, 0), (20, 10), (30, 20))]
    run = running(*rows, config="max_steps: 130\n")
    run.job().transition("pending", resumed=True)
    run.job().transition("running", process=process_facts())
    found = progress_of(run.summary())
    assert found is not None
    assert found.eta == pytest.approx(100, abs=3)
    # An hour of waiting between the attempts is no time of a step.
    later = [{"step": step, "_timestamp": 1e9 + 3620 + seconds} for step, seconds in ((31, 0), (41, 20))]
    assert steps_per_second([*rows, *later], 30) == pytest.approx(0.5)


def test_of_a_sweep_its_ended_jobs_are_counted() -> None:
    run = running(step(1), jobs=3)
    run.job(1).finish(0)
    assert str(progress_of(run.summary())) == "job 1/3"


def test_the_table_has_progress_only_while_something_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run = running(step(20, loss=2.5))
    run_tool("runs", [])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["RUN", "JOB", "STATE", "PROGRESS"]
    assert "step 20/100, loss 2.5" in row
    run_tool("runs", ["--json"])
    assert json.loads(capsys.readouterr().out)[0]["progress"] == {
        "unit": "step",
        "done": 20,
        "of": 100,
        "eta_s": None,
        "loss": 2.5,
    }
    run.job().finish(0)
    run_tool("runs", [])
    assert "PROGRESS" not in capsys.readouterr().out
    run_tool("runs", ["--json"])
    assert json.loads(capsys.readouterr().out)[0]["progress"] is None


def test_watch_prints_once_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    running(step(20, loss=2.5))
    assert run_tool("runs", ["watch", "--recipe", "demo"]) == 0
    out, err = capsys.readouterr()
    assert "step 20/100, loss 2.5" in out
    assert "no terminal" in err
    assert run_tool("runs", ["watch", "--recipe", "other"]) == 0
    assert capsys.readouterr().out == "No runs match.\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("filters", "end"), [([], "succeeded"), (["--state", "running"], "RUN")])
def test_watch_refreshes_until_nothing_runs(filters: list[str], end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, screen = running(step(20, loss=2.5)), Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")

    def sleep(seconds: float) -> None:
        assert seconds == listing._REFRESH_S
        run.job().finish(0)

    monkeypatch.setattr(time, "sleep", sleep)
    assert run_tool("runs", ["watch", *filters]) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert text.index("step 20/100, loss 2.5") < text.rindex(end)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back


@pytest.mark.parametrize("columns", [60, 80])
def test_watch_fits_a_narrow_terminal(columns: int) -> None:
    run = running(step(10, loss=3.0, elapsed=10.0), step(20, loss=2.5, elapsed=30.0))
    screen = io.StringIO()
    Console(file=screen, width=columns).print(listing._drawn([run.summary()], columns))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    assert ("too narrow for JOB, EXIT" in screen.getvalue()) == (columns == 60)
    words = " ".join(screen.getvalue().split())
    assert run.id in words
    assert all(text in words for text in ("step", "20/100,", "2m40s", "left,", "loss", "2.5"))


def test_ctrl_c_ends_watch_and_restores_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    running(step(20))
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):  # main exits with 130
        run_tool("runs", ["watch"])
    assert screen.getvalue().count("\x1b[?25h") == 1
