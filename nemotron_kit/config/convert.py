"""Converts config values to typed dataclasses, by the type hints of their fields."""

from __future__ import annotations

import copy
import dataclasses
import enum
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from nemotron_kit.errors import UserError, near


@cache
def type_hints(cls: type) -> Mapping[str, Any]:
    """The resolved annotations of a dataclass, postponed ones included: each is compiled, so they are kept."""
    try:
        hints = typing.get_type_hints(cls)
        return types.MappingProxyType({name: _bare(hint) for name, hint in hints.items()})
    except NameError as error:
        raise UserError(
            f"{cls.__module__}.{cls.__qualname__}: an annotation names {error.name!r}, not defined there."
        ) from error


def _bare(hint: Any) -> Any:
    """An annotation without `InitVar`, `Final` and `NewType`, which say nothing about the values."""
    if isinstance(hint, dataclasses.InitVar):
        return _bare(hint.type)
    if isinstance(hint, typing.NewType):
        return _bare(hint.__supertype__)
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Final:
        return _bare(args[0])
    if origin in (Literal, typing.Annotated) or (not isinstance(origin, type) and origin is not Union):
        return hint
    inner = tuple(map(_bare, args))
    if inner == args:
        return hint
    if not isinstance(origin, type) or origin is types.UnionType:
        return Union[inner]  # noqa: UP007
    return types.GenericAlias(origin, inner)


def input_fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """What the constructor of a dataclass takes, by name: its fields without those of `init=False`, and its
    InitVars."""
    declared = {field.name for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls) if declared < set(cls.__dataclass_fields__) else {}
    return {
        name: field
        for name, field in cls.__dataclass_fields__.items()
        if (field.init if name in declared else isinstance(hints[name], dataclasses.InitVar))
    }


def fields_below(
    cls: Any, prefix: str = "", above: tuple[type, ...] = ()
) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """(dotted name, field) of each field of a dataclass and of the blocks in it, except in a block inside of itself."""
    hints, inside = type_hints(cls), (*above, cls)
    for name, field in input_fields(cls).items():
        yield f"{prefix}{name}", field
        block = hints[name]
        if isinstance(block, type) and dataclasses.is_dataclass(block) and block not in inside:
            yield from fields_below(block, f"{prefix}{name}.", inside)


class RecordedDefaults:
    """The defaults of dataclass fields, with the constructor arguments of each dataclass object among them.

    An object is rebuilt from its arguments and not from its attributes, which a `__post_init__` may have changed.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, dict[str, Any]]] = {}  # the object is kept, so that its id is not reused

    def default(self, field: dataclasses.Field[Any], annotation: Any) -> Any:
        """The field's default, made anew; MISSING without one."""
        if field.default_factory is dataclasses.MISSING:
            return field.default
        classes = set(_dataclasses_in(annotation))
        before = {cls: vars(cls)["__post_init__"] for cls in classes if "__post_init__" in vars(cls)}
        for cls, original in before.items():
            cls.__post_init__ = self._noting(original)
        try:
            return field.default_factory()
        finally:
            for cls, original in before.items():
                cls.__post_init__ = original

    def values(self, instance: Any) -> dict[str, Any]:
        """The constructor arguments of a dataclass object; its attributes, if the call was not recorded."""
        recorded = self._found.get(id(instance), (None, {}))[1]
        return {
            name: recorded.get(name, getattr(instance, name, dataclasses.MISSING))
            for name in input_fields(type(instance))
        }

    def _noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A `__post_init__` that records the arguments of the object, then calls `original`."""

        def note(instance: Any, *init_vars: Any) -> Any:
            if id(instance) not in self._found:  # a base's, called by super(), comes later
                declared = {field.name: field for field in dataclasses.fields(instance)}
                given = {name: getattr(instance, name) for name, field in declared.items() if field.init}
                pseudo = [name for name in input_fields(type(instance)) if name not in declared]
                given |= dict(zip(pseudo, init_vars, strict=False))
                copied = {n: copy.copy(v) if isinstance(v, list | dict | set) else v for n, v in given.items()}
                self._found[id(instance)] = (instance, copied)
            return original(instance, *init_vars)

        return note


def _dataclasses_in(annotation: Any) -> Iterator[Any]:
    """Every dataclass that an annotation names, with its bases, its subclasses, and those in its fields."""
    visited: set[Any] = set()
    todo = [annotation]
    while todo:
        current = todo.pop()
        todo += get_args(current)
        if not (isinstance(current, type) and dataclasses.is_dataclass(current)) or current in visited:
            continue
        visited.add(current)
        yield from current.__mro__[:-1]
        todo += current.__subclasses__()
        todo += type_hints(current).values()


def type_name(annotation: Any) -> str:
    """An annotation as messages have it: `int | None`, `list[str]`, `one of 'a', 'b'`."""
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(a.name if isinstance(a, enum.Enum) else repr(a) for a in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(annotation.__members__)
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join("None" if a is type(None) else type_name(a) for a in get_args(annotation))
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    origin, args = get_origin(annotation), get_args(annotation)
    if args and (origin in MAPPINGS or origin in SEQUENCES):
        inner = ", ".join("..." if each is Ellipsis else type_name(each) for each in args)
        return f"{origin.__name__}[{inner}]"
    return str(annotation).replace("typing.", "")


def members_of(annotation: Any) -> list[Any]:
    """The types of a union without None; of any other annotation, itself."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [each for each in members if each is not type(None)]


