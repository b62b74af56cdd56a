"""How anything gets into a registry: prepared under a hidden name in the same folder, synced, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.sealed import render_sealed
from nemotron_kit.artifacts.store import Modes
from nemotron_kit.errors import NemotronError
from nemotron_kit.files import fsync_dir, write_text

STAGE = ".tmp-"
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


def make_folder(folder: Path, modes: Modes) -> None:
    """Make `folder` and its missing parents, and make their names durable. An existing folder is left as it is."""
    if folder.is_dir():
        return
    make_folder(folder.parent, modes)
    with contextlib.suppress(FileExistsError):
        _mkdir(folder, modes)
        fsync_dir(folder.parent)


def make_below(top: Path, folder: Path, modes: Modes) -> None:
    """Make `folder` and its missing parents below `top`, durably. FileNotFoundError where `top` itself is gone: a
    registry that was moved away meanwhile is not begun anew in its old place."""
    if folder.is_dir():
        return
    if folder.parent != top:
        make_below(top, folder.parent, modes)
    with contextlib.suppress(FileExistsError):
        _mkdir(folder, modes)
        fsync_dir(folder.parent)


def touch(path: Path, modes: Modes, text: str = "") -> None:
    """Make a small file that readers do not rely on to be whole."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, modes.file), "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(text)
    if modes.exact:
        path.chmod(modes.file)


@contextlib.contextmanager
def staged(folder: Path, modes: Modes) -> Iterator[Path]:
    """A new hidden folder inside `folder`, so on its file system. What is left in it at the end is removed."""
    stage = folder / f"{STAGE}{secrets.token_hex(8)}"
    _mkdir(stage, modes)
    try:
        yield stage
    finally:
        discard(stage)


def write_sealed(path: Path, document: dict[str, Any], modes: Modes) -> None:
    """Write a sealed JSON document, durably."""
    write_text(path, render_sealed(document), mode=modes.file)
    if modes.exact:
        path.chmod(modes.file)


def publish(stage: Path, target: Path) -> bool:
    """Rename a staged folder to `target`, durably. False if `target` is there already.

    A file server that loses its answer can say no to a rename that it has done: after False, look whose `target` is.
    """
    try:
        os.rename(stage, target)  # noqa: PTH104
    except OSError as error:
        if error.errno in _TAKEN or (error.errno == errno.ENOENT and target.exists()):
            return False
        raise
    fsync_dir(target.parent)
    return True


def replace_sealed(path: Path, document: dict[str, Any], modes: Modes) -> None:
    """Put a small document in place of the one at `path`, whole at any moment and with its final permissions."""
    make_below(path.parent.parent, path.parent, modes)
    with staged(path.parent, modes) as stage:
        write_sealed(stage / path.name, document, modes)
        os.replace(stage / path.name, path)  # noqa: PTH105
        fsync_dir(path.parent)


def discard(stage: Path) -> bool:
    """Remove a staged folder and the plain files in it; False if something is in the way."""
    try:
        if not stage.is_dir():
            stage.unlink()
            return True
        for entry in list(stage.iterdir()):
            entry.unlink()
        stage.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # invisible to readers; gc comes by later
    return True


def collect_garbage(folder: Path, lease_s: float, *, dry_run: bool = False) -> list[Path]:
    """Remove what killed writers left in `folder`, if it is older than `lease_s` seconds. Returns what went."""
    removed = []
    for stage in sorted(folder.glob(f"{STAGE}*")) if folder.is_dir() else []:
        with contextlib.suppress(FileNotFoundError):  # its writer was alive after all, and is done
            if time.time() - stage.stat().st_mtime >= lease_s and (dry_run or discard(stage)):
                removed.append(stage)
    return removed


@contextlib.contextmanager
def writing_to(root: Path) -> Iterator[None]:
    """Turn the system's refusals into one sentence that names the registry."""
    try:
        yield
    except OSError as error:
        raise NemotronError(
            f"The artifact registry {root} can't be written: {error.strerror or error} ({error.filename or root}).",
            hint="Nothing half-written is visible in it. Free some space, or name another folder: [artifacts] root.",
        ) from error


def _mkdir(folder: Path, modes: Modes) -> None:
    folder.mkdir(mode=modes.folder)
    if modes.exact:
        folder.chmod(modes.folder)
