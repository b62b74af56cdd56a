"""Finds and reads env.toml. The tables are interpreted by the packages that use them."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.files import read_regular
from nemotron_kit.home import expand_user, user_folder
from nemotron_kit.lazy import Value
from nemotron_kit.ownership import untrusted_reason

_SETTLE_NS = 2 * 10**9
RESERVED = frozenset({"wandb", "artifacts", "cache", "cli", "tracking"})


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
