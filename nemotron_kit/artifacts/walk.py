"""The files below a folder: what they look like from outside, and the sha256 of what is in them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_kit.artifacts.errors import ArtifactChangedError

METADATA = "metadata.json"

# What a killed writer and an NFS client leave behind is no content.
_DEBRIS = re.compile(r"\..+\.[0-9]+\.[0-9a-f]{8}\.tmp\Z|\.nfs[0-9a-fA-F]+\Z")
# A file system stamps files by a coarse clock (4 to 10 ms); younger files could change under an unchanged stamp.
_SETTLE_NS = 20_000_000
_MANY_BYTES = 64 << 20

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Found:
    """A file from outside: bytes, mtime and ctime in ns; `link` is the target of a link to nothing or to a circle."""

    size: int
    mtime_ns: int
    ctime_ns: int
    link: str | None = None

    @property
    def stamp(self) -> Stamp:
        return (self.size, self.mtime_ns, self.ctime_ns)


_SPECIAL = Found(-1, 0, 0)


def walk(root: Path) -> dict[str, Found]:
    """Every regular file below `root` by its relative path, sorted, the top metadata.json left out.

    Links are followed, except in circles; sockets, pipes and writers' debris are left out. FileNotFoundError without
    a folder `root`.
    """
    return dict(sorted(_walk_folder(str(root), "", ()), key=lambda item: item[0]))


def look(path: str) -> Found | None:
    """One file from outside; None for a folder."""
    try:
        info = os.stat(path)  # noqa: PTH116
    except OSError as error:
        if os.path.islink(path):  # noqa: PTH114
            return Found(0, 0, 0, os.readlink(path))  # noqa: PTH115
        raise ArtifactChangedError(f"{path} can't be read: {error.strerror}.") from error
    if stat.S_ISDIR(info.st_mode):
        return None
    return Found(info.st_size, info.st_mtime_ns, info.st_ctime_ns) if stat.S_ISREG(info.st_mode) else _SPECIAL


def settle(files: Iterable[Found]) -> None:
    """Wait (20 ms at most) until whatever changes a file from now on also changes its stamp."""
    youngest = max((max(found.mtime_ns, found.ctime_ns) for found in files), default=0)
    if time.time_ns() - youngest < _SETTLE_NS:
        time.sleep(_SETTLE_NS / 1e9)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactChangedError(f"{path} can't be read: {error.strerror}.") from error


def sha256_files(paths: Sequence[Path], total_bytes: int) -> list[str]:
    """`sha256_file` of each, in threads where there is enough to read."""
    if len(paths) < 2 or total_bytes < _MANY_BYTES:
        return [sha256_file(path) for path in paths]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256_file, paths))


def _walk_folder(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Found]]:
    here = _inode(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            if path == METADATA or _DEBRIS.match(entry.name):
                continue
            found = look(entry.path)
            if found is None and _inode(entry.path) in (*above, here):
                yield path, Found(0, 0, 0, os.readlink(entry.path))  # noqa: PTH115
            elif found is None:
                yield from _walk_folder(entry.path, path + "/", (*above, here))
            elif found is not _SPECIAL:
                yield path, found


def _inode(folder: str) -> tuple[int, int]:
    info = os.stat(folder)  # noqa: PTH116
    return info.st_dev, info.st_ino
