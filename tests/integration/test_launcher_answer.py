"""What a job hands back: JSON alone, built-in exceptions rebuilt, everything else one error of the launcher's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.execution.hydra_launcher.answer import Answer, Failure, JobFailed, jsonable, read_answer, sendable
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.records import DamagedRecord


class Own(Exception):
    pass


class Scalar:
    """As NumPy and torch have them."""

    shape = ()

    def item(self) -> float:
        return 0.5


class Vector(Scalar):
    shape = (2,)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (None, None), (True, True), (3, 3), (0.5, 0.5), ("a", "a"), ([1, (2, 3)], [1, [2, 3]]),
        ({"a": {"b": [None]}}, {"a": {"b": [None]}}), (Scalar(), 0.5), (float("inf"), float("inf")),
    ],
)  # fmt: skip
def test_what_json_carries(value: Any, sent: Any) -> None:
    assert json.loads(json.dumps(jsonable(value))) == sent


def test_not_a_number_stays_one() -> None:
    assert math.isnan(json.loads(json.dumps(jsonable(float("nan")))))


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": object()}, b"bytes", Vector(), {1, 2}, Own("x")])
def test_what_json_does_not_carry_is_named(value: Any) -> None:
    sent, why = sendable(value)
    assert sent is None
    assert why is not None and "which JSON can't carry" in why


def test_an_endless_value_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert sendable(endless)[1] is not None


def raised(error: BaseException) -> Exception:
    """The error as the launch gets it: through JSON, in a folder."""
    try:
        raise error
    except BaseException as caught:
        return Failure(**json.loads(json.dumps(vars(Failure.of(caught))))).rebuild(7)


@pytest.mark.parametrize(
    "error", [ValueError("a", 1), KeyError("k"), RuntimeError(), FileNotFoundError(2, "no such file", "x"), TypeError()]
)
def test_a_built_in_exception_comes_back(error: Exception) -> None:
    again = raised(error)
    assert type(again) is type(error)
    assert again.args == error.args
    assert "In the job:" in again.__notes__[0]


@pytest.mark.parametrize(
    "error",
    [Own("text"), SystemExit(3), KeyboardInterrupt(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
     ValueError(object()), ExceptionGroup("many", [ValueError()])],
)  # fmt: skip
def test_any_other_is_the_launchers(error: BaseException) -> None:
    again = raised(error)
    assert isinstance(again, JobFailed)
    assert again.exit_code == 7
    assert type(error).__name__ in str(again)


def test_a_name_in_an_answer_is_never_looked_up_elsewhere(tmp_path: Path) -> None:
    for name in (
        "os.system",
        "builtins.eval",
        "builtins.print",
        "builtins.SystemExit",
        "nemotron_kit.errors.UserError",
    ):
        made = Failure(name, "text", [f"touch {tmp_path}/PWN"]).rebuild(1)
        assert isinstance(made, JobFailed)
    assert not list(tmp_path.iterdir())


def test_a_damaged_answer_is_named(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "0")
    job.path.mkdir()
    assert read_answer(job) is None
    Answer(value=3, failure=Failure("a.B", "t")).write(job.path)
    assert read_answer(job) == Answer(value=3, failure=Failure("a.B", "t"))
    for text in ('{"code": 0, "other": 1}', '{"failure": 3}', "[]", '{"code"'):
        (job.path / "answer.json").write_text(text)
        with pytest.raises(DamagedRecord, match=r"answer\.json"):
            read_answer(job)
