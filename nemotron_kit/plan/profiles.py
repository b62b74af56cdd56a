"""Profiles: the tables of env.toml that say where and how jobs run; `extends` resolved, every value with its origin."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from nemotron_kit.envfile import RESERVED, EnvFile, find_env_file, read_env_file
from nemotron_kit.errors import UserError, nearest
from nemotron_kit.plan.runconfig import ProfileError, RunConfig, field_name, resolve_partition, with_overrides
from nemotron_kit.plan.tables import load_wandb_config
from nemotron_kit.plan.toml_lines import key_lines, line_of

__all__ = [
    "NoEnvFile",
    "Profile",
    "effective_profile",
    "list_run_profiles",
    "load_run_profile",
    "load_wandb_config",
    "read_profile",
    "resolve_partition",
]

# What these hold is run by a shell: an env.toml that somebody else can write must not decide it.
_SHELL_FIELDS = ("startup_commands", "setup")


class NoEnvFile(UserError, FileNotFoundError):
    """There is no env.toml, so there are no profiles."""


@dataclass(frozen=True)
class Profile:
    """A resolved profile. `origins` says for each field that is set where its value stands: `env.toml:12 [base]`,
    `config file`, `command line`; the others have their defaults. `chain` is the profile and what it extends, in order.
    """

    name: str | None
    config: RunConfig
    origins: Mapping[str, str] = field(default_factory=dict)
    chain: tuple[str, ...] = ()
    path: Path | None = None


def load_run_profile(name: str, config_path: str | Path | None = None) -> RunConfig:
    """The profile `name` of env.toml (the one at `config_path`, else the one that is found), `extends` resolved.

    Raises NoEnvFile (a FileNotFoundError) without a file; ProfileError (a ValueError) for a profile or a parent that
    isn't there, a cycle, an unknown key or a wrong type, with file and line.
    """
    return read_profile(name, config_path).config


def list_run_profiles(config_path: str | Path | None = None) -> list[str]:
    """The names of all profiles, sorted; [] when there is no env.toml."""
    try:
        env = _open(config_path)
    except NoEnvFile:
        if config_path is not None:
            raise
        return []
    return _names(env)


def read_profile(name: str, config_path: str | Path | None = None) -> Profile:
    """`load_run_profile`, with the origin of every value."""
    env = _open(config_path)
    lines = _Lines(env)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    chain = list(_chain(env, name, lines))
    for table in reversed(chain):
        for key, value in _checked(env.tables[table], table, lines):
            values[key] = value
            origins[key] = lines.short(table, key) + (f" [{table}]" if table != name else "")
    for key in _SHELL_FIELDS:
        if values.get(key):
            _refuse_foreign(lines.path, f"[{name}] {key}")
    return Profile(name, RunConfig(**values), origins, tuple(chain), lines.path)


def effective_profile(
    name: str | None,
    *,
    file_env: Mapping[str, Any] | None = None,
    command_line: Mapping[str, Any] | None = None,
    config_path: str | Path | None = None,
) -> Profile:
    """What a launch runs with: the command line beats the profile, the profile beats a config file's `run.env`.

    `name` None is this machine without a profile. Values are text or typed, as for `with_overrides`.
    """
    profile = _profile(name, config_path)
    from_file = {field_name(key, f"run.env.{key}"): value for key, value in (file_env or {}).items()}
    from_file = {key: value for key, value in from_file.items() if key not in profile.origins and value is not None}
    given = {field_name(key, f"run.env.{key}"): value for key, value in (command_line or {}).items()}
    config = with_overrides(profile.config, from_file, prefix="run.env.")
    config = with_overrides(config, given, prefix="run.env.")
    origins = {
        **profile.origins,
        **dict.fromkeys(from_file, "config file"),
        **dict.fromkeys(given, "command line"),
    }
    return Profile(profile.name, config, origins, profile.chain, profile.path)


def _profile(name: str | None, config_path: str | Path | None) -> Profile:
    """`local` needs no env.toml: it is this machine, unless a file says otherwise."""
    if name is None or (name == "local" and name not in list_run_profiles(config_path)):
        return Profile(name, RunConfig())
    return read_profile(name, config_path)


class _Lines:
    """Where things stand in one env.toml. The text is read again only when somebody asks."""

    def __init__(self, env: EnvFile) -> None:
        if env.path is None:
            raise NoEnvFile("There is no env.toml.", hint="Profiles are tables in it: [NAME], then executor = …")
        self.path = env.path
        self._found: dict[tuple[str, ...], int] | None = None

    def line(self, *key: str) -> int | None:
        if self._found is None:
            self._found = key_lines(self.path.read_text(encoding="utf-8-sig"))
        return line_of(self._found, *key)

    def short(self, *key: str) -> str:
        return f"{self.path.name}:{self.line(*key)}"

    def where(self, table: str, key: str | None = None) -> str:
        """`/home/me/env.toml:7: [C] nodes`: how every error about the file begins."""
        place = (table,) if key is None else (table, key)
        return f"{self.path}:{self.line(*place) or 1}: [{table}]" + (f" {key}" if key else "")


def _open(config_path: str | Path | None) -> EnvFile:
    if config_path is not None:
        path = Path(config_path).expanduser()
        if not path.is_file():
            raise NoEnvFile(f"{path}: no such file.")
        return read_env_file(path)
    try:
        found = find_env_file()
    except UserError as error:  # NEMOTRON_ENV_FILE names what is no file
        raise NoEnvFile(error.message, hint=error.hint) from error
    if found is None:
        raise NoEnvFile(
            f"There is no env.toml in {Path.cwd()} or above it, nor in ~/.config/nemotron.",
            hint="Profiles are tables in it: [NAME], then executor = …",
        )
    return read_env_file(found)


def _names(env: EnvFile) -> list[str]:
    return sorted(name for name, table in env.tables.items() if isinstance(table, dict) and name not in RESERVED)


def _chain(env: EnvFile, name: str, lines: _Lines) -> Iterator[str]:
    """The profile, its parent, the parent's parent, …"""
    _check_there(env, name, str(lines.path))
    passed = [name]
    while True:
        yield name
        parent = env.tables[name].get("extends")
        if parent is None:
            return
        where = lines.where(name, "extends")
        if not isinstance(parent, str):
            raise ProfileError(f"{where}: expected the name of a profile, got {parent!r}.")
        if parent in passed:
            raise ProfileError(f"{where}: goes round in a circle: {' → '.join([*passed, parent])}.")
        _check_there(env, parent, where)
        passed.append(parent)
        name = parent


