"""The profiles in env.toml: `extends` resolved, every value checked, with its origin."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.envfile import (
    FITS,
    KEYS,
    RESERVED,
    TEXT,
    EnvFile,
    Lines,
    NoEnvFile,
    find_env_file,
    read_env_file,
    reserved_table,
    unread_env_file,
)
from nemotron_kit.errors import UserError, near
from nemotron_kit.home import expand_user
from nemotron_kit.lazy import Value
from nemotron_kit.spec.runconfig import (
    ProfileError,
    RunConfig,
    check_value,
    field_name,
    resolve_partition,
    with_overrides,
)

if TYPE_CHECKING:
    from nemotron_kit.artifacts.wandb import WandbConfig


def check_run_wandb(table: Any) -> None:
    """Check a job's `run.wandb`, wherever it was set: the keys of [wandb], null where nothing is meant."""
    if not isinstance(table, Mapping):
        raise UserError(f"run.wandb: expected a block of settings, got {table!r}.")
    for key, value in table.items():
        if key not in KEYS["wandb"]:
            raise UserError(f"run.wandb.{key}: no such setting.", hint=near(key, KEYS["wandb"]))
        expected, _ = KEYS["wandb"][key]
        number = expected == TEXT and isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not number and not FITS[expected](value):
            raise UserError(f"run.wandb.{key}: expected {expected}, got {value!r} ({type(value).__name__}).")


def load_wandb_config(config_path: str | Path | None = None) -> WandbConfig | None:
    """The [wandb] table of env.toml, whose presence turns tracking on; None when there is no table or no file."""
    env = read_env_file(expand_user(config_path) if config_path is not None else None)
    if "wandb" not in env.tables:
        return None
    table = reserved_table(env, "wandb")
    if "name" in table:
        if "run_name" in table:
            raise UserError(f"{Lines(env).where('wandb', 'name')}: run_name, which means the same, is set too.")
        table["run_name"] = table.pop("name")
    if not table.get("project") and table.get("enabled", True):
        raise UserError(
            f"{Lines(env).where('wandb')}: project is missing.", hint='Add project = "…", or enabled = false.'
        )
    from nemotron_kit.artifacts.wandb import WandbConfig

    return WandbConfig(**table)


def names(env: EnvFile) -> list[str]:
    """The names of the profiles in env.toml, sorted."""
    return sorted(name for name, table in env.tables.items() if isinstance(table, dict) and name not in RESERVED)


def chain_of(env: EnvFile, name: str, lines: Lines) -> Iterator[str]:
    """The profile, its parent, the parent's parent, …"""
    _check_profile_exists(env, name, str(lines.path))
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
            raise ProfileError(f"{where}: the profiles form a circle: {' → '.join([*passed, parent])}.")
        _check_profile_exists(env, parent, where)
        passed.append(parent)
        name = parent


def _check_profile_exists(env: EnvFile, name: str, where: str) -> None:
    if name in RESERVED:
        raise ProfileError(f"{where}: [{name}] is no profile: that table is reserved.", hint=near("", names(env)))
    if name not in env.tables:
        hint = near(name, names(env))
        if not hint.startswith("Did you mean"):
            hint = f"{hint}\n{lines_for(name)}" if hint else lines_for(name)
        raise ProfileError(f"{where}: there is no profile {name!r}.", hint=hint)
    if not isinstance(env.tables[name], dict):
        raise ProfileError(f"{where}: {name} is a single value, no profile.", hint=f"A profile is a table: [{name}].")


def lines_for(name: str) -> str:
    """What to add to env.toml for a profile that it lacks."""
    plain = re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None
    bare = name if plain else json.dumps(name)
    asks = f" `nemotron init --profile {name}` asks for the fields, writes and checks them." if plain else ""
    return (
        f'Add it to env.toml, for a Slurm cluster as\n[{bare}]\nexecutor = "slurm"\naccount = "…"\npartition = "…"\n'
        f'or with executor = "local" for this machine.{asks}'
    )


def checked(table: Mapping[str, Any], name: str, lines: Lines) -> Iterator[tuple[str, Any]]:
    """(field, value) of what one table sets, checked. Raises ProfileError with file and line."""
    given = ((lines.where(name, key), key, value) for key, value in table.items() if key != _RESOURCES)
    for where, wanted, value in _by_field(given):
        if wanted != "extends":
            yield wanted, check_value(wanted, value, where)


