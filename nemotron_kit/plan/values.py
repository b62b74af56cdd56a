"""What may stand in each field of a profile: types checked, text of a command line converted."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from nemotron_kit.errors import nearest
from nemotron_kit.plan.runconfig import DEFAULTS, ProfileError, RunConfig

EXECUTORS = ("local", "docker", "slurm", "skypilot", "dgxcloud", "lepton", "kubeflow")
CHOICES = {
    "executor": EXECUTORS,
    "tunnel": ("local", "ssh"),
    "packager": ("worktree", "git", "pattern", "hybrid", "none"),
    "ray_mode": ("job", "cluster"),
}
_PATTERNS = {
    # A slug, as every name that reaches a scheduler.
    "job_name": re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
    # Never what ssh could take for an option.
    "host": re.compile(r"[A-Za-z0-9_\[:][^\s]*\Z"),
    "user": re.compile(r"[A-Za-z0-9_][^\s@]*\Z"),
}
# Field → the flag of sbatch that it becomes.
_SBATCH = {
    **{name: name for name in ("account", "partition", "time", "mem", "qos", "constraint", "exclude", "gres", "array")},
    **dict.fromkeys(("run_partition", "batch_partition"), "partition"),
    "mem_per_gpu": "mem-per-gpu",
    "mem_per_cpu": "mem-per-cpu",
}
_LIKE = {
    "time": 'Write hours, minutes and seconds, "04:00:00", with days "1-12:00:00", or minutes, "90".',
    **dict.fromkeys(("mem", "mem_per_gpu", "mem_per_cpu"), 'Write a number with K, M, G or T, as in "64G".'),
}
# 0 nodes is a mistake; 0 GPUs or retries is not.
_AT_LEAST_ONE = frozenset(
    {"nproc_per_node", "nodes", "ntasks_per_node", "cpus_per_task", "cpus_per_gpu", "max_segments", "max_parallel"}
)
_SHELL = frozenset({"setup", "startup_commands"})
_COMMA_LISTS = frozenset({"mounts", "secrets", "pvcs"})
_EXPECTED = {
    "str": "text",
    "int": "a whole number",
    "bool": "true or false",
    "list[str]": "a list of texts",
    "list[Any]": "a list of texts or tables",
    "dict[str, Any]": "a table",
}
_KINDS = {field.name: str(field.type).removesuffix(" | None") for field in fields(RunConfig)}
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def check_value(name: str, value: Any, where: str) -> Any:
    """`value` as field `name` holds it, where it is of the right type already (as a TOML file gives it)."""
    if name == "env_vars":
        return _env_vars(value, where)
    if name == "time" and isinstance(value, datetime.time):  # time = 04:00:00, without quotes, is a time of day in TOML
        return value.isoformat()
    kind = _KINDS[name]
    if name == "packager_include_pattern" and isinstance(value, str):
        value = [value]
    if not _CHECKS[kind](value):
        _refuse(name, value, where)
    return _CLEAN.get(kind, _as_it_is)(name, value, where)


def convert(name: str, value: Any, where: str) -> Any:
    """`value` as field `name` holds it: text is read as the field's type, None and `null` are the field's default."""
    if value is None or value == "null":
        return DEFAULTS[name]
    kind = _KINDS[name]
    if isinstance(value, str):
        value = _FROM_TEXT[kind](name, value.strip()) if kind in _FROM_TEXT else value
    elif kind == "str" and isinstance(value, bool | int | float):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    elif isinstance(value, Mapping):
        value = dict(value)
    elif isinstance(value, Sequence):
        value = list(value)
    return check_value(name, value, where)


def _refuse(name: str, value: Any, where: str) -> NoReturn:
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    if name == "app_secret":
        shown = "a value"
    raise ProfileError(f"{where}: expected {_EXPECTED[_KINDS[name]]}, got {shown} ({type(value).__name__}).")


# --- checks and clean-up by kind

_CHECKS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "list[Any]": lambda value: isinstance(value, list) and all(isinstance(item, str | dict) for item in value),
    "dict[str, Any]": lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value),
}


def _clean_text(name: str, value: str, where: str) -> str:
    if name in CHOICES and value not in CHOICES[name]:
        raise ProfileError(f"{where}: {value!r} is none of {', '.join(CHOICES[name])}.", hint=_near(name, value))
    # A newline would end a line of a batch script and begin a command.
    if "\x00" in value or (name not in _SHELL and _CONTROL.search(value)):
        raise ProfileError(f"{where}: {value!r} holds a control character.")
    if not value and name not in _SHELL:
        raise ProfileError(f"{where}: is empty.", hint="Leave the key out where nothing is meant.")
    if name in _SBATCH:
        from nemotron_kit.plan.slurm_flags import flag_fits

        if not flag_fits(_SBATCH[name], value):
            raise ProfileError(
                f"{where}: {value!r} is no value that sbatch --{_SBATCH[name]} takes.", hint=_LIKE.get(name)
            )
    if name in _PATTERNS and not _PATTERNS[name].match(value):
        raise ProfileError(f"{where}: {value!r} can't be a {name}.")
    return value


def _clean_int(name: str, value: int, where: str) -> int:
    least = 1 if name in _AT_LEAST_ONE else 0
    if value < least:
        raise ProfileError(f"{where}: must be at least {least}, got {value}.")
    return value


def _clean_list(name: str, value: list[Any], where: str) -> list[Any]:
    return [_clean_text(name, item, f"{where}[{n}]") if isinstance(item, str) else item for n, item in enumerate(value)]


def _as_it_is(_: str, value: Any, __: str) -> Any:
    return value


_CLEAN: dict[str, Callable[[str, Any, str], Any]] = {
    "str": _clean_text,
    "int": _clean_int,
    "list[str]": _clean_list,
    "list[Any]": _clean_list,
}


def _env_vars(value: Any, where: str) -> list[str]:
    """A table or a list of KEY=VALUE, as a list. Values are never shown: they may be secrets."""
    if isinstance(value, Mapping):
        pairs = [(key, _env_value(item, f"{where}.{key}")) for key, item in value.items()]
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        for number, item in enumerate(value):
            if "=" not in item:
                raise ProfileError(f"{where}[{number}]: expected KEY=VALUE.")
        pairs = [(item.partition("=")[0], item.partition("=")[2]) for item in value]
    else:
        raise ProfileError(f"{where}: expected a list of KEY=VALUE or a table, got {type(value).__name__}.")
    for key, text in pairs:
        if not _ENV_NAME.match(key):
            raise ProfileError(f"{where}: {key!r} is no name of an environment variable.")
        if "\x00" in text:
            raise ProfileError(f"{where}: the value of {key} holds a NUL.")
    return [f"{key}={text}" for key, text in pairs]


def _env_value(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ProfileError(f"{where}: expected text or a number, got {type(value).__name__}.", hint='Quote it: "true".')
    return str(value)


# --- text of a command line


def _text_to_int(_: str, text: str) -> Any:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text


def _text_to_bool(_: str, text: str) -> Any:
    return _WORDS.get(text.lower(), text)


def _text_to_list(name: str, text: str) -> Any:
    """JSON (`["a", "b"]`), a bare list (`[a,b]`), `a,b` where no item can hold a comma, else one item."""
    if text[:1] in ("[", "{"):
        return _text_to_json(name, text)
    return [part.strip() for part in text.split(",")] if name in _COMMA_LISTS else [text]


def _text_to_json(_: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        inner = text[1:-1]
        bare = text.startswith("[") and text.endswith("]") and not set(inner) & set("\"'[]{}")
        return [part.strip() for part in inner.split(",")] if bare and inner.strip() else text


_FROM_TEXT: dict[str, Callable[[str, str], Any]] = {
    "int": _text_to_int,
    "bool": _text_to_bool,
    "list[str]": _text_to_list,
    "list[Any]": _text_to_list,
    "dict[str, Any]": _text_to_json,
}


def _near(name: str, value: str) -> str | None:
    found = nearest(value, CHOICES[name])
    return found[:1].upper() + found[1:] if found.startswith("did") else None
