"""A command's dataclass, joined with the launcher's `run` section, as one structured config."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from nemotron_kit.app import SINGLE_VALUE_CLASHES, Command
from nemotron_kit.config.convert import (
    MAPPINGS,
    PRIMITIVES,
    SEQUENCES,
    UNITABLE,
    RecordedDefaults,
    fields_below,
    input_fields,
    members_of,
    other_class_values,
    type_hints,
    type_inside,
    type_name,
)
from nemotron_kit.config.limits import note_union, open_dicts
from nemotron_kit.errors import UserError
from nemotron_kit.files import plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

# OmegaConf reads only the fields of a dataclass; generating methods and a docstring would double the time.
_BARE: dict[str, Any] = {
    "repr": False,
    "eq": False,
    "match_args": False,
    "namespace": {"__doc__": "A command's config."},
}
_CONFIG_VALUES = (*PRIMITIVES, enum.Enum, type(None))
# The dataclasses whose fields are being translated, the outermost first.
_above: list[type] = []
PLAIN = (*PRIMITIVES, *(kind | None for kind in PRIMITIVES))


@dataclasses.dataclass
class RunSection:
    """Everything about launching; the artifact inputs of the command are further fields."""

    profile: str | None = None
    mode: str = "local"
    env: dict[str, Any] = dataclasses.field(default_factory=dict)
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    wandb: dict[str, Any] = dataclasses.field(default_factory=dict)


def schema_node(command: Command, wandb: dict[str, Any]) -> DictConfig:
    """The structured config of a command: its fields at the top level, and `run`.

    Blocks typed as a dict, and fields with `metadata={"open": True}`, stay open for new keys; all else is closed.
    Raises UserError for a type that a config can't hold, naming the field.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    cls = command.load_config_cls()
    try:
        root: DictConfig = OmegaConf.structured(_joined(command, cls, wandb))
    except OmegaConfBaseException as error:
        raise UserError(
            f"{command.full_name}: {cls.__name__} can't be a config: {str(error).splitlines()[0]}"
        ) from error
    open_dicts(root)
    for name, f in input_fields(cls).items():
        if f.metadata.get("open"):  # a block of known fields and others
            root._get_node(name)._set_flag("struct", False)  # type: ignore[union-attr]
    given, hints = RecordedDefaults(), type_hints(cls)
    for name, f in input_fields(cls).items():
        if _takes_one_of_several(hints[name]):  # for the merges of the composition
            default = given.default(f, hints[name])
            _note_union(root._get_node(name), hints[name], default, f"{cls.__module__}.{cls.__qualname__}.{name}")
    # An artifact that only the config file names (`run.X`, used as ${art:X}) is legitimate; the plan checks the rest.
    run: Any = root._get_node("run")
    run._set_flag("struct", False)
    return root


def _takes_one_of_several(annotation: Any) -> bool:
    """Whether an annotation, or that of a field below it, is a union of dataclasses."""
    todo, visited = [annotation], set[type]()
    while todo:
        current: Any = todo.pop()
        if sum(map(dataclasses.is_dataclass, members_of(current))) > 1:
            return True
        todo += get_args(current)
        if isinstance(current, type) and dataclasses.is_dataclass(current) and current not in visited:
            visited.add(current)
            todo += type_hints(current).values()
    return False


def _note_union(node: Any, annotation: Any, default: Any, where: str) -> None:
    if not hasattr(node, "keys") or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    members = members_of(annotation)
    made: Any = type(default)
    if len(members) > 1:
        if made in members and dataclasses.is_dataclass(default):
            note_union(node, where, made, annotation)
    elif dataclasses.is_dataclass(default):
        for name, hint in type_hints(made).items():
            child = node._get_node(name, validate_access=False)
            _note_union(child, hint, getattr(default, name, None), f"{where}.{name}")
    elif isinstance(default, Mapping):
        for key, item in default.items():
            child = node._get_node(key, validate_access=False)
            _note_union(child, type_inside(members[0], str(key)), item, f"{where}.{key}")


def contradictions(overrides: Iterable[str], values: Mapping[str, Any], cls: type) -> list[str]:
    """A sentence for each setting to which `overrides` give two values, under two names: a dataclass's field names the
    field that it is an alias of by `metadata={"same_as": "train.lr"}`."""
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    found = []
    for name, declared in fields_below(cls):
        other = declared.metadata.get("same_as")
        if other is None or not {name, other} <= given:
            continue
        one, two = (functools.reduce(lambda block, key: block[key], key.split("."), values) for key in (name, other))
        if one != two:
            found.append(f"{name} is {one} and {other} is {two}, but they are one setting; give one of them.")
    return found


