"""One profile's tables of env.toml, as they stand there: the chain of `extends`, checked fields, and where each is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_kit.envfile import RESERVED, EnvFile
from nemotron_kit.errors import UserError, nearest, sentence
from nemotron_kit.plan.runconfig import ProfileError, field_name
from nemotron_kit.plan.toml_lines import key_lines, line_of


class NoEnvFile(UserError, FileNotFoundError):
    """There is no env.toml, so there are no profiles."""


class Lines:
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


def names(env: EnvFile) -> list[str]:
    return sorted(name for name, table in env.tables.items() if isinstance(table, dict) and name not in RESERVED)


def chain_of(env: EnvFile, name: str, lines: Lines) -> Iterator[str]:
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
        close = _there(env, name)
        like = close is not None and close.startswith("Did you mean")
        raise ProfileError(
            f"{where}: there is no profile {name!r}.",
            hint=close if like else "\n".join(filter(None, [close, lines_for(name)])),
        )
    if not isinstance(env.tables[name], dict):
        raise ProfileError(f"{where}: {name} is a single value, no profile.", hint=f"A profile is a table: [{name}].")


def lines_for(name: str) -> str:
    """What to add to env.toml for a profile that it lacks."""
    bare = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
    return (
        f'Add it to env.toml, for a Slurm cluster as\n[{bare}]\nexecutor = "slurm"\naccount = "…"\npartition = "…"\n'
        'or with executor = "local" for this machine.'
    )


def _there(env: EnvFile, name: str) -> str | None:
    return sentence(nearest(name, names(env))) or None


def checked(table: Mapping[str, Any], name: str, lines: Lines) -> Iterator[tuple[str, Any]]:
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
