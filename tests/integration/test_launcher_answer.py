"""What a job hands back: JSON alone, built-in exceptions rebuilt, everything else one error of the launcher's."""

from __future__ import annotations

import collections
import datetime
import enum
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemotron_kit.runs.job import DamagedRunRecord, JobFolder
from nemotron_kit.worker.result import Failure, JobFailed, TaskResult, decode_value, read_task_result, sendable


class Own(Exception):
    pass


class Scalar:
    """As a library has them that is neither NumPy nor torch."""

    shape = ()

    def item(self) -> float:
        return 0.5


class Vector(Scalar):
    shape = (2,)


class Level(enum.IntEnum):
    HIGH = 3


Pair = collections.namedtuple("Pair", "a b")

SAME = [
    None, True, False, 3, 0.5, "a", 10**30, [1, (2, 3)], {"a": {"b": [None]}}, {}, (), [], {"a/b": (1,), "~1": {2}},
    float("inf"), -float("inf"), 1 + 2j, b"\xff", Decimal("0.10"), Fraction(1, 3), Path("/a/b"), {1: "a", None: (2,)},
    {(1, 2): 3}, frozenset({1}), datetime.datetime(2026, 1, 2, 3, 4, 5, 6), datetime.date(2026, 1, 2),
    datetime.timedelta(days=-1, microseconds=7), [Decimal("NaN").is_nan()], Level.HIGH, Pair(1, 2),
    collections.OrderedDict(a=1), OmegaConf.create({"a": {"b": [1, "${x}"]}, "x": 2}), OmegaConf.create([1, 2]),
]  # fmt: skip


def through_json(value: Any) -> Any:
    """What a sweeper gets of it."""
    said = json.loads(json.dumps(sendable(value), allow_nan=False))
    return decode_value(said["value"], said.get("types", {}))


@pytest.mark.parametrize("value", SAME, ids=repr)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    again = through_json(value)
    assert again == value
    plain = {Level: int, Pair: tuple, collections.OrderedDict: dict}
    assert type(again) is plain.get(type(value), type(value))


def test_not_a_number_stays_one() -> None:
    assert math.isnan(through_json({"a": [float("nan")]})["a"][0])
    assert through_json(Scalar()) == 0.5


def test_what_people_read_is_plain() -> None:
    assert sendable({"a": (1, Decimal("0.5")), "b": 2}) == {
        "value": {"a": [1, "0.5"], "b": 2},
        "types": {"/a": "tuple", "/a/1": "Decimal"},
    }
    assert sendable({"a": [1]}) == {"value": {"a": [1]}}


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_numbers_of_arrays(library: str) -> None:
    module: Any = pytest.importorskip(library)
    make = module.array if library == "numpy" else module.tensor
    for data in (0.25, [1.5, float("nan")], [[1, 2], [3, 4]], [], True):
        for dtype in (
            module.float32,
            module.int64,
            module.float16,
            module.bool if library == "torch" else module.bool_,
        ):
            if "float" not in str(dtype) and isinstance(data, list) and any(part != part for part in data):
                continue
            value = make(data, dtype=dtype)
            again = through_json([value])[0]
            assert type(again) is type(value)
            assert again.dtype == value.dtype
            assert str(again) == str(value)
    if library == "numpy":
        for scalar in (module.float64(0.1), module.float32(0.1), module.int8(3), module.bool_(False)):
            assert (again := through_json(scalar)) == scalar and type(again) is type(scalar)
    else:
        assert through_json(make(0.1, dtype=module.bfloat16).requires_grad_()) == make(0.1, dtype=module.bfloat16)
        assert sendable(make(0.1, device="meta")).keys() == {"left_out"}


@pytest.mark.parametrize("value", [object(), {"a": object()}, Vector(), Own("x"), Own, lambda: 1, (i for i in ())])
def test_what_json_does_not_carry_is_named(value: Any) -> None:
    said = sendable(value)
    assert said.keys() == {"left_out"}
    assert "which JSON can't carry" in said["left_out"]


def test_an_endless_value_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "left_out" in sendable(endless)


@pytest.mark.parametrize(
    ("value", "types"),
    [("x", {"": "Decimal"}), ([1], {"": "numpy.array.object"}), (1, {"": "timedelta"}), ([], {"": "x"})],
)
def test_types_that_nobody_wrote(value: Any, types: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"can't be read|no type of numbers"):
        decode_value(value, types)


def raised(error: BaseException) -> Exception:
    """The error as the launch gets it: through JSON, in a folder."""
    try:
        raise error
    except BaseException as caught:
        return Failure(**json.loads(json.dumps(vars(Failure.of(caught))))).rebuild(7)


@pytest.mark.parametrize(
    "error", [ValueError("a", (1, b"2")), KeyError("k"), RuntimeError(), FileNotFoundError(2, "no such file", "x"),
              TypeError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")]
)  # fmt: skip
def test_a_built_in_exception_comes_back(error: Exception) -> None:
    again = raised(error)
    assert type(again) is type(error)
    assert again.args == error.args
    assert "In the job:" in again.__notes__[0]


@pytest.mark.parametrize(
    "error",
    [Own("text"), SystemExit(3), KeyboardInterrupt(), ValueError(object()), ExceptionGroup("many", [ValueError()])],
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
    assert read_task_result(job) is None
    TaskResult(value=3, failure=Failure("a.B", "t")).write(job.path)
    assert read_task_result(job) == TaskResult(value=3, failure=Failure("a.B", "t"))
    for text in ('{"code": 0, "other": 1}', '{"failure": 3}', "[]", '{"code"'):
        (job.path / "answer.json").write_text(text)
        with pytest.raises(DamagedRunRecord, match=r"answer\.json"):
            read_task_result(job)
