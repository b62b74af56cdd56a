"""The registry that a reference is looked up in: what every back end offers, and which one is opened."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nemotron_kit.artifacts.local import LocalRegistry
from nemotron_kit.artifacts.pin import Pin
from nemotron_kit.artifacts.records import ArtifactVersion, Draft
from nemotron_kit.artifacts.reference import Reference
from nemotron_kit.artifacts.store import MODES
from nemotron_kit.envfile import EnvFile, read_env_file
from nemotron_kit.errors import UserError, nearest, sentence
from nemotron_kit.home import nemotron_home

BACKENDS = ("file", "wandb")
_KEYS = ("backend", "root", "mode", "hash_limit")
_SIZE = re.compile(r"([0-9]+)\s*([kMGT]?i?)B?\Z", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Registry(Protocol):
    """What a back end must offer; `LocalRegistry` says what each of them raises."""

    @property
    def uuid(self) -> str:
        """The registry's own name, so that one registry's v3 is never read as another's; "" while it is empty."""

    def names(self) -> list[str]:
        """Every name with a version."""

    def versions(self, name: str) -> list[int]:
        """The versions of a name, lowest first."""

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of a name, without `latest`."""

    def resolve(self, reference: Reference | str, *, check: bool = True) -> Pin:
        """What a reference stands for now."""

    def verify(self, pin: Pin, *, deep: bool = False) -> ArtifactVersion | None:
        """The record behind a pin, if all that it says still holds; None for a plain path that is there."""

    def record_of(self, pin: Pin) -> ArtifactVersion:
        """The record behind a pin, its files not looked at."""

    def commit(self, draft: Draft) -> Pin:
        """Register a version, or find the one with the same content."""

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Make an alias stand for a version."""


def open_registry(root: str | Path | None = None, *, env: EnvFile | None = None) -> LocalRegistry:
    """The registry at `root`; without one, at the root given to `init()`, else at `[artifacts] root` of env.toml, else
    at $NEMOTRON_HOME/artifacts. Opening creates nothing."""
    settings = artifact_settings(env if env is not None else read_env_file())
    backend = sys.modules.get("nemotron_kit.artifacts.backend")  # nobody has called init() who has not imported it
    config = backend.get_config() if backend is not None else None
    if root is None and config is not None:
        root = config.root
    return LocalRegistry(
        local_root(root) if root is not None else settings["root"],
        mode=settings["mode"],
        hash_limit=settings["hash_limit"],
    )


def artifact_settings(env: EnvFile) -> dict[str, Any]:
    """`[artifacts]` of env.toml, checked: backend, root (a Path), mode, hash_limit (bytes or None)."""
    table = env.table("artifacts")
    where = f"{env.path}: [artifacts]"
    for key in table:
        if key not in _KEYS:
            raise UserError(f"{where} has no key {key!r}.", hint=sentence(nearest(key, _KEYS)))
    root = table.get("root")
    if not isinstance(root, str | None) or root == "":
        raise UserError(f"{where} root is {root!r}, not a folder's path.")
    return {
        "backend": _choice(table, "backend", BACKENDS, where),
        "root": env.folder / local_root(root) if root else nemotron_home() / "artifacts",
        "mode": _choice(table, "mode", tuple(MODES), where),
        "hash_limit": _bytes(table, where),
    }


def local_root(root: str | Path) -> Path:
    """`root` as a path; a URL of a remote store is a UserError."""
    text = str(root).removeprefix("file://")
    # Path() makes one slash of two.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise UserError(
            f"An artifact registry at {root} is not possible yet: only folders are.",
            hint="Name a folder that every node sees: [artifacts] root in env.toml, or init(root=…).",
        )
    return Path(text).expanduser()


def _choice(table: Mapping[str, Any], key: str, known: tuple[str, ...], where: str) -> str:
    value = table.get(key, known[0])
    if value not in known:
        raise UserError(f"{where} {key} is {value!r}.", hint=sentence(nearest(str(value), known)))
    return str(value)


def _bytes(table: Mapping[str, Any], where: str) -> int | None:
    value: object = table.get("hash_limit")
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if not match:
        raise UserError(f"{where} hash_limit is {value!r}.", hint='Give bytes, as a number or as in "50GB".')
    unit = match[2].lower()
    step = 1024 if unit.endswith("i") else 1000
    return int(match[1]) * int(step ** _POWERS[unit.rstrip("i")])