def type_at(cls: Any, parts: Iterable[str | int]) -> Any:
    """The annotation of what lies at `parts` below a dataclass; None where it is not known."""
    current = cls
    for part in parts:
        current = type_inside(current, str(part))
    return current


def means_text(cls: Any, parts: Iterable[str | int]) -> bool:
    """Whether the value at `parts` below a dataclass is a text, or is chosen by one (a path, an enum, a Literal)."""
    annotation = type_at(cls, parts)
    if get_origin(annotation) is typing.Annotated:
        annotation = get_args(annotation)[0]
    kinds = members_of(annotation)
    for each in kinds:
        if get_origin(each) is Literal:
            is_text = all(isinstance(choice, str | enum.Enum) for choice in get_args(each))
        else:
            is_text = isinstance(each, type) and issubclass(each, str | Path | enum.Enum)
        if not is_text:
            return False
    return bool(kinds)


def type_inside(annotation: Any, part: str) -> Any:
    """The type of one field, value or item of a type; None where it is not known."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return type_inside(args[0], part)
    if origin in (Union, types.UnionType):
        members = members_of(annotation)
        return type_inside(members[0], part) if len(members) == 1 else None
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return type_hints(annotation).get(part)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return args[1] if len(args) == 2 else None
    if isinstance(origin, type) and issubclass(origin, Sequence | abc.Set | abc.Iterable) and args and part.isdigit():
        of_each = len(args) > 1 and args[-1] is not Ellipsis
        return (args[int(part)] if int(part) < len(args) else None) if of_each else args[0]
    return None


T = TypeVar("T")
SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset, abc.Sequence, abc.Iterable)
MAPPINGS: tuple[Any, ...] = (dict, abc.Mapping)


class Deferred(str):
    """A value that only the job can resolve (`${art:…}`, `???`): it fits every type, and a block with one is not
    constructed."""


class _Mismatch(Exception):
    """A value that does not fit; carries the dotted field, the value and the type that was expected."""

    def __init__(self, where: str, value: Any, expected: str) -> None:
        super().__init__(where)
        self.where, self.value, self.expected = where, value, expected


def to_dataclass(values: Any, cls: type[T], *, extras: abc.Container[str] = ()) -> T:
    """`values` (a resolved mapping) as an instance of the dataclass `cls`.

    Unknown keys are refused, but for the dotted names in `extras` (what `+key=` added) and those of a block whose field
    has `metadata={"open": True}`: they become attributes.
    Raises UserError naming the field, the value and the expected type.
    """
    try:
        return typing.cast(T, _dataclass(values, cls, "", extras))
    except _Mismatch as error:
        shown = repr(error.value)
        raise UserError(
            f"{error.where}: expected {error.expected}, got {shown[:200]}.",
            hint=f"Give it with {error.where}=VALUE or in the config file." if error.value == "???" else None,
        ) from None


def fits_type(value: Any, annotation: Any) -> bool:
    """Whether a value can become what an annotation names; an interpolation or a missing value can."""
    if isinstance(value, str) and ("${" in value or value == "???"):
        return True
    try:
        _value(value, annotation, "", ())
    except (_Mismatch, UserError):
        return False
    return True


def _dataclass(
    values: Any, cls: Any, where: str, extras: abc.Container[str] | None, default: dataclasses.Field[Any] | None = None
) -> Any:
    if isinstance(values, cls):
        return values
    if not isinstance(values, abc.Mapping):
        raise _Mismatch(where or cls.__name__, values, f"a block of {cls.__name__}'s fields")
    hints = type_hints(cls)
    fields = input_fields(cls)
    computed = {each.name for each in dataclasses.fields(cls) if not each.init}
    known, added = {}, {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key in fields:
            known[str(key)] = _field(value, hints[key], name, extras, fields[key])
        elif key in computed:
            raise UserError(f"{name}: {cls.__name__} computes it itself, so it can't be given.", hint="Leave it out.")
        elif (extras is not None and name in extras) or (default is not None and default.metadata.get("open")):
            added[str(key)] = value
        else:
            hint = near(str(key), fields)
            if extras is not None and "[" not in name:  # an override can add it
                hint = f"{hint} Add a new one with +{name}=…" if hint else f"Add it with +{name}=…"
            raise UserError(f"{name}: no such field.", hint=hint)
    made, before = None, dict[str, Any]()
    if default is not None and (hasattr(cls, "__post_init__") or cls.__subclasses__() or fields.keys() != known.keys()):
        # What is not given is as in the field's default, which may be of a subclass.
        recorded = RecordedDefaults()
        made = recorded.default(default, cls)
        found = recorded.values(made) if isinstance(made, cls) else {}
        before = {name: value for name, value in found.items() if value is not dataclasses.MISSING}
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in known and name not in before:
            raise _Mismatch(f"{where}.{name}" if where else name, "???", type_name(hints[name]))
    if any(isinstance(value, Deferred) for value in known.values()):
        return Deferred(where)
    instance = _construct(cls, known, where, made, before)
    for name, value in added.items():
        object.__setattr__(instance, name, value)
    return instance


def _field(
    value: Any, annotation: Any, where: str, extras: abc.Container[str] | None, field: dataclasses.Field[Any]
) -> Any:
    """A field's value; a block gets the field, for its default."""
    members = members_of(annotation) if isinstance(value, abc.Mapping) else []
    if len(members) == 1 and dataclasses.is_dataclass(members[0]):
        return _dataclass(value, members[0], where, extras, field)
    if len(members) > 1 and any(map(dataclasses.is_dataclass, members)):
        # Of several dataclasses that have these keys, the default's.
        made = type(RecordedDefaults().default(field, annotation))
        if made in members and dataclasses.is_dataclass(made):
            with suppress(_Mismatch, UserError):
                return _dataclass(value, made, where, None, field)
    return _value(value, annotation, where, extras)


