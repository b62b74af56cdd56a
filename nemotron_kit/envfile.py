"""Finds and reads env.toml; tells the line of each key, and checks its reserved tables. The others are profiles."""

from __future__ import annotations

import copy
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError, near
from nemotron_kit.files import read_regular
from nemotron_kit.home import expand_user, user_folder
from nemotron_kit.lazy import Value
from nemotron_kit.ownership import untrusted_reason

_SETTLE_NS = 2 * 10**9


@dataclass(frozen=True, eq=False, repr=False)
class EnvFile(Value):
    """The tables of one env.toml; `path` is None when there is none."""

    path: Path | None = None
    tables: dict[str, Any] = field(default_factory=dict)

    def table(self, name: str) -> dict[str, Any]:
        """One of the reserved tables; {} if it is absent. Raises UserError if it is not a table."""
        table = self.tables.get(name, {})
        if not isinstance(table, dict):
            raise UserError(f"{self.path}: [{name}] must be a table.", hint=f"Write [{name}] on a line of its own.")
        return table

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the file are relative to."""
        return self.path.parent if self.path else Path.cwd()


def find_env_file() -> Path | None:
    """`$NEMOTRON_ENV_FILE`; else the first env.toml from the working folder up to the project, the first folder with a
    pyproject.toml or .git (without one: only in the working folder); else ~/.config/nemotron/env.toml. None if there is
    none."""
    named = os.environ.get("NEMOTRON_ENV_FILE")
    if named:
        path = expand_user(named)
        if not path.is_file():
            raise UserError(f"NEMOTRON_ENV_FILE: there is no file {named}.")
        return path.absolute()
    passed = [Path.cwd(), *Path.cwd().parents]
    marks = ("pyproject.toml", ".git")
    project = next((at for at, folder in enumerate(passed) if any((folder / mark).exists() for mark in marks)), 0)
    home = user_folder()
    for folder in (*passed[: project + 1], *([home / ".config/nemotron"] if home else [])):
        if (folder / "env.toml").is_file():
            return folder / "env.toml"
    return None


def unread_env_file() -> str:
    """A hint at an env.toml above the working folder that `find_env_file` does not read, since no project holds both;
    "" without one, or if another one is read."""
    above = next((folder for folder in Path.cwd().parents if (folder / "env.toml").is_file()), None)
    if above is None or find_env_file() is not None:
        return ""
    return (
        f"{above}/env.toml is not read from here: no pyproject.toml or .git marks {above} as a project. "
        "Run the command there, or set NEMOTRON_ENV_FILE."
    )


def read_env_file(path: Path | None = None) -> EnvFile:
    """The env.toml at `path`, or the one that `find_env_file` finds; an empty one when there is none.

    Raises UserError for invalid TOML, and for a file that other users can write: it decides what runs, and where.
    """
    found = path or find_env_file()
    if found is None:
        return EnvFile()
    import tomllib

    try:
        # The files in the folder of this process's job are trusted: on a cloud's volume they may have another owner.
        job = os.environ.get("NEMO_RUN_DIR")
        if not (job and found == Path(job, "env.toml")) and (why := untrusted_reason(found)):
            raise UserError(
                f"{found} {why}, and it decides what is run: it is not read.",
                hint="Copy what you trust into your own env.toml; NEMOTRON_ENV_FILE can name a file in another folder.",
            )
        return EnvFile(found, copy.deepcopy(_parsed(found, _state(found))))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = "Correct it: a table is [name], below it key = value, and a text is in quotes."
        raise UserError(f"{found}: not valid TOML: {error}.", hint=hint) from error
    except RecursionError as error:
        raise UserError(f"{found}: nested too deeply.") from error
    except OSError as error:
        raise UserError(f"{found}: {error.strerror}.") from error


@lru_cache(maxsize=8)
def _parsed(path: Path, state: tuple[int, ...]) -> dict[str, Any]:
    """The tables of a file, cached by the file's state, since one launch reads it several times."""
    import tomllib

    del state
    return tomllib.loads(read_regular(path).decode().removeprefix("\ufeff"))


def _state(path: Path) -> tuple[int, ...]:
    """A key that changes when the file does. For a file that was written just now it is always a new one, since the
    file may be written again within one tick of its file system's clock."""
    found = path.stat()
    now = time.time_ns()
    unsettled = now if abs(now - found.st_mtime_ns) < _SETTLE_NS else 0
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, unsettled)


# --- the line of each key


class NoEnvFile(UserError, FileNotFoundError):
    """There is no env.toml, so there are no profiles."""


class Lines:
    """Line numbers in one env.toml. The text is read again only on request."""

    def __init__(self, env: EnvFile) -> None:
        if env.path is None:
            raise NoEnvFile("There is no env.toml.", hint="Profiles are tables in it: [NAME], then executor = …")
        self.path = env.path

    @cached_property
    def _found(self) -> dict[Key, int]:
        return key_lines(self.path.read_text(encoding="utf-8-sig"))

    def line(self, *key: str) -> int | None:
        """The line of a table or key, from 1; that of the nearest table around it if it is not found."""
        return line_of(self._found, *key)

    def short(self, *key: str) -> str:
        """`env.toml:7`, the origin of a value."""
        return f"{self.path.name}:{self.line(*key)}"

    def where(self, table: str, key: str | None = None) -> str:
        """`/home/me/env.toml:7: [C] nodes`: how every error about the file begins."""
        keys = (table,) if key is None else (table, key)
        return f"{self.path}:{self.line(*keys) or 1}: [{table}]" + (f" {key}" if key else "")


