"""Config files in YAML, TOML and JSON: read safely, with their defaults lists and the location of each key."""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_kit.app import Command
from nemotron_kit.config.convert import input_fields
from nemotron_kit.config.limits import check_yaml_limits, with_libyaml, yaml_loader
from nemotron_kit.errors import UserError, near, nearest, sentence
from nemotron_kit.files import map_leaves, read_regular
from nemotron_kit.home import expand_user

ENDINGS = (".yaml", ".yml", ".toml", ".json")
# A config is text that a person wrote; what is larger is a mistake or an attack on the parser.
MAX_BYTES = 4 << 20
# The position of a value: the keys and indices that lead to it.
Spot = tuple[str | int, ...]
# The position of values that YAML reads as numbers or booleans and whose text would differ if they became text again
# (`1.10`, `yes`, `0123`, `1_000`) → (the value that was read, the text in the file).
Spelled = dict[Spot, tuple[Any, str]]


def is_path(value: str) -> bool:
    """Whether a `-c` value names a file (it has a `/` or a known ending) and not a config's name."""
    return "/" in value or value.endswith(ENDINGS)


def load_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a config file, interpolations unresolved. Every mistake is a UserError with file, line, column."""
    return load_with_spelling(path)[0]


def load_with_spelling(path: Path) -> tuple[dict[str, Any], Spelled]:
    """`load_mapping`, and how values were written that a text field takes as text (see `keep_text_spelling`)."""
    if not path.is_file():
        raise UserError(f"{path}: no such config file." if not path.exists() else f"{path} is not a file.")
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: unknown ending {path.suffix!r}.", hint=f"Known are {', '.join(ENDINGS)}.")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so not a config.")
    try:
        text = read_regular(path).decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}.") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    loaders = {".toml": _load_toml, ".json": _load_json}
    spelled: Spelled = {}
    value = loaders[path.suffix](path, text) if path.suffix in loaders else _load_yaml(path, text, spelled)
    if "\\u" in text or "\\U" in text:  # an escape such as \\ud800 is no character, and can't be written to a file
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{path}: holds {error.object[error.start]!r}, which is half a character.") from error
        except ValueError as error:
            raise UserError(f"{path}: {error}.") from error
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: must hold a mapping at the top, not a {type(value).__name__}.")
    return value or {}, spelled


def keep_text_spelling(values: dict[str, Any], spelled: Spelled, means_text: Callable[[Spot], bool]) -> dict[str, Any]:
    """`values` with what was written in the file wherever the field is a text: `version: 1.10` is not "1.1"."""
    wanted = {spot: pair for spot, pair in spelled.items() if means_text(spot)}
    result = copy.deepcopy(values) if wanted else values
    for spot, (read, text) in wanted.items():
        holder: Any = result
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an override has put something else there
            for part in spot[:-1]:
                holder = holder[part]
            if type(holder[spot[-1]]) is type(read) and repr(holder[spot[-1]]) == repr(read):  # NaN is not equal to NaN
                holder[spot[-1]] = text
    return result


def with_wandb(values: dict[str, Any], cls: type) -> dict[str, Any]:
    """A config's block `wandb` moved to `run.wandb`, unless the dataclass has a field of that name."""
    block, run = values.get("wandb"), values.get("run") or {}
    if not isinstance(block, dict) or not isinstance(run, dict) or "wandb" in getattr(cls, "__dataclass_fields__", {}):
        return values
    rest = {key: value for key, value in values.items() if key != "wandb"}
    named = {("run_name" if key == "name" else key): value for key, value in block.items()}
    return {**rest, "run": {**run, "wandb": {**named, **(run.get("wandb") or {})}}}


def _load_yaml(path: Path, text: str, spelled: Spelled) -> Any:
    import yaml

    try:
        with contextlib.suppress(yaml.YAMLError):  # read again by the Python parser, whose messages are better known
            return _constructed(path, text, with_libyaml(yaml_loader()), spelled)
        return _constructed(path, text, yaml_loader(), spelled)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        location = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{location}: not valid YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}.") from error


