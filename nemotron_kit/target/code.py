"""The code of a launch on the target: one archive by its digest, and a copy of its own for each job."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.records import read_object
from nemotron_kit.target.clean import used
from nemotron_kit.target.folders import CODE

# When every file of a copy was last changed, in seconds: what has another time was written there since.
_PLACED = 315532800  # 1980, the first year that a zip file knows
_NAMED = 100
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def archive_path(root: str, digest: str) -> Path:
    """Where the archive with that sha256 lies below the target's root."""
    if not _DIGEST.match(digest):
        raise NemotronError(f"{digest!r} is no digest of an archive.")
    return Path(root) / "code" / f"{digest}.tar.gz"


def code_of(payload: bytes, root: str, run: str) -> tuple[dict[str, Any], bytes]:
    """Which code a run was launched with: `{"digest", "there"}`, `{}` for one that has none yet."""
    del payload
    try:
        digest = read_object(Path(run) / CODE)["digest"]
    except FileNotFoundError:
        return {}, b""
    return {"digest": digest, "there": has_code(b"", root, digest)[0]}, b""


def has_code(payload: bytes, root: str, digest: str) -> tuple[bool, bytes]:
    """Whether the archive is there already."""
    del payload
    path = archive_path(root, digest)
    if not path.is_file():
        return False, b""
    used(path)
    return True, b""


def put_code(payload: bytes, root: str, digest: str) -> tuple[None, bytes]:
    """Keep the archive; NemotronError when its bytes are not those of `digest`."""
    path = archive_path(root, digest)
    if hashlib.sha256(payload).hexdigest() != digest:
        raise NemotronError(f"The code that arrived is not what was sent (sha256 {digest[:12]}…).", hint="Try again.")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_bytes(path, payload)
    return None, b""


def place_code(payload: bytes, root: str, digest: str, folders: Sequence[str]) -> tuple[None, bytes]:
    """Unpack the archive into each of `folders` that isn't there yet; each appears whole."""
    del payload
    data = archive_path(root, digest).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise NemotronError(f"{archive_path(root, digest)} was changed since it arrived.", hint="Remove it, try again.")
    for folder in folders:
        unpack(data, Path(folder))
    return None, b""


def unpack(data: bytes, folder: Path) -> None:
    """Make `folder` from an archive. One that is there already, with what a job wrote into it, is left alone."""
    if folder.is_dir():
        return
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                _extract(archive, member, building)
        building.rename(folder)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        # Another node of the same job was faster.
        if isinstance(error, OSError) and folder.is_dir():
            return
        raise
    files.fsync_dir(folder.parent)


def written_since(folder: Path) -> dict[str, Any]:
    """What a job wrote into its copy of the code, but for Python's own caches: `{}`, or `{"folder", "files", "more"}`
    with the first names and how many more there are."""
    found = []
    for place, names, others in os.walk(folder):
        names[:] = sorted(name for name in names if name != "__pycache__")
        paths = [Path(place, name) for name in sorted(others)]
        found += [path.relative_to(folder).as_posix() for path in paths if _is_written(path)]
    if not found:
        return {}
    return {"folder": str(folder), "files": found[:_NAMED], "more": max(0, len(found) - _NAMED)}


def _is_written(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and int(status.st_mtime) != _PLACED and path.suffix != ".pyc"


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """One file, folder or link, inside `folder` and never through a link: the archive is ours, but not trusted."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise NemotronError(f"The code archive holds {member.name!r}.")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.resolve() != (folder.resolve() / name).parent:
        raise NemotronError(f"The code archive holds {member.name!r}, which lies behind a link.")
    if member.isdir():
        path.mkdir(exist_ok=True)
    elif member.issym():
        path.symlink_to(member.linkname)
    elif member.isfile():
        source: Any = archive.extractfile(member)
        # Not through a link that an earlier member made.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, member.mode & 0o755 | 0o600)
        with os.fdopen(fd, "wb") as file:
            shutil.copyfileobj(source, file)
        os.utime(path, (_PLACED, _PLACED))
    else:
        raise NemotronError(f"The code archive holds {member.name!r}, which is no file.")
