"""Which code a launch stands on, for its record: the kit's version, the commit, whether anything differs from it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from nemotron_kit import __version__

# A work tree so large that git needs longer than this is recorded by its commit alone.
_SECONDS = 2.0


def code_facts() -> dict[str, Any]:
    """`{"kit", "python", "folder", "commit", "dirty"}` of the working folder. `commit` is None outside a git work tree
    and before the first commit, `dirty` None where it isn't known. Starts git once, and only in a work tree."""
    here = Path.cwd()
    commit, dirty = _git(here) if any((folder / ".git").exists() for folder in (here, *here.parents)) else (None, None)
    return {
        "kit": __version__,
        "python": platform.python_version(),
        "folder": str(here),
        "commit": commit,
        "dirty": dirty,
    }


def _git(folder: Path) -> tuple[str | None, bool | None]:
    status = _ask(folder, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=normal")
    if status is None:
        commit = _ask(folder, "rev-parse", "--verify", "HEAD")
        return (commit.strip() if commit else None), None
    lines = [line for line in status.split("\0") if line]
    oid = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    return None if oid == "(initial)" else oid, any(not line.startswith("#") for line in lines)


def _ask(folder: Path, *words: str) -> str | None:
    """git's answer; None where it has none to give, or not in time."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        # fsmonitor is a program that a repository's own config names.
        done = subprocess.run(
            ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