def _joined(command: Command, cls: type, wandb: dict[str, Any]) -> type:
    # Dotted config field → `${art:slot,field}`.
    mapped = {
        target: f"${{art:{slot},{source or 'path'}}}"
        for slot, artifact in command.artifacts.items()
        for source, target in artifact.mappings.items()
    }
    fields, names = _fields(cls, command.full_name, mapped), input_fields(cls)
    for target in mapped:
        if target.split(".")[0] not in names:
            raise UserError(
                f"{command.full_name}: an artifact is mapped to {target!r}, which {cls.__name__} has no field for."
            )
    identity = {"name": f"{command.recipe}/{command.stage}", "script": str(command.script_path or "")}
    inputs: list[tuple[str, Any, str | None]] = [
        (slot, str | None, None) if artifact.optional else (slot, str, artifact.default_name)
        for slot, artifact in command.artifacts.items()
    ]
    run = dataclasses.make_dataclass("Run", inputs, bases=(RunSection,), **_BARE)
    default = dataclasses.field(default_factory=lambda: run(recipe=dict(identity), wandb=dict(wandb)))
    return dataclasses.make_dataclass(cls.__name__, [*fields, ("run", run, default)], init=False, **_BARE)


def _translate(cls: type, where: str) -> type:
    """A nested dataclass with annotations that OmegaConf takes: the class itself, where all of them are plain. Inside
    of itself (a tree's node) it is Any, of which only the job makes the class."""
    if cls in _above:
        return Any
    hints, params = type_hints(cls), cls.__dataclass_params__  # type: ignore[attr-defined]
    inputs = list(input_fields(cls)) == [f.name for f in dataclasses.fields(cls)]
    # A frozen one would be read-only in the config.
    if inputs and not params.frozen and all(hints[f.name] in PLAIN for f in dataclasses.fields(cls)):
        return cls
    _above.append(cls)
    try:
        return dataclasses.make_dataclass(cls.__name__, _fields(cls, where), init=False, **_BARE)
    finally:
        _above.pop()


def _fields(cls: type, where: str, mapped: dict[str, str] | None = None) -> list[tuple[str, Any, Any]]:
    """The fields of `cls` for make_dataclass; one without a default gets '???'. `mapped` is given for the root only."""
    hints, given = type_hints(cls), RecordedDefaults()
    fields: list[tuple[str, Any, Any]] = []
    for f in input_fields(cls).values():
        if mapped is not None and f.name in SINGLE_VALUE_CLASHES and hints[f.name] in PLAIN:
            raise UserError(f"{where}: a single value can't be called {f.name!r} (`{f.name}=…` selects a {f.name}).")
        annotation = _annotation(hints[f.name], f"{where}: {cls.__name__}.{f.name}")
        interpolation = (mapped or {}).get(f.name)
        value = given.default(f, hints[f.name]) if interpolation is None else interpolation
        fields.append((f.name, annotation, _default(value, annotation, given)))
    return fields


def _default(value: Any, annotation: Any, given: RecordedDefaults) -> Any:
    if value is dataclasses.MISSING:
        return dataclasses.field(default="???")
    if isinstance(value, str):
        return dataclasses.field(default=value)
    value = _convert(value, annotation, given)
    return dataclasses.field(default_factory=lambda: value)


def _convert(value: Any, annotation: Any, given: RecordedDefaults) -> Any:
    """A default of the user's classes as one of the translated classes."""
    members = members_of(annotation)
    target = members[0] if len(members) == 1 else annotation
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = given.values(value)
        if not (isinstance(target, type) and dataclasses.is_dataclass(target)):
            return {name: _convert(each, Any, given) for name, each in values.items()}
        made: Any = object.__new__(target)  # without its `__post_init__`, which the job calls
        for f in dataclasses.fields(target):
            each = _convert(values.get(f.name, "???"), f.type, given)
            object.__setattr__(made, f.name, "???" if each is dataclasses.MISSING else each)
        return made
    if isinstance(value, dict):
        return {k: _convert(v, _item(target), given) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_convert(v, _item(target), given) for v in value]
    return plain(value)


def _item(annotation: Any) -> Any:
    """The type of the values or items of a translated `dict[K, T]` or `list[T]`; Any for other types."""
    return get_args(annotation)[-1] if get_origin(annotation) in (dict, list) else Any


