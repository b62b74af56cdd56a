"""Builds the index from the live command trees and their config dataclasses, and caches it."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import inspect
import os
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, Union, get_args, get_origin

from nemotron_kit.app import App, Command, Group, Pipeline, stage_prefix
from nemotron_kit.cli import tree
from nemotron_kit.cli.options import NEMOTRON
from nemotron_kit.cli.tools import TOOLS
from nemotron_kit.cli.tree import NO_DETAIL, Index, Node, Stamp, cache_file, cache_key, dump, import_path, stamp
from nemotron_kit.config.convert import MAPPINGS, SEQUENCES, RecordedDefaults, input_fields, type_hints
from nemotron_kit.discovery import BUILT_IN, Tree, discover, entry_points, recipe_folders
from nemotron_kit.envfile import EnvFile, read_env_file
from nemotron_kit.errors import UserError, error_text, printable
from nemotron_kit.files import write_text

Row = dict[str, Any]
SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}


def rows(cls: type) -> list[Row]:
    """Every field of the dataclass, those of nested dataclasses under dotted names, in the order of declaration."""
    found = _rows(cls, "", (), None)
    for row in found:
        if row.get("short") in NEMOTRON.short:
            raise UserError(f"{cls.__name__}.{row['name']}: the short option {row['short']} is an option of nemotron.")
    return found


def _rows(
    cls: Any, prefix: str, above: tuple[type, ...], instance: Any, given: RecordedDefaults | None = None
) -> list[Row]:
    hints, given, found = type_hints(cls), given or RecordedDefaults(), []
    defaults = given.values(instance) if instance is not None else {}
    for field in input_fields(cls).values():
        annotation, optional = _unwrap(hints[field.name])
        default = defaults[field.name] if field.name in defaults else given.default(field, annotation)
        name = prefix + field.name
        if dataclasses.is_dataclass(annotation) and annotation not in (*above, cls):
            value = default if isinstance(default, typing.cast(type, annotation)) else None
            found += _rows(annotation, f"{name}.", (*above, cls), value, given)
            continue
        row: Row = {"name": name, **_kind(annotation)}
        if optional:
            row["type"] += "|null"
        if default is dataclasses.MISSING or default == "???":
            row["required"] = True
        else:
            row["default"] = text(default)
        kept = ("help", "short", "positional", "verbatim")
        found.append(row | {key: field.metadata[key] for key in kept if field.metadata.get(key)})
    return found


def _unwrap(annotation: Any) -> tuple[Any, bool]:
    """`X | None` and `Annotated[X, …]` as (X, whether None was among them)."""
    if get_origin(annotation) is typing.Annotated:
        return _unwrap(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    members = [each for each in get_args(annotation) if each is not type(None)]
    optional = len(members) < len(get_args(annotation))
    if len(members) == 1:
        return _unwrap(members[0])[0], optional
    return Union[tuple(members)], optional  # noqa: UP007


def _kind(annotation: Any) -> Row:
    args, base = get_args(annotation), get_origin(annotation) or annotation
    if annotation in SCALARS:
        return {"kind": SCALARS[annotation], "type": SCALARS[annotation]}
    if base is Literal:
        choices = [text(value) for value in args]
        kind = "literal" if all(isinstance(value, str) for value in args) else "any"
        return {"kind": kind, "type": "|".join(choices), "choices": choices}
    if base in SEQUENCES:
        element = _kind(_unwrap(args[0])[0]) if args else {"kind": "any", "type": "any"}
        return {"kind": "list", "type": f"[{element['type']}, …]", "of": element["kind"]}
    if base in MAPPINGS or dataclasses.is_dataclass(base):
        return {"kind": "dict", "type": "{…}"}
    if isinstance(base, type) and issubclass(base, enum.Enum):
        return {"kind": "enum", "type": "|".join(base.__members__), "choices": list(base.__members__)}
    if isinstance(base, type) and issubclass(base, PurePath):
        return {"kind": "path", "type": "path"}
    if args and base in (Union, types.UnionType):
        return {"kind": "any", "type": "|".join(_kind(each)["type"] for each in args)}
    return {"kind": "any", "type": "any" if annotation is Any else getattr(annotation, "__name__", str(annotation))}


def text(value: Any) -> str:
    """A default in the form of a config file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(text(each) for each in value)}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = RecordedDefaults().values(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{text(k)}: {text(v)}" for k, v in value.items()) + "}"
    return str(value)


