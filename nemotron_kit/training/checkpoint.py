"""Checkpoints on disk: a folder per step that appears whole or not at all, and says what is in it."""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import fsync_dir, write_json

RECORD = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8})\Z")
# Debris of a killed writer is removed only when no living one can own it any more.
_LEASE_SECONDS = 3600


def write(folder: Path, step: int, fill: Callable[[Path], dict[str, Any]]) -> Path:
    """Write the checkpoint of `step` and return its folder, `<folder>/step-<step>`.

    `fill` writes files into the folder it is given and returns the record's other entries. Everything is written aside,
    synced, and renamed at the end: a checkpoint is there whole and durable, or not there. NemotronError when the disk
    refuses; earlier checkpoints are untouched.
    """
    final = folder / f"step-{step:08d}"
    if (final / RECORD).is_file():  # the same step of the same run: the same content
        return final
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{final.name}.{secrets.token_hex(4)}.tmp"
    try:
        aside.mkdir()
        record = {"step": step, **fill(aside)}
        write_json(aside / RECORD, {**record, "files": seal(aside)})
        aside.rename(final)
        fsync_dir(folder)
    except OSError as error:
        raise NemotronError(
            f"{final}: the checkpoint can't be written: {error.strerror or error}.",
            hint="Earlier checkpoints are intact; free some space, or set another checkpoint.save, and start again.",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def seal(folder: Path) -> dict[str, dict[str, Any]]:
    """Make every file below `folder` durable; {relative path: {size, sha256}} of them all."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": digest}
    for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        fsync_dir(inner)
    return files


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, or None."""
    return max(_all(folder), default=None, key=lambda path: path.name)


def read(path: Path, *, verify: bool) -> dict[str, Any]:
    """The record of a checkpoint. UserError when it is damaged; `verify` reads every file and compares its sha256."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        files = record["files"]
        damaged = [name for name, entry in files.items() if not _intact(path / name, entry, verify)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path / RECORD}: the checkpoint's record can't be read ({error}).", hint=_around(path)
        ) from error
    if damaged:
        raise UserError(f"{path / damaged[0]}: the file is missing, or not what was saved.", hint=_around(path))
    return dict(record)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what killed writers left."""
    for path in sorted(_all(folder))[:-keep]:
        gone = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        path.rename(gone)  # it stops being a checkpoint at once, not file by file
        shutil.rmtree(gone)
    for debris in folder.glob(".*.tmp"):
        if time.time() - debris.stat().st_mtime > _LEASE_SECONDS:
            shutil.rmtree(debris)


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if _NAME.match(path.name) and path.is_dir()]


def _intact(path: Path, entry: dict[str, Any], verify: bool) -> bool:
    if not path.is_file() or path.stat().st_size != entry["size"]:
        return False
    if not verify:
        return True
    with path.open("rb") as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"])


def _around(path: Path) -> str:
    others = sorted(other.name for other in _all(path.parent) if other != path)
    if others:
        return f"Remove {path} to go on from {others[-1]}."
    return f"Remove {path} to start anew."