def with_defaults(values: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    """`values`, a config file's, over the defaults of the dataclass `cls`, merged as a composition merges them.

    A default that no config can hold is left out.
    """
    given, hints = RecordedDefaults(), type_hints(cls)
    made = {name: given.default(f, hints[name]) for name, f in input_fields(cls).items()}
    stored = {name: _storable(_convert(value, Any, given)) for name, value in made.items()}
    return _fields_over({k: v for k, v in stored.items() if v is not dataclasses.MISSING}, values, cls, made)


def _fields_over(
    default: Mapping[str, Any], values: Mapping[str, Any], cls: Any, made: Mapping[str, Any]
) -> dict[str, Any]:
    result, hints = dict(default), type_hints(cls)
    for name, value in values.items():
        if value != "???" or name not in result:
            result[name] = _over(result.get(name), value, hints.get(name), made.get(name))
    return result


def _over(default: Any, value: Any, annotation: Any, made: Any) -> Any:
    """`value`, of the type `annotation`, over the config values `default`, which are those of the object `made`."""
    members = members_of(annotation)
    kind = members[0] if len(members) == 1 else annotation
    if isinstance(value, Mapping):
        if isinstance(default, list) and value and all(str(k).isdecimal() and int(k) < len(default) for k in value):
            given = {int(k): _over(default[int(k)], v, type_inside(kind, str(k)), None) for k, v in value.items()}
            return [given.get(index, item) for index, item in enumerate(default)]  # `items.0=…` on a command line
        below = default if isinstance(default, Mapping) else {}
        is_block = dataclasses.is_dataclass(made) and bool(below)
        if is_block and len(members) > 1 and type(made) in members:
            kept = other_class_values(below, below, value, type(made), kind)
            below = below if kept is None else kept
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            names = input_fields(kind)  # a default may be of a subclass
            below = {name: each for name, each in below.items() if name in names}
            if not below:
                return with_defaults(value, kind)
            objects = {name: getattr(made, name, None) for name in names} if is_block else {}
            return _fields_over(below, value, kind, objects)
        inside = made if isinstance(made, Mapping) else {}
        return {
            **below,
            **{k: _over(below.get(k), v, type_inside(kind, str(k)), inside.get(k)) for k, v in value.items()},
        }
    if isinstance(value, list):
        return [_over(None, each, type_inside(kind, str(index)), None) for index, each in enumerate(value)]
    return value


def _storable(value: Any) -> Any:
    """A default without what no config can hold; MISSING if nothing is left of it."""
    if isinstance(value, dict):
        kept = {key: _storable(item) for key, item in value.items() if isinstance(key, _CONFIG_VALUES)}
        return {key: item for key, item in kept.items() if item is not dataclasses.MISSING}
    if isinstance(value, list):
        items = [_storable(item) for item in value]
        return dataclasses.MISSING if dataclasses.MISSING in items else items
    return value if isinstance(value, _CONFIG_VALUES) else dataclasses.MISSING


def _annotation(annotation: Any, where: str) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any or annotation in PRIMITIVES:
        return annotation
    if origin is typing.Annotated:
        return _annotation(args[0], where)
    if origin is Literal:
        kinds = {type(choice) for choice in args}
        return kinds.pop() if len(kinds) == 1 and kinds <= set(PRIMITIVES) else Any
    if origin in (Union, types.UnionType):
        members = [_annotation(each, where) for each in members_of(annotation)]
        if float in members and int not in members and len(members) > 1:
            members.append(int)  # in Python a whole number is a float as well; the job gets 5.0 for 5
        is_one = len(members) == 1 and members != [Any]
        if not is_one and not all(each in UNITABLE for each in members):
            return Any
        union: Any = Union[tuple(members)]  # noqa: UP007
        return union | None if type(None) in args else union
    if origin in MAPPINGS or annotation in MAPPINGS:
        key, value = args or (str, Any)
        if key not in (str, int, float, bool) and not (isinstance(key, type) and issubclass(key, enum.Enum)):
            raise UserError(f"{where}: a config's dict can't have keys of type {type_name(key)}.")
        return dict[key, _annotation(value, where)]  # type: ignore[misc, valid-type]
    if origin in SEQUENCES or annotation in SEQUENCES:
        kinds = {_annotation(each, where) for each in args if each is not Ellipsis}
        return list[kinds.pop() if len(kinds) == 1 else Any]  # type: ignore[misc]
    if isinstance(annotation, type):
        if dataclasses.is_dataclass(annotation):
            return _translate(annotation, where)
        if issubclass(annotation, enum.Enum):
            return annotation
        if issubclass(annotation, Path):
            return Path
    raise UserError(
        f"{where}: a config can't hold the type {type_name(annotation)}.",
        hint="Use int, float, bool, str, Path, an enum, Literal, a dataclass, or a list, dict or union of these.",
    )
