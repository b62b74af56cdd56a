"""From a config to the typed object that a handler gets: dataclasses, Path, X | None, Literal, enums, lists, dicts."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections import abc
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from nemotron_kit.config.hints import Given, computed_fields, input_fields, same_values, type_hints, type_name
from nemotron_kit.errors import UserError, nearest, sentence

T = TypeVar("T")
SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset, abc.Sequence, abc.Iterable)
MAPPINGS: tuple[Any, ...] = (dict, abc.Mapping)


class Deferred(str):
    """A value that only the job can know (`${art:…}`, `???`): it fits every type, and a block with one is not built."""


class _Mismatch(Exception):
    """A value that does not fit; carries the dotted field, the value and the type that was expected."""

    def __init__(self, where: str, value: Any, expected: str) -> None:
        super().__init__(where)
        self.where, self.value, self.expected = where, value, expected


def to_dataclass(values: Any, cls: type[T], *, extras: abc.Container[str] = (), where: str = "") -> T:
    """`values` (a resolved mapping) as an instance of the dataclass `cls`.

    Unknown keys are refused, but for the dotted names in `extras` (what `+key=` added), which become attributes.
    Raises UserError naming the field, the value and the expected type.
    """
    try:
        return typing.cast(T, _dataclass(values, cls, where, extras))
    except _Mismatch as error:
        shown = repr(error.value)
        raise UserError(
            f"{error.where}: expected {error.expected}, got {shown[:200]}.",
            hint=f"Give it with {error.where}=VALUE or in the config file." if error.value == "???" else None,
        ) from None


def _dataclass(
    values: Any, cls: Any, where: str, extras: abc.Container[str], default: dataclasses.Field[Any] | None = None
) -> Any:
    if isinstance(values, cls):
        return values
    if not isinstance(values, abc.Mapping):
        raise _Mismatch(where or cls.__name__, values, f"a block of {cls.__name__}'s fields")
    hints = type_hints(cls)
    fields, computed = input_fields(cls), computed_fields(cls)
    known, added = {}, {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key in fields:
            known[str(key)] = _field(value, hints[key], name, extras, fields[key])
        elif key in computed:
            raise UserError(f"{name}: {cls.__name__} computes it itself, so it can't be given.", hint="Leave it out.")
        elif name in extras:
            added[str(key)] = value
        else:
            raise UserError(f"{name}: no such field.", hint=_hint(str(key), fields, name))
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in known:
            raise _Mismatch(f"{where}.{name}" if where else name, "???", type_name(hints[name]))
    if any(isinstance(value, Deferred) for value in known.values()):
        return Deferred(where)
    instance = _construct(cls, known, where, default)
    for name, value in added.items():
        object.__setattr__(instance, name, value)
    return instance


def _field(value: Any, annotation: Any, where: str, extras: abc.Container[str], field: dataclasses.Field[Any]) -> Any:
    """A field's value; a block whose default is an object knows that object."""
    origin, args = get_origin(annotation), [a for a in get_args(annotation) if a is not type(None)]
    block = args[0] if origin in (Union, types.UnionType) and len(args) == 1 else annotation
    if dataclasses.is_dataclass(block) and isinstance(value, abc.Mapping):
        return _dataclass(value, block, where, extras, field)
    return _value(value, annotation, where, extras)


def _construct(cls: Any, known: dict[str, Any], where: str, default: dataclasses.Field[Any] | None) -> Any:
    try:
        if default is not None and (hasattr(cls, "__post_init__") or cls.__subclasses__()):
            # An object that was made before anybody looked can't be built again from what it holds; and the default
            # may be of a subclass.
            given = Given()
            made = given.default(default, cls)
            if isinstance(made, cls):
                before = given.values(made)
                if same_values({name: before[name] for name in known}, known):
                    return made
                return type(made)(**{**before, **known})
        return cls(**known)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{where or cls.__name__}: {error}") from error


def _hint(key: str, fields: abc.Iterable[str], name: str) -> str:
    close = nearest(key, fields)
    return f"{sentence(close)} Add a new one with +{name}=…" if close else f"Add it with +{name}=…"


