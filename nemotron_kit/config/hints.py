"""What a dataclass takes: its fields with their annotations, resolved and as shown to a person, and its defaults as
they were given, before a `__post_init__` changed them."""

from __future__ import annotations

import copy
import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from nemotron_kit.errors import UserError


def type_hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a dataclass, postponed ones included."""
    try:
        hints = typing.get_type_hints(cls)
        return {name: hint.type if isinstance(hint, dataclasses.InitVar) else hint for name, hint in hints.items()}
    except NameError as error:
        raise UserError(
            f"{cls.__module__}.{cls.__qualname__}: an annotation names {error.name!r}, not defined there."
        ) from error


def input_fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """What the constructor of a dataclass takes, by name: no field with `init=False`, which the class itself computes;
    its InitVars too."""
    own = {field.name for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls) if own < set(cls.__dataclass_fields__) else {}
    return {
        name: field
        for name, field in cls.__dataclass_fields__.items()
        if (field.init if name in own else isinstance(hints[name], dataclasses.InitVar))
    }


def computed_fields(cls: Any) -> set[str]:
    """The fields with `init=False`: the class computes them, so they are no input."""
    return {field.name for field in dataclasses.fields(cls) if not field.init}


class Given:
    """The defaults of dataclass fields, and what each object among them was constructed with: a `__post_init__` may
    have changed it since, and would change it again when the object is built anew from those values."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, dict[str, Any]]] = {}  # the object itself is kept, so that its id is its own

    def default(self, field: dataclasses.Field[Any], annotation: Any) -> Any:
        """The field's default, made anew; MISSING without one."""
        if field.default_factory is dataclasses.MISSING:
            return field.default
        with self._watching(set(_dataclasses_in(annotation))):
            return field.default_factory()

    def values(self, instance: Any) -> dict[str, Any]:
        """What the constructor of a dataclass object was given; what it holds, where that was not seen."""
        seen = self._found.get(id(instance), (None, {}))[1]
        return {
            name: seen.get(name, getattr(instance, name, dataclasses.MISSING)) for name in input_fields(type(instance))
        }

    @contextmanager
    def _watching(self, classes: set[Any]) -> Iterator[None]:
        before = {cls: vars(cls)["__post_init__"] for cls in classes if "__post_init__" in vars(cls)}
        for cls, original in before.items():
            cls.__post_init__ = self._noting(original)
        try:
            yield
        finally:
            for cls, original in before.items():
                cls.__post_init__ = original

    def _noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def note(instance: Any, *init_vars: Any) -> Any:
            if id(instance) not in self._found:  # a base's, called by super(), comes later
                own = {field.name: field for field in dataclasses.fields(instance)}
                given = {name: getattr(instance, name) for name, field in own.items() if field.init}
                pseudo = [name for name in input_fields(type(instance)) if name not in own]
                given |= dict(zip(pseudo, init_vars, strict=False))
                copied = {n: copy.copy(v) if isinstance(v, list | dict | set) else v for n, v in given.items()}
                self._found[id(instance)] = (instance, copied)
            return original(instance, *init_vars)

        return note


def _dataclasses_in(annotation: Any) -> Iterator[Any]:
    """Every dataclass that an annotation names, with its bases, its subclasses, and those in its own fields."""
    seen: set[Any] = set()
    todo = [annotation]
    while todo:
        current = todo.pop()
        todo += get_args(current)
        if not (isinstance(current, type) and dataclasses.is_dataclass(current)) or current in seen:
            continue
        seen.add(current)
        yield from current.__mro__[:-1]
        todo += current.__subclasses__()
        todo += type_hints(current).values()


def same_values(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two constructors were given the same; values that can't be compared (arrays) are not the same."""
    try:
        return bool(one == other)
    except (ValueError, TypeError):
        return False


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


def type_at(cls: Any, parts: Iterable[str | int]) -> Any:
    """The annotation of what lies at `parts` below a dataclass; None where the dataclasses don't say."""
    current = cls
    for part in parts:
        current = _inside(current, str(part))
    return current


def means_text(cls: Any, parts: Iterable[str | int]) -> bool:
    """Whether what lies at `parts` below a dataclass is a text, or is chosen by one (a path, an enum, a Literal)."""
    annotation = type_at(cls, parts)
    if get_origin(annotation) is typing.Annotated:
        annotation = get_args(annotation)[0]
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    kinds = [each for each in members if each is not type(None)]
    return bool(kinds) and all(map(_is_text, kinds))


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, str | Path | enum.Enum)


def _inside(annotation: Any, part: str) -> Any:
    """The type of one field, value or item of a type; None where that can't be told."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, typing.Annotated):
        members = [each for each in args[: 1 if origin is typing.Annotated else None] if each is not type(None)]
        return _inside(members[0], part) if len(members) == 1 else None
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return type_hints(annotation).get(part)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return args[1] if len(args) == 2 else None
    if isinstance(origin, type) and issubclass(origin, Sequence) and part.isdigit():
        of_each = len(args) > 1 and args[-1] is not Ellipsis
        return (args[int(part)] if int(part) < len(args) else None) if of_each else args[0]
    return None