def _constructed(path: Path, text: str, kind: Any, spelled: Spelled) -> Any:
    """The only document of a YAML text, with its keys as they are written. Adds to `spelled` how values are written."""
    import yaml

    with contextlib.suppress(yaml.YAMLError):  # the loader raises its own
        check_yaml_limits(path, text, kind)
    loader = kind(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        scalars: list[tuple[Spot, Any]] = []
        _walk(path, node, (), scalars, loader)
        value = loader.construct_document(node)
        for spot, scalar in scalars:
            read = loader.construct_object(scalar)
            if str(read) != scalar.value:
                spelled[spot] = (read, scalar.value)
        return value
    finally:
        loader.dispose()


_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool")


def _walk(path: Path, node: Any, spot: Spot, scalars: list[tuple[Spot, Any]], loader: Any) -> None:
    """Collect the numbers and booleans with their positions, and restore `on:`, which YAML reads as the boolean true,
    as a name. A node with an anchor is walked at each of its aliases, whose number `check_yaml_limits` bounds."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":  # `<<: *base` has the keys of `base` here
                for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    _walk(path, each, spot, scalars, loader)
                continue
            if key.tag == f"{_TAG}bool" and key.value.lower() not in ("true", "false"):
                key.tag = f"{_TAG}str"
            if key.tag == f"{_TAG}null" or (not spot and key.value == ""):
                location = f"{path}:{key.start_mark.line + 1}"
                raise UserError(f"{location}: {key.value or 'an empty text'} can't be a key.", hint='Quote it: "null".')
            name = loader.construct_object(key) if key.tag in _NUMBERS else str(key.value)
            _walk(path, value, (*spot, name), scalars, loader)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(path, item, (*spot, index), scalars, loader)
    elif node.tag in _NUMBERS:
        scalars.append((spot, node))


def _load_toml(path: Path, text: str) -> Any:
    import tomllib

    def without_date(value: Any) -> Any:  # a config has no such type; in YAML it is a text, too
        return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value

    try:
        return map_leaves(tomllib.loads(text), without_date)
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise UserError(f"{path}: not valid TOML: {error}.") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply.") from error


def _load_json(path: Path, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            names = [key for key, _ in pairs]
            double = next(key for key in names if names.count(key) > 1)
            raise UserError(f"{path}: key {double!r} is given twice in one object.")
        return mapping

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}.") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply.") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: not valid JSON: {error}.") from error


def key_location(path: Path, dotted: str) -> str:
    """`file:line` of a dotted key in a YAML file; `file` where the line is not known."""
    if path.suffix not in (".yaml", ".yml"):
        return str(path)
    import yaml

    text = path.read_text(encoding="utf-8-sig")
    try:
        node: Any = yaml.compose(text, Loader=with_libyaml(yaml.SafeLoader))
    except yaml.YAMLError:  # it was read by the other parser
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for part in dotted.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in pairs if key.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return f"{path}:{line}" if line else str(path)


def config_files(command: Command) -> dict[str, Path]:
    """Config name → file, of the command's config folder."""
    return files_in(command.config_folder)


def files_in(folder: Path | None) -> dict[str, Path]:
    """Config name → file, of a config folder; {} where there is none."""
    if folder is None or not folder.is_dir():
        return {}
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix in ENDINGS and p.is_file()}


def find_config_file(value: str, folder: Path | None, whose: str, *more: Path) -> Path:
    """The file that `-c value` names: a name in the config folder, or a path (from here, then beside the folder, then
    in it, then in `more`). Raises UserError, which names `whose` folder it is, where there is none."""
    files = files_in(folder)
    if not is_path(value):
        if value in files:
            return files[value]
        raise UserError(
            f"{whose}: no config called {value!r} in {folder}.",
            hint=sentence(nearest(value, files) or "That folder holds none; -c also takes a path."),
        )
    given = expand_user(value)
    folders = () if given.is_absolute() else ((folder.parent, folder) if folder else ()) + more
    paths = [given, *(each / given for each in folders)]
    for path in paths:
        if os.path.isfile(path):  # noqa: PTH113 — False, and no exception, for what can be no file's name
            return path.absolute()
    tried = ", ".join(str(p.absolute()) for p in paths)
    raise UserError(
        f"-c {value}: no such config file.", hint=f"Looked for {tried}. Configs by name: {', '.join(files) or 'none'}."
    )


def other_command_of(values: dict[str, Any], command: Command, others: list[Command]) -> Command | None:
    """The other command of a shared folder whose config this file is, if it doesn't fit `command`: a file's top-level
    keys are fields of its command, or `run`, `defaults` or `hydra`."""

    def fits(each: Command) -> bool:
        return values.keys() <= {*input_fields(each.load_config_cls()), "run", "defaults", "hydra"}

    if fits(command):
        return None
    for other in others:
        if other.path != command.path and other.config_folder == command.config_folder:
            with contextlib.suppress(Exception):  # another command's broken module does not concern this one
                if fits(other):
                    return other
    return None


# `recipe=`, `stage=` and `config=` choose the job; the others are where Hydra finds it.
TAKEN = ("recipe", "stage", "config", "schema", "job")
_ENTRY = r"(?P<keywords>(?:(?:override|optional)\s+)*)(?P<group>[^@\s]+)(?P<package>@\S*)?\Z"
_HEADER = r"\A(?:\s*(?:#.*)?\n)*?\s*#\s*@package\s+(\S+)"


@dataclass(eq=False, repr=False)
class JobFile:
    """A config file as it is put into the ConfigStore, and the files that it refers to: siblings, and folders of groups
    by name."""

    values: dict[str, Any]
    spelled: Spelled
    siblings: list[Path] = field(default_factory=list)
    groups: dict[str, Path] = field(default_factory=dict)

    def named_groups(self) -> set[str]:
        """The groups that its defaults list names, without their packages."""
        entries = self.values.get("defaults") or []
        texts = [next(iter(each)) if isinstance(each, Mapping) else each.rpartition("/")[0] for each in entries]
        return {str(text).split()[-1].partition("@")[0].strip("/") for text in texts if text}