def _value(value: Any, annotation: Any, where: str, extras: abc.Container[str]) -> Any:
    if isinstance(value, Deferred):
        return value
    if isinstance(value, str) and value == "???":
        raise _Mismatch(where, value, type_name(annotation))
    if isinstance(value, str) and value == "...":  # copied from a document, where it stands for what the reader has
        raise UserError(f"{where}: '...' stands for a value.", hint=f"Give {where}'s real value in its place.")
    if annotation is Any or isinstance(annotation, TypeVar):
        return value
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _value(value, args[0], where, extras)
    if origin in (Union, types.UnionType):
        return _union(value, annotation, where, extras)
    if origin is Literal:
        return _literal(value, annotation, where)
    if dataclasses.is_dataclass(annotation):
        return _dataclass(value, annotation, where, extras)
    if origin in MAPPINGS or annotation in MAPPINGS:
        return _mapping(value, args, annotation, where, extras)
    if origin in SEQUENCES or annotation in SEQUENCES:
        return _sequence(value, origin or annotation, args, annotation, where, extras)
    return _scalar(value, annotation, where)


def _union(value: Any, annotation: Any, where: str, extras: abc.Container[str]) -> Any:
    members = get_args(annotation)
    if value is None:
        if type(None) in members:
            return None
        raise _Mismatch(where, value, type_name(annotation))
    members = tuple(m for m in members if m is not type(None))
    exact = [m for m in members if type(value) is m]
    for member in (*exact, *members):
        try:
            return _value(value, member, where, extras)
        except _Mismatch as error:
            # A block's own mistake says more than "expected A | None".
            if len(members) == 1 and error.where != where:
                raise
    raise _Mismatch(where, value, type_name(annotation))


def _literal(value: Any, annotation: Any, where: str) -> Any:
    for choice in get_args(annotation):
        if value == choice and type(value) is type(choice):
            return choice
    same_text = [c for c in get_args(annotation) if str(c) == str(value)]
    if same_text:
        return same_text[0]
    raise _Mismatch(where, value, type_name(annotation))


def _mapping(value: Any, args: tuple[Any, ...], annotation: Any, where: str, extras: abc.Container[str]) -> Any:
    if not isinstance(value, abc.Mapping):
        raise _Mismatch(where, value, type_name(annotation))
    key_type, item_type = args or (Any, Any)
    return {
        _value(key, key_type, f"{where} (key)", extras): _value(item, item_type, f"{where}.{key}", extras)
        for key, item in value.items()
    }


def _sequence(
    value: Any, origin: Any, args: tuple[Any, ...], annotation: Any, where: str, extras: abc.Container[str]
) -> Any:
    if not isinstance(value, abc.Sequence | abc.Set) or isinstance(value, str | bytes):
        raise _Mismatch(where, value, type_name(annotation))
    items = list(value)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(items) != len(args):
            raise _Mismatch(where, value, type_name(annotation))
        item_types = args
    else:
        item_types = (args[0] if args else Any,) * len(items)
    converted = [_value(v, t, f"{where}[{i}]", extras) for i, (v, t) in enumerate(zip(items, item_types, strict=True))]
    return converted if origin in (abc.Sequence, abc.Iterable) else origin(converted)


def _scalar(value: Any, annotation: Any, where: str) -> Any:
    """One value, by OmegaConf's own conversions, so that a script and a composed config agree on every one."""
    from omegaconf import BooleanNode, BytesNode, EnumNode, FloatNode, IntegerNode, PathNode, StringNode
    from omegaconf.errors import ValidationError

    nodes: dict[Any, Any] = {
        int: IntegerNode, float: FloatNode, bool: BooleanNode, str: StringNode, bytes: BytesNode, Path: PathNode,
    }  # fmt: skip
    if value is None or isinstance(value, abc.Mapping | list):
        raise _Mismatch(where, value, type_name(annotation))
    is_enum = isinstance(annotation, type) and issubclass(annotation, enum.Enum)
    try:
        if is_enum:
            return EnumNode(annotation, value=value)._value()
        if annotation in nodes:
            return nodes[annotation](value=value)._value()
        if isinstance(annotation, type) and isinstance(value, annotation):
            return value
        if isinstance(annotation, type) and issubclass(annotation, Path):
            return annotation(value)
    except (ValidationError, TypeError, ValueError):
        raise _Mismatch(where, value, type_name(annotation)) from None
    raise _Mismatch(where, value, type_name(annotation))
