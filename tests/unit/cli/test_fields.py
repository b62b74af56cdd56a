"""A dataclass as rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import pytest

from nemotron_kit.cli.indexing import rows, text
from nemotron_kit.errors import UserError


@dataclass
class Inner:
    size: int
    name: str = "x"


@dataclass
class Outer:
    inner: Inner = field(default_factory=lambda: Inner(size=3))
    maybe: Inner | None = None


@dataclass
class Recursive:
    child: Recursive | None = None


def _row(annotation: Any, default: Any = dataclasses.MISSING) -> dict[str, Any]:
    (row,) = rows(dataclasses.make_dataclass("C", [("f", annotation, field(default=default))]))
    return row


@pytest.mark.parametrize(
    ("annotation", "kind", "shown"),
    [
        (bool, "bool", "bool"),
        (int, "int", "int"),
        (Optional[int], "int", "int|null"),  # noqa: UP045
        (Annotated[int | None, "note"], "int", "int|null"),
        (Path, "path", "path"),
        (Literal["a", "b"], "literal", "a|b"),
        (Literal[1, "b"], "any", "1|b"),
        (list[int], "list", "[int, …]"),
        (Sequence[Path | None], "list", "[path, …]"),
        (tuple, "list", "[any, …]"),
        (dict[str, int], "dict", "{…}"),
        (Union[int, str], "any", "int|str"),  # noqa: UP007
        (Any, "any", "any"),
    ],
)
def test_kinds(annotation: Any, kind: str, shown: str) -> None:
    row = _row(annotation)
    assert (row["kind"], row["type"], row["required"]) == (kind, shown, True)


def test_nested_fields_are_dotted_and_take_the_blocks_own_defaults() -> None:
    found = {row["name"]: row for row in rows(Outer)}
    assert list(found) == ["inner.size", "inner.name", "maybe.size", "maybe.name"]
    assert found["inner.size"]["default"] == "3"
    assert found["maybe.size"]["required"]


def test_a_block_in_itself_ends() -> None:
    assert rows(Recursive) == [{"name": "child", "kind": "dict", "type": "{…}|null", "default": "null"}]


def test_metadata_is_carried() -> None:
    cls = dataclasses.make_dataclass(
        "C", [("f", int, field(default=1, metadata={"help": "What it is", "short": "-s", "positional": True, "x": 1}))]
    )
    assert rows(cls)[0] == {
        "name": "f", "kind": "int", "type": "int", "default": "1", "help": "What it is",
        "short": "-s", "positional": True,
    }  # fmt: skip


def test_missing_is_required() -> None:
    assert _row(str, "???")["required"]


def test_a_short_option_of_nemotrons_own_is_refused() -> None:
    cls = dataclasses.make_dataclass("C", [("f", int, field(default=1, metadata={"short": "-c"}))])
    with pytest.raises(UserError, match="the short option -c is an option of nemotron"):
        rows(cls)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (1e-3, "0.001"),
        ([1, "a"], "[1, a]"),
        ({"a": None}, "{a: null}"),
        (Path("x"), "x"),
    ],
)
def test_defaults_as_in_a_config(value: object, shown: str) -> None:
    assert text(value) == shown
