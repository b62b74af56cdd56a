"""Plain values → the typed object that a handler gets."""

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

import pytest

from nemotron_kit.config.convert import to_dataclass
from nemotron_kit.errors import UserError


class Colour(enum.Enum):
    red = 1
    blue = 2


@dataclass
class Inner:
    size: int = 1
    names: list[str] = field(default_factory=list)


@dataclass
class Config:
    path: Path
    count: int = 1
    rate: float = 0.5
    flag: bool = False
    maybe: int | None = None
    mode: Literal["a", "b", 3] = "a"
    colour: Colour = Colour.red
    inner: Inner = field(default_factory=Inner)
    inners: list[Inner] = field(default_factory=list)
    table: dict[str, float] = field(default_factory=dict)
    either: Union[int, str] = 0  # noqa: UP007
    pair: tuple[int, str] = (1, "x")
    free: dict[str, Any] = field(default_factory=dict)


def make(**values: Any) -> Config:
    return to_dataclass({"path": "/tmp/x", **values}, Config)


@pytest.mark.parametrize(
    ("field_name", "given", "expected"),
    [
        ("path", "a/b", Path("a/b")),
        ("count", "4", 4),
        ("rate", 1, 1.0),
        ("rate", "1e-3", 1e-3),
        ("flag", "true", True),
        ("flag", "no", False),
        ("maybe", None, None),
        ("maybe", 3, 3),
        ("mode", "b", "b"),
        ("mode", "3", 3),
        ("colour", "blue", Colour.blue),
        ("inner", {"size": 3}, Inner(size=3)),
        ("inners", [{"size": 2}, {"names": ["x"]}], [Inner(size=2), Inner(names=["x"])]),
        ("table", {"a": 1}, {"a": 1.0}),
        ("either", "text", "text"),
        ("either", 5, 5),
        ("pair", [2, "y"], (2, "y")),
        ("free", {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
    ],
)
def test_values_become_their_types(field_name: str, given: Any, expected: Any) -> None:
    value = getattr(make(**{field_name: given}), field_name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"count": "abc"}, "count: expected int, got 'abc'"),
        ({"count": None}, "count: expected int, got None"),
        ({"count": 1.5}, "count: expected int, got 1.5"),
        ({"inner": {"size": "x"}}, "inner.size: expected int, got 'x'"),
        ({"inner": 3}, "inner: expected a block of Inner's fields, got 3"),
        ({"inners": [{"size": []}]}, "inners[0].size: expected int, got []"),
        ({"mode": "c"}, "mode: expected one of 'a', 'b', 3, got 'c'"),
        ({"colour": "green"}, "colour: expected one of red, blue, got 'green'"),
        ({"pair": [1]}, "pair: expected tuple[int, str], got [1]"),
        ({"maybe": "x"}, "maybe: expected int | None, got 'x'"),
        ({"cuont": 1}, "cuont: no such field"),
        ({"inner": {"sizze": 1}}, "inner.sizze: no such field"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**given)
    assert text in str(caught.value)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(UserError, match="Did you mean count"):
        make(cuont=1)


def test_a_required_field_without_a_value() -> None:
    with pytest.raises(UserError, match="path: expected Path, got '\\?\\?\\?'"):
        to_dataclass({}, Config)


def test_added_keys_become_attributes() -> None:
    config = to_dataclass({"path": "x", "inner": {"new": 5}}, Config, extras={"inner.new"})
    assert config.inner.new == 5  # type: ignore[attr-defined]


def test_a_mistake_in_post_init_is_a_user_error() -> None:
    @dataclass
    class Strict:
        n: int = 1

        def __post_init__(self) -> None:
            if self.n < 0:
                raise ValueError("n must not be negative")

    with pytest.raises(UserError, match="n must not be negative"):
        to_dataclass({"n": -1}, Strict)
