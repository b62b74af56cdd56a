"""Checks the owner of a file: files that another user owns, or that everybody may write, are neither read as config nor
executed.

root, and under sudo the calling user, are trusted. A folder that is writable for a group is trusted: teams share such
folders on purpose. Does not import pathlib, since help uses it.
"""

# ruff: noqa: PTH116, PTH118
from __future__ import annotations

import os
import stat


def untrusted_reason(path: str | os.PathLike[str]) -> str | None:
    """Why the file at `path` can't be trusted ("belongs to another user (uid 12)"); None if it can.

    For a link, both the link and its target are checked. Raises OSError if there is no file.
    """
    found, user, sudo = os.stat(path), os.geteuid(), os.environ.get("SUDO_UID", "")
    trusted = {0, user, int(sudo) if user == 0 and sudo.isdecimal() else user}
    for owner in (found.st_uid, os.lstat(path).st_uid):
        if owner not in trusted:
            return f"belongs to another user (uid {owner})"
    if found.st_mode & stat.S_IWOTH:
        return "can be written by everybody"
    return None


def untrusted_code_reason(folder: str | os.PathLike[str]) -> str | None:
    """Why a folder of Python code can't be trusted, as a sentence that names the first such path; None if it can."""
    folder = os.path.abspath(folder)  # noqa: PTH100
    for path in (os.path.dirname(folder), folder):  # noqa: PTH120
        if why := untrusted_reason(path):
            return f"{path} {why}"
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *(name for name in files if name.endswith((".py", ".pyc", ".so")))):
            path = os.path.join(parent, name)
            if os.path.exists(path) and (why := untrusted_reason(path)):  # noqa: PTH110
                return f"{path} {why}"
    return None