def read_job_file(path: Path, group: str, command_configs: Mapping[str, Path] | None = None) -> JobFile:
    """Read a job file. `command_configs` are the configs in the command's folder, which any file can name as
    `/job/<recipe>/<stage>/NAME`.

    Raises UserError for a file that is no mapping or whose `defaults` are no list.
    """
    result = JobFile(*load_with_spelling(path))
    defaults = result.values.get("defaults")
    if defaults is None:
        return result
    if not isinstance(defaults, list):
        raise UserError(f"{path}: defaults must be a list.", hint="For instance: defaults: [default, _self_]")
    entries = [_rewrite_entry(entry, path, group, command_configs or {}, result) for entry in defaults]
    if "_self_" not in entries:
        # Hydra's default for version_base 1.3.
        entries.append("_self_")
    result.values = {**result.values, "defaults": entries}
    return result


def group_files(name: str, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(group, option, file) of every config in a group's folder and the folders in it."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():  # a link may lead back
            yield from group_files(f"{name}/{path.name}", path)
        elif path.suffix in ENDINGS and path.is_file():
            yield name, path.stem, path


def group_choices(command: Command, commands: Iterable[Command]) -> dict[str, list[str]]:
    """Group → its options, of the folders in the command's config folder: `config/model/big.yaml` is the option `big`
    of the group `model`, `config/model/old/big.yaml` its option `old/big`. A folder that is the config folder of one of
    `commands` is no group, nor is one with the name of a choice that the primary config has.
    """
    root, groups = command.config_folder, dict[str, list[str]]()
    if root is None or not root.is_dir():
        return groups
    others = set[Path | None]()
    for each in commands:
        # Another command's package may be missing, or raise anything when it is imported.
        with contextlib.suppress(Exception, SystemExit):
            others.add(each.config_folder)
    # Of a loop of links, no folder, `resolve` raises RuntimeError.
    taken = {folder.resolve() for folder in others if folder is not None and folder.is_dir()}
    for folder in sorted(root.iterdir()):
        name = folder.name
        # A group's name is a key in Hydra's grammar.
        if (
            folder.is_dir()
            and name.isidentifier()
            and name not in (*TAKEN, "hydra", "run")
            and folder.resolve() not in taken
        ):
            for group, option, _ in group_files(name, folder):
                parts = [*group.split("/"), option]
                for depth in range(1, len(parts)):
                    groups.setdefault("/".join(parts[:depth]), []).append("/".join(parts[depth:]))
    return groups


def package_of(path: Path) -> str | None:
    """The package in a YAML file's `# @package` header; None without one."""
    found = re.match(_HEADER, path.read_text(encoding="utf-8-sig")) if path.suffix in (".yaml", ".yml") else None
    return found[1] if found else None


def _rewrite_entry(entry: Any, path: Path, group: str, command_configs: Mapping[str, Path], result: JobFile) -> Any:
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, option),) = entry.items()
        return {_group(str(name), path, result): option}
    if not isinstance(entry, str) or not entry.strip():
        raise UserError(f"{path}: defaults: {entry!r} is no entry.", hint="One is NAME, or GROUP: NAME.")
    name, _, package = entry.partition("@")
    if name != "_self_" and not name.startswith("/"):
        for sibling in (path.parent / each for each in (name, *(name + ending for ending in ENDINGS))):
            if sibling.suffix in ENDINGS and sibling.is_file() and sibling.parent == path.parent:
                result.siblings.append(sibling)
                return f"/{group}/{sibling.stem}@{package or '_here_'}"
    name = name.removeprefix(f"/{group}/")
    if entry.startswith(f"/{group}/"):
        result.siblings += [command_configs[name]] if name in command_configs else []
        return entry
    if "/" in name or " " in entry:
        return _group(entry, path, result)
    if entry == "_self_":
        return entry
    siblings = [other.stem for other in path.parent.iterdir() if other.suffix in ENDINGS and other != path]
    raise UserError(f"{path}: defaults: there is no config {name!r} beside it.", hint=near(name, siblings))


def _group(text: str, path: Path, result: JobFile) -> str:
    """A relative group (`override optimizer@opt`, or `optimizer/adam`) as one at the root; its folder is noted."""
    match = re.match(_ENTRY, text.strip())
    if match is None or {"", ".", ".."} & set(match["group"].removeprefix("/").split("/")):
        raise UserError(
            f"{path}: defaults: {text!r} is no group, nor a config in one.",
            hint="The folders of groups lie beside the file.",
        )
    if "override" in match["keywords"]:
        # Hydra refuses it below an interpolated group, and the job's config is chosen by one.
        raise UserError(
            f"{path}: defaults: {text!r}: a job's config can't override the choice of another file.",
            hint=f"Choose on the command line ({match['group'].lstrip('/')}=…), or name the group in this file only.",
        )
    if match["group"].startswith("/"):
        return text
    first = match["group"].partition("/")[0]
    if first in TAKEN:
        raise UserError(f"{path}: defaults: a group can't be called {first!r} here.", hint="Rename its folder.")
    if (path.parent / first).is_dir() and first != "hydra":
        result.groups[first] = path.parent / first
    return f"{match['keywords']}/{match['group']}{match['package'] or ''}"