def other_class_values(
    default: Mapping[str, Any], now: Mapping[str, Any], given: Mapping[str, Any], made: type, annotation: Any
) -> dict[str, Any] | None:
    """Of a block `now`, whose default is a `made`, what is kept where `given` chooses another dataclass of the union
    `annotation`: what differs from the values `default` of that default. None where `given` chooses no other class."""
    if fits_type(_merged(now, given), made):
        return None
    kept = {key: value for key, value in now.items() if key not in default or default[key] != value}
    chosen = _merged(kept, given)
    others = [each for each in get_args(annotation) if dataclasses.is_dataclass(each) and each is not made]
    return kept if any(fits_type(chosen, each) for each in others) else None


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        k: _merged(one[k], v) for k, v in other.items() if isinstance(v, Mapping) and isinstance(one.get(k), Mapping)
    }
    return {**one, **other, **both}


def _construct(cls: Any, known: dict[str, Any], where: str, made: Any, before: dict[str, Any]) -> Any:
    """An instance with the arguments `known`, and otherwise those of the field's default `made`, which are `before`;
    `made` itself, if `known` changes none of them."""
    with suppress(ValueError, TypeError):  # values that can't be compared (arrays) are not the same
        if before and {name: before.get(name) for name in known} == known:
            return made
    try:
        return type(made)(**{**before, **known}) if before else cls(**known)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{where or cls.__name__}: {error}") from error


