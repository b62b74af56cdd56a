"""A dataclass's annotations: resolved, and as they are shown to a person."""

from __future__ import annotations

import enum
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from nemotron_kit.errors import UserError


def type_hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a dataclass, postponed ones included."""
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise UserError(
            f"{cls.__module__}.{cls.__qualname__}: an annotation names {error.name!r}, not defined there."
        ) from error


def type_name(annotation: Any) -> str:
    """How an annotation is shown to a person: `int | None`, `list[str]`, `one of 'a', 'b'`."""
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(a) for a in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(annotation.__members__)
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join("None" if a is type(None) else type_name(a) for a in get_args(annotation))
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "")