def _check_there(env: EnvFile, name: str, where: str) -> None:
    if name in RESERVED:
        raise ProfileError(f"{where}: [{name}] is no profile: that table is reserved.", hint=_there(env, ""))
    if name not in env.tables:
        raise ProfileError(f"{where}: there is no profile {name!r}.", hint=_there(env, name))
    if not isinstance(env.tables[name], dict):
        raise ProfileError(f"{where}: {name} is a single value, no profile.", hint=f"A profile is a table: [{name}].")


def _there(env: EnvFile, name: str) -> str | None:
    found = nearest(name, _names(env))
    return f"{found[:1].upper()}{found[1:]}" if found else None


def _checked(table: Mapping[str, Any], name: str, lines: _Lines) -> Iterator[tuple[str, Any]]:
    """The fields that one table sets, under their own names and of the right types."""
    from nemotron_kit.plan.values import check_value

    seen: dict[str, str] = {}
    for key, value in table.items():
        where = lines.where(name, key)
        if key.replace("-", "_") != key:
            raise ProfileError(f"{where}: no such field.", hint=f"Did you mean {key.replace('-', '_')}?")
        wanted = field_name(key, where)
        if wanted in seen:
            raise ProfileError(f"{where}: the same field as {seen[wanted]}, which is set too.")
        seen[wanted] = key
        if wanted != "extends":
            yield wanted, check_value(wanted, value, where)


def _refuse_foreign(path: Path, what: str) -> None:
    status = path.stat()
    # root can do anything to this user anyhow; so can whoever may write to the file.
    if status.st_uid not in (os.getuid(), 0):
        _foreign(path, what, f"belongs to another user (uid {status.st_uid})")
    if stat.S_IMODE(status.st_mode) & stat.S_IWOTH:
        _foreign(path, what, "can be written by everybody")


def _foreign(path: Path, what: str, why: str) -> NoReturn:
    raise ProfileError(
        f"{path} {why}, and {what} holds shell commands.", hint="Copy what you trust to an env.toml of your own."
    )
