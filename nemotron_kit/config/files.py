"""Config files as plain mappings: YAML, TOML and JSON, with the place of every mistake."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemotron_kit.config.bombs import refuse_bombs
from nemotron_kit.config.quick import plain_times, with_libyaml
from nemotron_kit.errors import UserError
from nemotron_kit.files import read_regular

ENDINGS = (".yaml", ".yml", ".toml", ".json")
# A config is text that a person wrote; what is larger is a mistake or an attack on the parser.
MAX_BYTES = 4 << 20
# Where a value stands: the keys and indices that lead to it.
Spot = tuple[str | int, ...]
# Values that YAML reads as numbers or booleans and that would look otherwise if they became text again (`1.10`, `yes`,
# `0123`, `1_000`): as they were read, and as they were written.
Spelled = dict[Spot, tuple[Any, str]]


def is_path(value: str) -> bool:
    """Whether a `-c` value names a file (it has a `/` or a known ending) and not a config's name."""
    return "/" in value or value.endswith(ENDINGS)


def load_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a config file, interpolations unresolved. Every mistake is a UserError with file, line, column."""
    return load_spelled(path)[0]


def load_spelled(path: Path) -> tuple[dict[str, Any], Spelled]:
    """`load_mapping`, and how values were written that a text field takes as text (see `as_written`)."""
    if not path.is_file():
        raise UserError(f"{path}: no such config file." if not path.exists() else f"{path} is not a file.")
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: unknown ending {path.suffix!r}.", hint=f"Known are {', '.join(ENDINGS)}.")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so not a config.")
    try:
        text = read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}.") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    loaders = {".toml": _load_toml, ".json": _load_json}
    spelled: Spelled = {}
    value = loaders[path.suffix](path, text) if path.suffix in loaders else _load_yaml(path, text, spelled)
    if "\\u" in text or "\\U" in text:
        _refuse_half_characters(path, value)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: must hold a mapping at the top, not a {type(value).__name__}.")
    return value or {}, spelled


def as_written(values: dict[str, Any], spelled: Spelled, means_text: Callable[[Spot], bool]) -> dict[str, Any]:
    """`values` with what was written in the file wherever the field is a text: `version: 1.10` is not "1.1"."""
    wanted = {spot: pair for spot, pair in spelled.items() if means_text(spot)}
    result = copy.deepcopy(values) if wanted else values
    for spot, (read, text) in wanted.items():
        holder: Any = result
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an override has put something else there
            for part in spot[:-1]:
                holder = holder[part]
            if type(holder[spot[-1]]) is type(read) and holder[spot[-1]] == read:
                holder[spot[-1]] = text
    return result


def with_wandb(values: dict[str, Any], cls: type) -> dict[str, Any]:
    """A config's block `wandb` as the `run.wandb` that it means, unless the dataclass has such a field of its own."""
    block, run = values.get("wandb"), values.get("run") or {}
    if not isinstance(block, dict) or not isinstance(run, dict) or "wandb" in getattr(cls, "__dataclass_fields__", {}):
        return values
    rest = {key: value for key, value in values.items() if key != "wandb"}
    named = {("run_name" if key == "name" else key): value for key, value in block.items()}
    return {**rest, "run": {**run, "wandb": {**named, **(run.get("wandb") or {})}}}


def _load_yaml(path: Path, text: str, spelled: Spelled) -> Any:
    import yaml

    refuse_bombs(path, text)
    try:
        with contextlib.suppress(yaml.YAMLError):  # read again, by the one whose messages people know
            return _constructed(path, with_libyaml(_loader())(text), spelled)
        return _constructed(path, _loader()(text), spelled)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{place}: not valid YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}.") from error


def _loader() -> Any:
    """OmegaConf's own safe loader: 1e-3 is a number, a duplicate key is an error; but 12:00:00 is a text."""
    from omegaconf._utils import get_yaml_loader

    return plain_times(get_yaml_loader())


def _constructed(path: Path, loader: Any, spelled: Spelled) -> Any:
    """The one document of a YAML text, its keys as they are written, and in `spelled` what text fields mean."""
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        scalars: list[tuple[Spot, Any]] = []
        _walk(path, node, (), scalars, set())
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


def _walk(path: Path, node: Any, spot: Spot, scalars: list[tuple[Spot, Any]], seen: set[int]) -> None:
    """Collect the numbers and booleans, each where it stands first, and take `on:`, which YAML reads as the boolean
    true, for the name that it is."""
    import yaml

    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == f"{_TAG}bool" and key.value.lower() not in ("true", "false"):
                key.tag = f"{_TAG}str"
            if key.tag == f"{_TAG}null" or (not spot and key.value == ""):
                place = f"{path}:{key.start_mark.line + 1}"
                raise UserError(f"{place}: {key.value or 'an empty text'} can't be a key.", hint='Quote it: "null".')
            _walk(path, value, (*spot, str(key.value)), scalars, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(path, item, (*spot, index), scalars, seen)
    elif node.tag in _NUMBERS:
        scalars.append((spot, node))


def _refuse_half_characters(path: Path, value: Any) -> None:
    """An escape such as \\ud800 alone is no character, and no file can be written with it."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: holds {error.object[error.start]!r}, which is half a character.") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from error


def _load_toml(path: Path, text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
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
            raise UserError(f"{path}: key {double!r} stands twice in one object.")
        return mapping

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}.") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply.") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: not valid JSON: {error}.") from error


def key_place(path: Path, dotted: str) -> str:
    """`file:line` of a dotted key in a YAML file; `file` where the line can't be told."""
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