class LiveIndex(Index):
    """An index read from the command trees of this process. A command's config is imported on request."""

    def __init__(self, apps: dict[str, App], broken: dict[str, str]) -> None:
        self.commands: dict[tuple[str, ...], Command] = {}
        self.pipelines: dict[tuple[str, ...], Pipeline] = {}
        taken = {name: "the name is a command of nemotron" for name in apps if name in TOOLS}
        children = {name: self._node(app) for name, app in apps.items() if name not in taken}
        root: Node = {"name": "", "path": [], "description": "", "children": children}
        super().__init__(root, {**broken, **taken}, [])

    def _node(self, item: Group | Command | Pipeline) -> Node:
        if isinstance(item, Pipeline):
            self.pipelines[item.path] = item
            path, stages = list(item.path), ", ".join(" ".join(stage.path[1:]) for stage in item.stages)
            description = item.description or f"Run {stages}"
            return {"name": path[-1], "path": path, "description": description, "aliases": []}
        if isinstance(item, Command):
            self.commands[item.path] = item
            aliases, path = list(item.aliases), list(item.path)
            return {"name": path[-1], "path": path, "description": summary(item), "aliases": aliases}
        children = {name: self._node(below) for name, below in item.children.items()}
        path = list(item.path)
        return {"name": item.name, "path": path, "description": item.description, "children": children}

    def detail(self, leaf: Node) -> Node:
        """See Index.detail: the fields, artifact inputs, configs and config groups of a command in its recipe. Raises
        UserError with the reason when its config can't be imported or isn't usable."""
        from nemotron_kit.config.config_files import config_files, group_choices

        path = tuple(leaf["path"])
        if path in self.pipelines:
            return pipeline_detail(self.pipelines[path])
        command = self.commands[path]
        recipe = (each for names, each in self.commands.items() if names[0] == path[0])
        # A third-party module may raise anything, including SystemExit.
        try:
            fields = rows(command.load_config_cls())
            folder, configs = command.config_folder, config_files(command)
            groups = group_choices(command, recipe)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise BrokenCommand(command.full_name, f"{error_text(error)}.") from error
        slots = [
            {
                "slot": slot,
                "default": "" if each.optional else each.default_name,
                "type": each.type or "",
                "mappings": dict(each.mappings),
            }
            for slot, each in command.artifacts.items()
        ]
        return {
            "fields": fields,
            "artifacts": slots,
            "configs": list(configs),
            "groups": groups,
            "config_folder": str(folder or ""),
            "produces": list(command.produces),
            "interactive": command.interactive,
        }


class BrokenCommand(UserError):
    """A command's module does not import; `why` is the error."""

    def __init__(self, name: str, why: str) -> None:
        hint = "Its config can't be imported; the other commands still work."
        super().__init__(f"{name} can't be used: {why}", hint=hint)
        self.why = printable(why)


_PIPELINE_OPTIONS = {
    "from": "Begin with this stage; it reads what the stages before it saved last",
    "to": "End with this stage",
    "only": "Only this stage (may be given again)",
    "force": "Run this stage even if nothing has changed (may be given again)",
}


def pipeline_detail(pipeline: Pipeline) -> Node:
    """A pipeline's options and stages as plain data; no stage's config is imported."""
    from nemotron_kit.config.config_files import config_files

    names = [stage_prefix(stage) for stage in pipeline.stages]
    several: Row = {"kind": "list", "of": "str", "type": "STAGE"}
    fields: list[Row] = [
        {"name": name, "help": text, "default": "null", "choices": names, "free": True}
        | (several if name in ("only", "force") else {"kind": "str", "type": "STAGE"})
        for name, text in _PIPELINE_OPTIONS.items()
    ]
    fields += [
        {"name": name, "kind": "dict", "type": "{…}", "help": "Values of this stage", "default": "{}"} for name in names
    ]
    stages, configs = [], {}
    for stage, prefix in zip(pipeline.stages, names, strict=True):
        try:
            stage_configs = list(config_files(stage))
        except (UserError, ImportError, ValueError):  # the help page of a broken stage has the error
            stage_configs = []
        configs.update(dict.fromkeys(stage_configs))
        producers = pipeline.producers(stage)
        reads = [
            [s, a.default_name, stage_prefix(producers[s]) if s in producers else ""]
            for s, a in stage.artifacts.items()
        ]
        stages.append(
            {
                "name": prefix,
                "path": list(stage.path),
                "reads": reads,
                "saves": list(stage.produces),
                "configs": stage_configs,
            }
        )
    return {**NO_DETAIL, "fields": fields, "configs": sorted(configs), "stages": stages}


