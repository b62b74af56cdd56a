"""What launches leave on a target beside their runs (code, kits, repositories), and which of it nobody needs now."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.ids import is_run_id

# Folder below the root → what one thing in it is called.
KINDS = {"code": "the code of a launch", "kit": "the kit", "repositories": "a repository"}
# What launches call them. Anything else is somebody else's: the root may be a home.
_OURS = {
    "code": re.compile(r"[0-9a-f]{64}\.tar\.gz"),
    "kit": re.compile(r"[0-9a-f]{32}"),
    "repositories": re.compile(r"[A-Za-z0-9._-]+-[0-9a-f]{12}"),
}
# Where a run's files name what it needs: its job's spec, its scripts, which code it has.
_TELLING = ("*.json", "jobs/*/*.json", "jobs/*/*.sh", "slurm/*")


def clean(payload: bytes, *, root: str, unused_seconds: float, remove: bool) -> tuple[list[dict[str, Any]], bytes]:
    """What has not been used for so long, and no unfinished run names: `[{"what", "path", "bytes"}]`, removed if asked;
    what could not be has an `"error"`, and keeps nothing else.

    What a run names that is not known to be over stays, however old it is.
    """
    del payload
    before = time.time() - unused_seconds
    old = list(_old(Path(root), before))
    needed = _named(Path(root), {_name(path) for path in old}) if old else set()
    found = []
    for path in (path for path in old if _name(path) not in needed):
        entry: dict[str, Any] = {"what": KINDS[path.parent.name], "path": str(path), "bytes": _bytes(path)}
        # Reading what the runs name may take long: a launch that came meanwhile has said that it uses it.
        if _last_used(path) >= before:
            continue
        try:
            if remove:
                _remove(path)
        except OSError as error:
            entry["error"] = error.strerror or str(error)
        found.append(entry)
    return found, b""


def used(path: Path) -> None:
    """Note that what lies there is in use now."""
    os.utime(path)


def _old(root: Path, before: float) -> Iterator[Path]:
    for kind in KINDS:
        folder = root / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            ours = _OURS[kind].fullmatch(path.name) and not path.is_symlink()
            if ours and _last_used(path) < before and path not in Path(__file__).parents:  # the kit that runs here
                yield path


def _last_used(path: Path) -> float:
    """In seconds since the epoch; never ago for what another has removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _name(path: Path) -> str:
    """What runs call it: a digest, a hash, a folder's name."""
    return path.name.partition(".tar")[0]


def _named(root: Path, names: Collection[str]) -> set[str]:
    """Those of `names` that stand in the files of runs that are not over."""
    found: set[str] = set()
    runs = root / "runs"
    for folder in runs.iterdir() if runs.is_dir() else ():
        if is_run_id(folder.name) and not _is_over(RunFolder(folder)):
            text = b"\n".join(_texts(folder))
            found |= {name for name in names if name.encode() in text}
    return found


def _is_over(run: RunFolder) -> bool:
    jobs = run.jobs()
    return bool(jobs) and all(job.state().terminal for job in jobs)


def _texts(folder: Path) -> Iterator[bytes]:
    for pattern in _TELLING:
        for path in folder.glob(pattern):
            with suppress(FileNotFoundError):  # one that is being written, or a run that is being removed
                if path.is_file():
                    yield path.read_bytes()


def _bytes(path: Path) -> int:
    """Another may be cleaning at the same time."""
    total = 0
    for each in path.rglob("*") if path.is_dir() else [path]:
        with suppress(FileNotFoundError):
            total += each.lstat().st_size
    return total


def _remove(path: Path) -> None:
    """A folder vanishes whole: first from its name."""
    if not path.is_dir():
        path.unlink()
        return
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    path.rename(aside)
    shutil.rmtree(aside)
