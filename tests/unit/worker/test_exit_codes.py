"""What a handler returns or exits with, as an exit code: a failure never becomes 0."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit import log_metrics
from nemotron_kit.errors import NemotronError
from nemotron_kit.worker.process import exit_code, from_exit_code, noted, supervise
from nemotron_kit.worker.run import call_handler


class Stopped(NemotronError):
    exit_code = 75


def exits(code: Any) -> Any:
    raise SystemExit(code)


@pytest.mark.parametrize(
    ("asked", "code"),
    [(0, 0), (1, 1), (117, 117), (255, 255), (256, 1), (257, 1), (-1, 255), (-256, 1), (2**40, 1), (-(2**70), 1)],
)
def test_a_number_that_a_process_cannot_end_with(asked: int, code: int) -> None:
    assert exit_code(asked) == code
    for outcome in (call_handler(lambda _: asked, None), call_handler(exits, asked)):
        assert (outcome.code, outcome.state) == (code, "failed" if code else "succeeded")
        assert not code or str(asked) in str(outcome.error)


@pytest.mark.parametrize("value", [None, True, False, "text", 1.5])
def test_what_is_no_code_is_a_value(value: Any) -> None:
    outcome = call_handler(lambda _: value, None)
    assert (outcome.code, outcome.state, outcome.value) == (0, "succeeded", value)


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (False, 0), (True, 1), ("no", 1), ([], 1), (0.0, 1)])
def test_sys_exit_means_what_python_means_by_it(code: Any, expected: int) -> None:
    assert call_handler(exits, code).code == expected


class Unsaid(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (asyncio.CancelledError("z"), "CancelledError: z"),
        (GeneratorExit(), "GeneratorExit: "),
        (Unsaid(), "Unsaid: <its str() failed>"),
        (ValueError("\udcff"), "ValueError: \\udcff"),
        (SystemExit(Unsaid()), "<its str() failed>"),
    ],
)
def test_whatever_is_raised_is_the_jobs_failure(error: BaseException, text: str) -> None:
    def fail(_: Any) -> None:
        raise error

    outcome = call_handler(fail, None)
    assert (outcome.code, outcome.state, outcome.error) == (1, "failed", text)


def test_a_forked_child_that_comes_back_ends_with_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path))

    def fork(_: Any) -> int:
        child = os.fork()
        for step in range(2 if not child else 0):  # the first row is written at once
            log_metrics({"loss": 1.0}, step=step)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) + 1 if child else 5

    here = os.getpid()
    outcome = call_handler(fork, None)
    if os.getpid() != here:
        os._exit(9)  # the test's, too, is not the child's
    assert outcome.code == 6
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_one_that_has_saved_is_preempted() -> None:
    def stop(_: Any) -> None:
        raise Stopped("saved")

    for outcome in (call_handler(stop, None), call_handler(lambda _: 75, None), call_handler(exits, 75)):
        assert (outcome.code, outcome.state) == (75, "preempted")


def test_a_signal_without_a_name_ends_a_job_as_any_other() -> None:
    outcome = from_exit_code(-40)
    assert (outcome.state, outcome.error, outcome.recorded) == ("failed", "killed by signal 40 (exit code 168)", 168)


@pytest.mark.parametrize(
    ("slurm", "trap", "outcome"),
    [
        (False, "", ("cancelled", "terminated", 143)),
        (False, "trap 'exit 5' TERM", ("cancelled", "terminated", 5)),
        (False, "trap 'exit 0' TERM", ("succeeded", None, 0)),
        (True, "kill -TERM $PPID; exit 143", ("failed", "exit code 143", 143)),
    ],
    ids=["dies of it", "ends in order", "has done its work", "Slurm knows why"],
)
def test_a_job_in_a_container_that_term_stops_is_cancelled(slurm: bool, trap: str, outcome: tuple[Any, ...]) -> None:
    """As a job of this machine: `docker stop` is no failure of its program."""
    program = f"{trap}\nwhile true; do kill -TERM $PPID; sleep 0.05; done"
    with noted((signal.SIGTERM,), set()):  # one that comes before the worker expects it
        found = supervise(["sh", "-c", program], ".", set(), slurm=slurm)
    assert (found.state, found.error, found.recorded) == outcome
