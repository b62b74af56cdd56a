"""A command's config dataclass as rows of plain data: what help shows and what `--num-shards 4` is checked against.

A row: {"name": dotted, "kind", "type", "default"?, "required"?, "help"?, "choices"?, "of"?, "short"?, "positional"?}.
Kinds: bool, int, float, str, path, enum, literal, list (its elements' kind is "of"), dict, any.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin

from nemotron_kit.cli.options import NEMOTRON
from nemotron_kit.config.convert import MAPPINGS, SEQUENCES
from nemotron_kit.config.hints import Given, input_fields, type_hints
from nemotron_kit.errors import UserError

Row = dict[str, Any]
SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}


def rows(cls: type) -> list[Row]:
    """Every field of the dataclass, those of nested dataclasses under dotted names, in the order of declaration."""
    found = list(_rows(cls, "", (), None))
    for row in found:
        if row.get("short") in NEMOTRON.short:
            raise UserError(f"{cls.__name__}.{row['name']}: the short option {row['short']} is nemotron's own.")
    return found


def _rows(cls: Any, prefix: str, above: tuple[type, ...], instance: Any, given: Given | None = None) -> Iterator[Row]:
    hints, given = type_hints(cls), given or Given()
    held = given.values(instance) if instance is not None else {}
    for field in input_fields(cls).values():
        annotation, optional = _bare(hints[field.name])
        default = held[field.name] if field.name in held else given.default(field, annotation)
        name = prefix + field.name
        if dataclasses.is_dataclass(annotation) and annotation not in (*above, cls):
            value = default if isinstance(default, typing.cast(type, annotation)) else None
            yield from _rows(annotation, f"{name}.", (*above, cls), value, given)
        else:
            yield _row(name, annotation, optional, default, field.metadata)


def _row(name: str, annotation: Any, optional: bool, default: Any, metadata: Any) -> Row:
    row: Row = {"name": name, **_kind(annotation)}
    if optional:
        row["type"] += "|null"
    if default is dataclasses.MISSING or default == "???":
        row["required"] = True
    else:
        row["default"] = text(default)
    row.update({key: metadata[key] for key in ("help", "short", "positional") if metadata.get(key)})
    return row


def _bare(annotation: Any) -> tuple[Any, bool]:
    """`X | None` and `Annotated[X, …]` as (X, whether None was there)."""
    if get_origin(annotation) is typing.Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    members = [each for each in get_args(annotation) if each is not type(None)]
    optional = len(members) < len(get_args(annotation))
    if len(members) == 1:
        return _bare(members[0])[0], optional
    return Union[tuple(members)], optional  # noqa: UP007


def _kind(annotation: Any) -> Row:
    if annotation in SCALARS:
        return {"kind": SCALARS[annotation], "type": SCALARS[annotation]}
    if get_origin(annotation) is Literal:
        return _literal(get_args(annotation))
    base = get_origin(annotation) or annotation
    if base in SEQUENCES:
        return _list(get_args(annotation))
    if base in MAPPINGS or dataclasses.is_dataclass(base):
        return {"kind": "dict", "type": "{…}"}
    if isinstance(base, type) and issubclass(base, enum.Enum):
        return {"kind": "enum", "type": "|".join(base.__members__), "choices": list(base.__members__)}
    if isinstance(base, type) and issubclass(base, PurePath):
        return {"kind": "path", "type": "path"}
    return {"kind": "any", "type": _any_name(annotation)}


def _literal(values: tuple[Any, ...]) -> Row:
    choices = [text(value) for value in values]
    kind = "literal" if all(isinstance(value, str) for value in values) else "any"
    return {"kind": kind, "type": "|".join(choices), "choices": choices}


def _list(args: tuple[Any, ...]) -> Row:
    element = _kind(_bare(args[0])[0]) if args else {"kind": "any", "type": "any"}
    return {"kind": "list", "type": f"[{element['type']}, …]", "of": element["kind"]}


def _any_name(annotation: Any) -> str:
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    if members:
        return "|".join(_kind(each)["type"] for each in members)
    return "any" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def text(value: Any) -> str:
    """A default as one would write it in a config."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(text(each) for each in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{text(k)}: {text(v)}" for k, v in value.items()) + "}"
    return str(value)
