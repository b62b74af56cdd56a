"""What a handler returns or exits with, as an exit code: a failure never becomes 0."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_kit.errors import NemotronError
from nemotron_kit.worker.process import exit_code, from_exit_code
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


def test_one_that_has_saved_is_preempted() -> None:
    def stop(_: Any) -> None:
        raise Stopped("saved")

    for outcome in (call_handler(stop, None), call_handler(lambda _: 75, None), call_handler(exits, 75)):
        assert (outcome.code, outcome.state) == (75, "preempted")


def test_a_signal_without_a_name_ends_a_job_as_any_other() -> None:
    outcome = from_exit_code(-40)
    assert (outcome.state, outcome.error, outcome.recorded) == ("failed", "killed by signal 40 (exit code 168)", 168)
