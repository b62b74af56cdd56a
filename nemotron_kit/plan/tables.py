"""The reserved tables of env.toml: [wandb], [artifacts], [cache], [cli]. Which keys they have, and of what type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.envfile import EnvFile, read_env_file
from nemotron_kit.errors import UserError, nearest, sentence

if TYPE_CHECKING:
    from nemotron_kit.artifacts.wandb import WandbConfig

TEXT, TEXTS, FLAG, SIZE = "text", "a list of texts", "true or false", "bytes, as a number or text"
KEYS: dict[str, dict[str, str]] = {
    "wandb": {
        "project": TEXT,
        "entity": TEXT,
        "run_name": TEXT,
        "name": TEXT,
        "tags": TEXTS,
        "notes": TEXT,
        "enabled": FLAG,
    },
    "artifacts": {"backend": TEXT, "root": TEXT, "mode": TEXT, "hash_limit": SIZE},
    "cache": {"git_dir": TEXT},
    "cli": {"theme": TEXT, "recipes": TEXTS},
}
CHOICES = {("artifacts", "backend"): ("file", "wandb"), ("artifacts", "mode"): ("private", "group")}


def reserved_table(env: EnvFile, name: str) -> dict[str, Any]:
    """One reserved table, checked: UserError with file, line and nearest key; {} when it is absent."""
    table = env.table(name)
    for key, value in table.items():
        if key not in KEYS[name]:
            found = nearest(key, KEYS[name])
            raise UserError(f"{_where(env, name, key)}: no such key.", hint=sentence(found))
        expected = KEYS[name][key]
        if not _fits(value, expected):
            raise UserError(f"{_where(env, name, key)}: expected {expected}, got {value!r} ({type(value).__name__}).")
        choices = CHOICES.get((name, key))
        if choices and value not in choices:
            raise UserError(f"{_where(env, name, key)}: {value!r} is none of {', '.join(choices)}.")
    return dict(table)


def check_reserved_tables(env: EnvFile) -> None:
    """Check all four: a misspelt key must not be passed over in silence."""
    for name in KEYS:
        reserved_table(env, name)


def check_run_wandb(table: Any) -> None:
    """Check a job's `run.wandb`, wherever it was set: the keys of [wandb], null where nothing is meant."""
    if not isinstance(table, Mapping):
        raise UserError(f"run.wandb: expected a block of settings, got {table!r}.")
    for key, value in table.items():
        if key not in KEYS["wandb"]:
            raise UserError(f"run.wandb.{key}: no such setting.", hint=sentence(nearest(key, KEYS["wandb"])))
        expected = KEYS["wandb"][key]
        number = expected == TEXT and isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not number and not _fits(value, expected):
            raise UserError(f"run.wandb.{key}: expected {expected}, got {value!r} ({type(value).__name__}).")


def load_wandb_config(config_path: str | Path | None = None) -> WandbConfig | None:
    """The [wandb] table of env.toml, whose presence turns tracking on; None when there is no table or no file."""
    env = read_env_file(Path(config_path).expanduser() if config_path is not None else None)
    if "wandb" not in env.tables:
        return None
    table = reserved_table(env, "wandb")
    if "name" in table:
        if "run_name" in table:
            raise UserError(f"{_where(env, 'wandb', 'name')}: run_name, which means the same, is set too.")
        table["run_name"] = table.pop("name")
    if not table.get("project") and table.get("enabled", True):
        raise UserError(f"{_where(env, 'wandb')}: project is missing.", hint='Add project = "…", or enabled = false.')
    from nemotron_kit.artifacts.wandb import WandbConfig

    return WandbConfig(**table)


def _fits(value: Any, expected: str) -> bool:
    if expected == TEXT:
        return isinstance(value, str)
    if expected == FLAG:
        return isinstance(value, bool)
    if expected == SIZE:
        return isinstance(value, int | str) and not isinstance(value, bool)
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _where(env: EnvFile, *key: str) -> str:
    """`/home/me/env.toml:7: [wandb] project`."""
    from nemotron_kit.plan.toml_lines import key_lines, line_of

    line = line_of(key_lines(env.path.read_text(encoding="utf-8-sig")), *key) if env.path else None
    return f"{env.path}:{line or 1}: [{key[0]}]{''.join(f' {part}' for part in key[1:])}"
