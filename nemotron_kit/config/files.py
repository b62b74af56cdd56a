"""Config files as plain mappings: YAML, TOML and JSON, with the place of every mistake."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from nemotron_kit.config.bombs import refuse_bombs
from nemotron_kit.config.quick import with_libyaml
from nemotron_kit.errors import UserError

ENDINGS = (".yaml", ".yml", ".toml", ".json")
# A config is text that a person wrote; what is larger is a mistake or an attack on the parser.
MAX_BYTES = 4 << 20


def is_path(value: str) -> bool:
    """Whether a `-c` value names a file (it has a `/` or a known ending) and not a config's name."""
    return "/" in value or value.endswith(ENDINGS)


def load_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a config file, interpolations unresolved. Every mistake is a UserError with file, line, column."""
    if not path.is_file():
        raise UserError(f"{path}: no such config file." if not path.exists() else f"{path} is not a file.")
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: unknown ending {path.suffix!r}.", hint=f"Known are {', '.join(ENDINGS)}.")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so not a config.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}.") from error
    loaders = {".toml": _load_toml, ".json": _load_json}
    value = loaders.get(path.suffix, _load_yaml)(path, text)
    if "\\u" in text or "\\U" in text:
        _refuse_half_characters(path, value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a mapping at the top, not a {type(value).__name__}.")
    return value


def _load_yaml(path: Path, text: str) -> Any:
    import yaml
    from omegaconf._utils import get_yaml_loader

    refuse_bombs(path, text)
    # OmegaConf's own safe loader: 1e-3 is a number, a duplicate key is an error.
    theirs = get_yaml_loader()
    try:
        with contextlib.suppress(yaml.YAMLError):  # read again, by the one whose messages people know
            return yaml.load(text, Loader=with_libyaml(theirs))  # noqa: S506
        return yaml.load(text, Loader=theirs)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{place}: not valid YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}.") from error


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

    node: Any = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    line = None
    for part in dotted.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in pairs if key.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return f"{path}:{line}" if line else str(path)