def summary(command: Command) -> str:
    """The description, or the first line of the handler's doc if that is loaded: no handler is imported for it."""
    handler: Any = command.handler
    if not command.description and isinstance(handler, str):
        module, _, name = handler.partition(":")
        handler = getattr(sys.modules.get(module), name, None)
    doc = "" if handler is None or isinstance(handler, str) else inspect.getdoc(handler) or ""
    return command.description or doc.partition("\n")[0]


def rebuild() -> Index:
    """Import every recipe, write the cache, and return its content. It is no error if the cache can't be written."""
    key, path = cache_key(), cache_file()
    recorder = Recorder()
    sys.meta_path.insert(0, recorder)
    try:
        for path_entry in (tree.find_env_file(), *import_path()):
            recorder.add(path_entry)
        found, folders, recipes = _discover()
        for folder in folders:
            recorder.add(str(folder))
        index = LiveIndex(found.apps, found.broken)
        details = [_cached_leaf(index, leaf, number, recorder) for number, leaf in enumerate(tree.leaves(index.root))]
    finally:
        sys.meta_path.remove(recorder)
    text = dump(index.root, index.broken, details, recorder.sources(_packages(index, folders)), key, recipes)
    # Without a cache the next help page is slower, and nothing else.
    with contextlib.suppress(OSError):
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(Path(path), text)
    return Index(index.root, index.broken, text.split("\n")[2:])


def _cached_leaf(index: LiveIndex, leaf: Node, number: int, recorder: Recorder) -> Node:
    """The command's detail. The error of a broken command is stored in its node, so the others stay usable."""
    leaf["line"] = number
    if tuple(leaf["path"]) in index.pipelines:
        return index.detail(leaf)
    command = index.commands[tuple(leaf["path"])]
    with contextlib.suppress(ImportError, ValueError):  # without the handler's package there is no config folder
        folder = command.config_folder
        for each in [folder, *(below for below in folder.rglob("*") if below.is_dir())] if folder else ():
            recorder.add(str(each))
    try:
        detail = index.detail(leaf)
    except UserError as error:
        leaf["broken"], detail = error.why if isinstance(error, BrokenCommand) else error.message, NO_DETAIL
    leaf["description"] = summary(command)
    return detail


def _discover() -> tuple[Tree, list[Path], list[str] | None]:
    """`discover()`, and the folders of recipes, also as env.toml names them; a broken env.toml is listed like a broken
    recipe, so that help works all the same."""
    try:
        env = read_env_file()
        return discover(env), recipe_folders(env), env.table("cli").get("recipes", [])
    except UserError as error:
        found = discover(EnvFile())
        found.broken["env.toml"] = error.message
        return found, [], None


def _packages(index: LiveIndex, folders: Iterable[Path]) -> set[str]:
    """The top-level packages that contain recipes."""
    modules = [*BUILT_IN.values(), *(target for _, target in entry_points()), *(folder.name for folder in folders)]
    for command in index.commands.values():
        cls = command.config_cls
        modules.append(cls if isinstance(cls, str) else cls.__module__)
    return {module.partition(":")[0].partition(".")[0] for module in modules}


class Recorder:
    """An import hook that records every import, failed ones included, with each file's state before it was read."""

    def __init__(self) -> None:
        self.stamps: dict[str, Stamp] = {}
        self.origins: dict[str, str] = {}

    def add(self, path: str | None) -> None:
        """Record the state of a file or folder, if it is not recorded yet."""
        if path:
            self.stamps.setdefault(path, stamp(path))

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        """Ask the other finders, and record the file that they find, else all folders where it could be."""
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                self._record_origin(fullname, spec.origin)
                return spec
        # A module that is missing may be added later to any folder of the path.
        for folder in sys.path if path is None else path:
            self.add(folder)
        return None

    def _record_origin(self, module: str, origin: str | None) -> None:
        if origin and os.path.isabs(origin):  # noqa: PTH117
            self.origins[module] = origin
            self.add(origin)

    def sources(self, packages: set[str]) -> list[Stamp]:
        """The stamps of the files that the index depends on: not the standard library's, and of installed packages only
        those with recipes (an upgrade of another one changes site-packages, which is listed too)."""
        for module, loaded in list(sys.modules.items()):
            if module not in self.origins:
                self._record_origin(module, getattr(loaded, "__file__", None))
        standard = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120
        ours = set()
        for module, origin in self.origins.items():
            installed = "site-packages" in origin or "dist-packages" in origin
            if (module.partition(".")[0] in packages) if installed else not origin.startswith(standard):
                ours.add(origin)
        others = set(self.origins.values())
        return [each for path, each in self.stamps.items() if path in ours or path not in others]
