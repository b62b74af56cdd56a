"""Whose a file is: what another user owns, or anybody may write, decides nothing here and is not run.

root may do anything to this user anyhow, so its files are as good as one's own; under sudo those of the user who called
it are, too. A group that may write is a team that shares a folder on purpose. Without pathlib: help asks as well.
"""

# ruff: noqa: PTH116, PTH118
from __future__ import annotations

import os
import stat


def untrusted_reason(path: str | os.PathLike[str]) -> str | None:
    """Why what lies at `path` can't be trusted ("belongs to another user (uid 12)"), None where it can.

    Of a link, both the link and what it leads to are judged. OSError where there is nothing.
    """
    found = os.stat(path)
    for owner in (found.st_uid, os.lstat(path).st_uid):
        if owner not in _ours():
            return f"belongs to another user (uid {owner})"
    if found.st_mode & stat.S_IWOTH:
        return "can be written by everybody"
    return None


def untrusted_code_reason(folder: str | os.PathLike[str]) -> str | None:
    """The same of a folder of Python code that is to be imported from its parent: a sentence that names the first path
    in it that can't be trusted."""
    folder = os.path.abspath(folder)  # noqa: PTH100
    for path in (os.path.dirname(folder), folder):  # noqa: PTH120
        if why := untrusted_reason(path):
            return f"{path} {why}"
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *(name for name in files if name.endswith((".py", ".pyc", ".so")))):
            path = os.path.join(place, name)
            if os.path.exists(path) and (why := untrusted_reason(path)):  # noqa: PTH110
                return f"{path} {why}"
    return None


def _ours() -> tuple[int, ...]:
    sudo = os.environ.get("SUDO_UID", "")
    return (0, os.geteuid(), *([int(sudo)] if os.geteuid() == 0 and sudo.isdecimal() else []))
