"""The progress line of an attached terminal, on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import struct
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.executors.base import executor_for
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.attach import ProgressBar, attach
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.process_facts import process_facts
from nemotron_kit.spec.plan import stored_plan

from ...conftest import until

pytestmark = pytest.mark.usefixtures("home")

ARTIFACTS = '{"data": {"path": "/p", "type": "Blend", "name": "B:v1"}}\n'
STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A pseudo-terminal that this process prints to, and everything that was printed."""

    def __init__(self, columns: int = 70) -> None:
        self.ours, self.theirs = os.openpty()
        self.resize(columns)
        self.raw = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def _read(self) -> None:
        while True:
            try:
                self.raw += os.read(self.ours, 65536)
            except OSError:
                os.close(self.ours)
                return

    @property
    def text(self) -> str:
        return STYLE.sub("", self.raw.decode().replace("\r\n", "\n"))

    def screen(self) -> str:
        """What is left on the screen: each `erase` removes the line that it is in."""
        lines = [line.rpartition("\r\x1b[K")[2] for line in self.text.split("\n")]
        assert not any("\x1b" in line for line in lines)
        return "\n".join(lines)


def in_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Print to a terminal from now on. Not a fixture: pytest sets the streams anew after those."""
    terminal = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = os.fdopen(terminal.theirs, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return terminal


def running(jobs: int = 1, **plan: Any) -> RunFolder:
    values = {"recipe": "demo", "stage": "go", "executor": "local", "kind": "job", "mode": "run", **plan}
    run = create_run(new_run_id("demo", "go"), values, [{"config.yaml": "max_steps: 4\n"}] * jobs)
    for job in run.jobs():
        job.transition("running", process=process_facts())
        job.open_log().close()
    return run


def log(run: RunFolder, text: str) -> None:
    with run.job().open_log() as file:
        file.write(text.encode())


def step(run: RunFolder, number: int, folder: Path | None = None) -> None:
    with ((folder or run.job().path) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": number, "loss": 1 / number, "elapsed": number}) + "\n")


def followed(run: RunFolder, act: Any) -> str:
    """Attach to the run's first job while `act` plays the job in another thread; how the job ended."""
    failed: list[BaseException] = []

    def play() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)
        run.job().finish(0)

    thread = threading.Thread(target=play)
    thread.start()
    outcome = attach(run, executor_for(stored_plan(run).settings), [run.job()])
    thread.join()
    sys.stdout.flush()
    assert not failed
    return outcome.state


def test_a_bar_below_the_log_that_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, run = in_terminal(monkeypatch), running()

    def act() -> None:
        log(run, "before\n")
        assert until(lambda: "before\n" in terminal.text)
        assert "step" not in terminal.text
        step(run, 1)
        assert until(lambda: "━ step 1/4" in terminal.text or "─ step 1/4, loss 1" in terminal.text)
        log(run, "above\n10 %")
        assert until(lambda: "10 %" in terminal.text)
        step(run, 2)
        log(run, " and all\n")
        assert until(lambda: "step 2/4, 2s left, loss 0.5" in terminal.text)
        assert "10 % and all\n" in terminal.text  # nothing was drawn into the line
        terminal.resize(30)
        step(run, 3)
        assert until(lambda: "step 3/4, 1s left, loss 0.33…" in terminal.text)

    assert followed(run, act) == "succeeded"
    assert until(lambda: terminal.screen() == "before\nabove\n10 % and all\n")
    bars = [piece for line in terminal.text.split("\n") for piece in line.split("\r\x1b[K") if "step" in piece]
    assert max(map(len, bars)) <= 69
    assert len(bars[-1]) <= 29


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_bar_where_none_is_wanted(plain: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = in_terminal(monkeypatch)
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
    run = running()
    step(run, 1)

    kept = '{"a": {"path": "/p"}}\n{"broken": {"path": "type", "name"\n'
    assert followed(run, lambda: log(run, f"one\n[rank 0] {ARTIFACTS}two\n{kept}")) == "succeeded"
    assert until(lambda: terminal.text == f"one\ntwo\n{kept}")


def test_no_bar_in_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    run = running()
    step(run, 1)

    assert followed(run, lambda: log(run, f"one\n{ARTIFACTS}")) == "succeeded"
    assert capfd.readouterr() == (f"one\n{ARTIFACTS}", "")


def test_a_report_is_above_the_bar_and_many_jobs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, run = in_terminal(monkeypatch), running(jobs=3)
    run.job(1).finish(0)
    bar, backend = ProgressBar(run, run.jobs()), executor_for(stored_plan(run).settings)

    bar.update(backend.observe(run, run.jobs()))
    bar.report("unreachable")
    bar.update(backend.observe(run, run.jobs()))
    sys.stdout.flush()

    assert until(lambda: terminal.screen() == f"unreachable\n{'━' * 10}{'─' * 20} job 1/3")
    bar.erase()
    assert until(lambda: terminal.screen() == "unreachable\n")


def test_metrics_are_read_where_the_job_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the operation by which another machine reads them too."""
    target = tmp_path / "target"
    run = running(place={"run": str(target)})
    there = target / "jobs" / "0"
    shutil.copytree(run.job().path, there)
    step(run, 3, there)
    terminal = in_terminal(monkeypatch)
    bar = ProgressBar(run, run.jobs())

    bar.update(executor_for(stored_plan(run).settings).observe(run, run.jobs()))

    assert until(lambda: terminal.screen().endswith("step 3/4, loss 0.3333"))