def _value(value: Any, annotation: Any, where: str, extras: abc.Container[str] | None) -> Any:
    if isinstance(value, Deferred):
        return value
    if isinstance(value, str) and value == "???":
        raise _Mismatch(where, value, type_name(annotation))
    if isinstance(value, str) and value == "...":  # copied from documentation
        raise UserError(f"{where}: '...' is a placeholder.", hint=f"Give {where}'s real value.")
    if annotation is Any or isinstance(annotation, TypeVar):
        return value
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _value(value, args[0], where, extras)
    if origin in (Union, types.UnionType):
        return _union(value, annotation, where, extras)
    if origin is Literal:
        exact = [choice for choice in args if value == choice and type(value) is type(choice)]
        same_text = [c for c in args if (c.name if isinstance(c, enum.Enum) else str(c)) == str(value)]
        if not (exact or same_text):
            raise _Mismatch(where, value, type_name(annotation))
        return (exact or same_text)[0]
    if dataclasses.is_dataclass(annotation):
        return _dataclass(value, annotation, where, extras)
    if origin in MAPPINGS or annotation in MAPPINGS:
        if not isinstance(value, abc.Mapping):
            raise _Mismatch(where, value, type_name(annotation))
        key_type, item_type = args or (Any, Any)
        return {
            _value(key, key_type, f"{where} (key)", extras): _value(item, item_type, f"{where}.{key}", extras)
            for key, item in value.items()
        }
    if origin in SEQUENCES or annotation in SEQUENCES:
        return _sequence(value, origin or annotation, args, annotation, where, extras)
    return _scalar(value, annotation, where)


# The types of values, and those of which a config may have a union.
UNITABLE = (int, float, bool, str, bytes)
PRIMITIVES = (*UNITABLE, Path)


def _union(value: Any, annotation: Any, where: str, extras: abc.Container[str] | None) -> Any:
    members = get_args(annotation)
    if value is None:
        if type(None) in members:
            return None
        raise _Mismatch(where, value, type_name(annotation))
    members = tuple(m for m in members if m is not type(None))
    exact = [m for m in members if type(value) is m]
    # As in a composition, where a number becomes a text only if nothing but a text is expected.
    numbers = len(members) > 1 and not isinstance(value, str) and all(m in UNITABLE for m in members)
    blocks = [m for m in members if dataclasses.is_dataclass(m)] if isinstance(value, abc.Mapping) else []
    for member in (*exact, *(m for m in members if not (numbers and m is str))):
        try:
            # A key that one dataclass of several lacks is another's, and none that was added.
            return _value(value, member, where, extras if len(members) == 1 else None)
        except _Mismatch as error:
            # The error in the block is more precise than "expected A | None".
            if ([member] == blocks or len(members) == 1) and error.where != where:
                raise
        except UserError:
            if len(blocks) < 2:
                raise
    raise _Mismatch(where, value, type_name(annotation))


def _sequence(
    value: Any, origin: Any, args: tuple[Any, ...], annotation: Any, where: str, extras: abc.Container[str] | None
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
    """One value, by OmegaConf's conversions, so that a script and a composed config agree."""
    from omegaconf import EnumNode
    from omegaconf.errors import ValidationError

    if value is None or isinstance(value, abc.Mapping | list):
        raise _Mismatch(where, value, type_name(annotation))
    is_enum = isinstance(annotation, type) and issubclass(annotation, enum.Enum)
    if isinstance(annotation, type) and issubclass(annotation, Path) and type(value) in (int, float):
        value = str(value)  # a file may be called 2024
    try:
        if is_enum:
            return EnumNode(annotation, value=value)._value()
        if annotation in PRIMITIVES:
            return _nodes()[annotation](value=value)._value()
        if isinstance(annotation, type) and isinstance(value, annotation):
            return value
        if isinstance(annotation, type) and issubclass(annotation, Path):
            return annotation(value)
    except (ValidationError, TypeError, ValueError):
        raise _Mismatch(where, value, type_name(annotation)) from None
    raise _Mismatch(where, value, type_name(annotation))


@cache
def _nodes() -> dict[type, Any]:
    """OmegaConf's node for values of a type."""
    import omegaconf as oc

    kinds = (oc.IntegerNode, oc.FloatNode, oc.BooleanNode, oc.StringNode, oc.BytesNode, oc.PathNode)
    return dict(zip(PRIMITIVES, kinds, strict=True))
