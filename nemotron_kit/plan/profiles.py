"""Profiles: the tables of env.toml that say where and how jobs run; `extends` resolved, every value with its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_kit.envfile import EnvFile, find_env_file, read_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.plan.profile_tables import Lines, NoEnvFile, chain_of, checked, lines_for, names
from nemotron_kit.plan.runconfig import RunConfig, field_name, resolve_partition, with_overrides
from nemotron_kit.plan.tables import load_wandb_config

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
    return names(env)


def read_profile(name: str, config_path: str | Path | None = None) -> Profile:
    """`load_run_profile`, with the origin of every value."""
    env = _open(config_path, name)
    lines = Lines(env)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    chain = list(chain_of(env, name, lines))
    for table in reversed(chain):
        for key, value in checked(env.tables[table], table, lines):
            values[key] = value
            origins[key] = lines.short(table, key) + (f" [{table}]" if table != name else "")
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


def _open(config_path: str | Path | None, name: str = "NAME") -> EnvFile:
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
            hint=lines_for(name),
        )
    return read_env_file(found)