def _by_field(entries: Iterable[tuple[str, str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """(where, field, value) for the (where, key, value) of one table. Raises ProfileError for a key that is no field,
    and for the second of two keys of the same field."""
    given: dict[str, str] = {}
    for where, key, value in entries:
        if key.replace("-", "_") != key:
            raise ProfileError(f"{where}: no such field.", hint=f"Did you mean {key.replace('-', '_')}?")
        wanted = field_name(key, where)
        if wanted in given:
            raise ProfileError(f"{where}: the same field as {given[wanted]}, which is set too.")
        given[wanted] = key
        yield where, wanted, value


# `[C.resources.prep]`: the values that override those of the profile C for jobs of the class `prep`.
_RESOURCES = "resources"
# Fields that a class can't set: all jobs of a launch have the same target.
_TARGET_FIELDS = frozenset(
    {"executor", "extends", "tunnel", "host", "user", "identity", "remote_job_dir", "artifacts_root"}
)


def _classes(env: EnvFile, table: str, lines: Lines) -> Iterator[tuple[str, str, Any, str]]:
    """(class, field, value, its origin) of the resource classes that one table has, checked."""
    classes = env.tables[table].get(_RESOURCES, {})
    if not isinstance(classes, dict):
        what = f"expected tables [{table}.resources.CLASS], got {classes!r}."
        raise ProfileError(f"{lines.where(table, _RESOURCES)}: {what}")
    for name, values in classes.items():
        header = f"[{table}.resources.{name}]"
        if not isinstance(values, dict):
            raise ProfileError(
                f"{lines.where(table, _RESOURCES)}: {name} is {values!r}, no table.",
                hint=f"A class is a table: {header}.",
            )
        numbers = {key: lines.line(table, _RESOURCES, name, key) or 1 for key in values}
        given = ((f"{lines.path}:{numbers[key]}: {header} {key}", key, value) for key, value in values.items())
        for line, (where, wanted, value) in zip(numbers.values(), _by_field(given), strict=True):
            if wanted in _TARGET_FIELDS:
                raise ProfileError(
                    f"{where}: only the profile decides where jobs run, not a class.", hint=f"Set it in [{table}]."
                )
            yield name, wanted, check_value(wanted, value, where), f"{lines.path.name}:{line} {header}"


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


@dataclass(frozen=True, eq=False, repr=False)
class Profile(Value):
    """A resolved profile. `origins` gives for each field that is set where its value is from: `env.toml:12 [base]`,
    `config file`, `command line`; the others have their defaults. `chain` is the profile and what it extends, in order.
    `classes` are its resource classes: name → field → (value, origin).
    """

    name: str | None
    config: RunConfig
    origins: Mapping[str, str] = field(default_factory=dict)
    chain: tuple[str, ...] = ()
    path: Path | None = None
    classes: Mapping[str, Mapping[str, tuple[Any, str]]] = field(default_factory=dict)


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
    classes: dict[str, dict[str, tuple[Any, str]]] = {}
    chain = list(chain_of(env, name, lines))
    for table in reversed(chain):
        for each, key, value, origin in _classes(env, table, lines):
            classes.setdefault(each, {})[key] = (value, origin)
        for key, value in checked(env.tables[table], table, lines):
            values[key] = value
            origins[key] = lines.short(table, key) + (f" [{table}]" if table != name else "")
    return Profile(name, RunConfig(**values), origins, tuple(chain), lines.path, classes)


def effective_profile(
    name: str | None,
    *,
    file_env: Mapping[str, Any] | None = None,
    command_line: Mapping[str, Any] | None = None,
    config_path: str | Path | None = None,
    resources: str | None = None,
) -> Profile:
    """The settings of a launch: the command line takes precedence over the profile, the profile over a config file's
    `run.env`.

    `name` None, and `local` where no env.toml has it, are this machine without a profile. Values are text or typed, as
    for `with_overrides`. `resources` is the class of the job, whose values override the profile's if it has that class.
    """
    if name is None or (name == "local" and name not in list_run_profiles(config_path)):
        profile = Profile(name, RunConfig())  # this machine
    else:
        profile = read_profile(name, config_path)
    if wanted := profile.classes.get(resources or ""):
        config = replace(profile.config, **{key: value for key, (value, _) in wanted.items()})
        origins = {**profile.origins, **{key: origin for key, (_, origin) in wanted.items()}}
        profile = replace(profile, config=config, origins=origins)
    from_file = _fields(file_env or {})
    from_file = {key: value for key, value in from_file.items() if key not in profile.origins and value is not None}
    given = _fields(command_line or {})
    config = with_overrides(profile.config, from_file, prefix="run.env.")
    config = with_overrides(config, given, prefix="run.env.")
    origins = {
        **profile.origins,
        **dict.fromkeys(from_file, "config file"),
        **dict.fromkeys(given, "command line"),
    }
    return replace(profile, config=config, origins=origins)


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `run.env` by field. Raises ProfileError for an unknown key, and for two keys of one field."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = field_name(key, f"run.env.{key}")
        if name in found:
            raise ProfileError(f"run.env.{key}: {name} is given twice.")
        found[name] = value
    return found


def _open(config_path: str | Path | None, name: str = "NAME") -> EnvFile:
    if config_path is not None:
        path = expand_user(config_path)
        if not path.is_file():
            raise NoEnvFile(f"{path}: no such file.")
        return read_env_file(path)
    try:
        found = find_env_file()
    except UserError as error:  # NEMOTRON_ENV_FILE names what is no file
        raise NoEnvFile(error.message, hint=error.hint) from error
    if found is None:
        raise NoEnvFile(
            f"There is no env.toml in {Path.cwd()}, above it in its project, or in ~/.config/nemotron.",
            hint=unread_env_file() or lines_for(name),
        )
    return read_env_file(found)
