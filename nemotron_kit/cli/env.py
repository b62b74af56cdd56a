"""Where home and env.toml are, without pathlib: the same answers as home.py and envfile.py, in time for a help page.

tests/unit/cli/test_env.py holds the two to each other.
"""

# pathlib alone costs as much as the rest of a help page.
# ruff: noqa: PTH109, PTH110, PTH111, PTH113, PTH117, PTH118, PTH120, PTH123
from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RESERVED = ("wandb", "artifacts", "cache", "cli")


def home() -> str:
    """`$NEMOTRON_HOME`, or ~/.nemotron. UserError where `~` means nothing."""
    named = os.environ.get("NEMOTRON_HOME") or "~/.nemotron"
    if (named == "~" or named.startswith("~/")) and not _has_home():
        from nemotron_kit.home import check_home

        check_home()
    return os.path.join(os.getcwd(), os.path.expanduser(named))


def _has_home() -> bool:
    return "HOME" not in os.environ or os.path.isabs(os.environ["HOME"])


def find() -> str | None:
    """The env.toml that envfile.find_env_file finds; what `NEMOTRON_ENV_FILE` names even when it isn't there."""
    named = os.environ.get("NEMOTRON_ENV_FILE")
    if named:
        return os.path.join(os.getcwd(), os.path.expanduser(named))
    folders = [*_project(os.getcwd()), *([os.path.expanduser("~/.config/nemotron")] if _has_home() else [])]
    files = (os.path.join(folder, "env.toml") for folder in folders)
    return next((file for file in files if os.path.isfile(file)), None)


def _project(start: str) -> list[str]:
    """From `start` up to the first folder with a pyproject.toml or .git; `start` alone when there is none."""
    folders = [start]
    while True:
        folder = folders[-1]
        if any(os.path.exists(os.path.join(folder, mark)) for mark in ("pyproject.toml", ".git")):
            return folders
        above = os.path.dirname(folder)
        if above == folder:
            return [start]
        folders.append(above)


def artifacts_root() -> str:
    """The registry's folder on this machine, as artifacts.registry.open_registry() has it."""
    table, path = tables().get("artifacts"), find()
    named = table.get("root") if isinstance(table, dict) else None
    if isinstance(named, str) and path is not None:
        return os.path.join(os.path.dirname(path), os.path.expanduser(named.removeprefix("file://")))
    return os.path.join(home(), "artifacts")


def tables() -> dict[str, Any]:
    """The tables of env.toml; {} where there is none, or none that is read (completion has nothing to say then)."""
    path = find()
    if path is None:
        return {}
    import tomllib

    from nemotron_kit.ownership import strangers

    try:
        if strangers(path):
            return {}
        with open(path, encoding="utf-8-sig") as file:
            return tomllib.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}