_PART = r'(?:"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|[A-Za-z0-9_-]+)'
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_SKIP = r"(?:[ \t\r\n]|#[^\n]*)+"
_HEADER = rf"\[\[?[ \t]*({_DOTTED})[ \t]*\]\]?"
_KEY = rf"({_DOTTED})[ \t]*="
# One step through a value: a whole string or comment, or one character.
_STEP = r'(?s)"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|.'

Key = tuple[str, ...]


def key_lines(text: str) -> dict[Key, int]:
    """The line, from 1, of every table header and key of a valid TOML text; keys inside inline tables are left out."""
    skip, header, of_key, one_step = map(re.compile, (_SKIP, _HEADER, _KEY, _STEP))
    lines: dict[Key, int] = {}
    table: Key = ()
    position = 0
    while position < len(text):
        if match := skip.match(text, position):
            position = match.end()
            continue
        number = text.count("\n", 0, position) + 1
        if match := header.match(text, position):
            table = _parts(match[1])
            lines.setdefault(table, number)
            position = match.end()
        elif match := of_key.match(text, position):
            lines.setdefault(table + _parts(match[1]), number)
            position, depth = match.end(), 0
            while match := one_step.match(text, position):
                if match[0] == "\n" and depth == 0:
                    break  # inside brackets, braces or a string, a newline doesn't end the value
                depth += (match[0] in "[{") - (match[0] in "]}") if len(match[0]) == 1 else 0
                position = match.end()
        else:  # a byte-order mark, or nothing that valid TOML holds
            position += 1
    return lines


def line_of(lines: dict[Key, int], *key: str) -> int | None:
    """The line of `key`, else of the nearest table that holds it."""
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return lines[key[:length]]
    return None


def _parts(dotted: str) -> Key:
    parts = []
    for part in re.findall(_PART, dotted):
        text = part[1:-1] if part[0] in "'\"" else part
        if part[0] == '"':
            with suppress(ValueError):  # JSON has no \U0001F600
                text = str(json.loads(part))
        parts.append(text)
    return tuple(parts)


# --- what values must be, and the reserved tables


TEXT, TEXTS, FLAG, SIZE = "text", "a list of texts", "true or false", "bytes, as a number or text"
INT, TABLES, TABLE = "a whole number", "a list of texts or tables", "a table"
# What a value in env.toml must be, as messages have it → whether one is.
FITS: dict[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    INT: lambda value: isinstance(value, int) and not isinstance(value, bool),
    SIZE: lambda value: isinstance(value, int | str) and not isinstance(value, bool),
    FLAG: lambda value: isinstance(value, bool),
    TEXTS: lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    TABLES: lambda value: isinstance(value, list) and all(isinstance(item, str | dict) for item in value),
    TABLE: lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value),
}
# The reserved tables: key → what its value must be, and what it means.
KEYS: dict[str, dict[str, tuple[str, str]]] = {
    "wandb": {
        "project": (TEXT, "the project that runs are tracked in; without one nothing is tracked"),
        "entity": (TEXT, "the user or team that owns it (default: that of the login)"),
        "run_name": (TEXT, "the name of the W&B run"),
        "name": (TEXT, "the same as run_name"),
        "tags": (TEXTS, "tags of the W&B run"),
        "notes": (TEXT, "a note on the W&B run"),
        "enabled": (FLAG, "false: track nothing"),
    },
    "artifacts": {
        "backend": (
            TEXT,
            "both register in files; file: log no artifacts to W&B; wandb: refuse to launch without a W&B project",
        ),
        "root": (TEXT, "the registry's folder (default: artifacts in NEMOTRON_HOME)"),
        "mode": (TEXT, "private, or group: the group may read and write"),
        "hash_limit": (SIZE, "larger files are identified by size and time only: 50GB (default: no limit)"),
    },
    "cache": {"git_dir": (TEXT, "the folder for repositories that ${auto_mount:git+…} fetches")},
    "cli": {
        "theme": (TEXT, "the Pygments style of the config in a dry-run"),
        "recipes": (TEXTS, "folders with recipes, relative to env.toml"),
    },
    "tracking": {"tensorboard": (FLAG, "write event files for TensorBoard in each job's folder")},
}
RESERVED = frozenset(KEYS)
CHOICES = {("artifacts", "backend"): ("file", "wandb"), ("artifacts", "mode"): ("private", "group")}


def reserved_table(env: EnvFile, name: str) -> dict[str, Any]:
    """One reserved table, a copy, checked: UserError with file, line and nearest key; {} when it is absent."""
    table = env.table(name)
    for key, value in table.items():
        if key not in KEYS[name]:
            raise UserError(f"{Lines(env).where(name, key)}: no such key.", hint=near(key, KEYS[name]))
        expected, _ = KEYS[name][key]
        if not FITS[expected](value):
            raise UserError(
                f"{Lines(env).where(name, key)}: expected {expected}, got {value!r} ({type(value).__name__})."
            )
        choices = CHOICES.get((name, key))
        if choices and value not in choices:
            raise UserError(f"{Lines(env).where(name, key)}: {value!r} is none of {', '.join(choices)}.")
    return dict(table)


def check_reserved_tables(env: EnvFile) -> None:
    """Check all of them, so that a misspelt key is not ignored silently."""
    for name in KEYS:
        reserved_table(env, name)
