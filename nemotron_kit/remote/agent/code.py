"""The code of launches on the target: archives, copies for jobs, git repositories, and the removal of unused ones."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from nemotron_kit import files
from nemotron_kit.artifacts.manifest import folder_of
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.home import is_run_id
from nemotron_kit.remote.agent.bootstrap import appearing
from nemotron_kit.remote.agent.operations import CODE
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import DamagedRunRecord, JobFolder, read_object
from nemotron_kit.spec.paths import run_git

# Folder below the root → what an entry of it is, for messages.
KINDS = {"code": "the code of a launch", "kit": "nemotron_kit", "repositories": "a repository"}
# The names that launches give them, and those, with a dot in front, of what a killed process has left half-written or
# half-removed. Other entries are not ours: the root may be a home folder.
_OURS = {
    "code": re.compile(r"[0-9a-f]{64}\.tar\.gz|\.[0-9a-f]{64}\.tar\.gz\.[0-9]+\.[0-9a-f]{8}\.tmp"),
    "kit": re.compile(r"[0-9a-f]{32}|\.(kit|[0-9a-f]{32})-[a-z0-9_]+"),
    "repositories": re.compile(r"[A-Za-z0-9._-]+-[0-9a-f]{12}|\.[A-Za-z0-9._-]+-[0-9a-f]{12}-[a-z0-9_]+"),
}
# The files of a run that refer to code and packages: its jobs' specs, its scripts, code.json.
_REFERENCING = ("*.json", "jobs/*/*.json", "jobs/*/*.sh", "slurm/*")


def clean(*, root: str, unused_seconds: float, remove: bool) -> list[dict[str, Any]]:
    """The files unused for that long that no unfinished run refers to: `[{"what", "path", "bytes"}]`, removed unless it
    is a dry run. An entry that could not be removed has an `"error"`; the others are removed all the same.

    Files of a run that is not known to have ended are kept, however old they are.
    """
    before = time.time() - unused_seconds
    old = list(_old(Path(root), before))
    needed = _named(Path(root), {_name(path) for path in old}) if old else set()
    found = []
    for path in (path for path in old if _name(path) not in needed):
        entry: dict[str, Any] = {"what": KINDS[path.parent.name], "path": str(path), "bytes": _bytes(path)}
        # Reading the runs' references may take long: a launch that started meanwhile has updated the time of use.
        if _last_used(path) >= before:
            continue
        try:
            if remove:
                _remove(path)
        except OSError as error:
            entry["error"] = error.strerror or str(error)
        found.append(entry)
    return found


def used(path: Path) -> None:
    """Record, by its modification time, that the archive or folder is in use now."""
    os.utime(path)


def _old(root: Path, before: float) -> Iterator[Path]:
    for kind in KINDS:
        folder = root / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            ours = _OURS[kind].fullmatch(path.name) and not path.is_symlink()
            if ours and _last_used(path) < before and path not in Path(__file__).parents:  # the package that runs here
                yield path


def _last_used(path: Path) -> float:
    """Time of the last use in seconds since the epoch; infinity if another process has removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _name(path: Path) -> str:
    """The name by which runs refer to it: a digest, a hash, or a folder's name."""
    return path.name.partition(".tar")[0]


def _named(root: Path, names: Collection[str]) -> set[str]:
    """Those of `names` that the files of unfinished runs refer to."""
    found: set[str] = set()
    runs = root / "runs"
    for folder in runs.iterdir() if runs.is_dir() else ():
        if not is_run_id(folder.name):
            continue
        jobs = RunFolder(folder).jobs()
        if jobs and all(job.state().terminal for job in jobs):
            continue
        for path in (path for pattern in _REFERENCING for path in folder.glob(pattern)):
            with suppress(FileNotFoundError):  # one that is being written, or a run that is being removed
                text = path.read_bytes() if path.is_file() else b""
                found |= {name for name in names if name.encode() in text}
    return found


def _bytes(path: Path) -> int:
    """Size in bytes. Files that another process removes meanwhile count as 0."""
    total = 0
    for each in path.rglob("*") if path.is_dir() else [path]:
        with suppress(FileNotFoundError):
            total += each.lstat().st_size
    return total


def _remove(path: Path) -> None:
    """Remove a file or folder; a folder is renamed first, so that it disappears at once."""
    if not path.is_dir():
        path.unlink()
        return
    if not path.name.startswith("."):
        path = path.rename(path.with_name(f".{path.name}-{os.getpid()}"))
    shutil.rmtree(path)


# The modification time, in seconds, that each file gets when it is extracted: one with another time was written later.
_EXTRACTED_AT = 315532800  # 1980, the earliest time that a zip file can hold
_NAMED = 100
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def archive_path(root: str, digest: str) -> Path:
    """The path of the archive with that sha256 below the target's root."""
    if not _DIGEST.match(digest):
        raise NemotronError(f"{digest!r} is no digest of an archive.")
    return Path(root) / "code" / f"{digest}.tar.gz"


def code_of(root: str, run: str) -> dict[str, Any]:
    """The code that a run was launched with: `{"digest", "there"}`; `{}` if it has none yet."""
    try:
        digest = read_object(Path(run) / CODE)["digest"]
    except FileNotFoundError:
        return {}
    return {"digest": digest, "there": has_code(root, digest)}


def has_code(root: str, digest: str) -> bool:
    """Whether the target has the archive."""
    path = archive_path(root, digest)
    if not path.is_file():
        return False
    used(path)
    return True


def put_code(root: str, digest: str, payload: bytes = b"") -> None:
    """Store the archive. Raises NemotronError if its sha256 is not `digest`."""
    path = archive_path(root, digest)
    if hashlib.sha256(payload).hexdigest() != digest:
        raise NemotronError(f"The code was damaged on its way: its sha256 is not {digest[:12]}….", hint="Try again.")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_bytes(path, payload)


def unpack_code(root: str, digest: str, folder: Path) -> None:
    """Unpack the archive into `folder`, which appears atomically, unless it exists."""
    data = archive_path(root, digest).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise NemotronError(f"{archive_path(root, digest)} was changed since it arrived.", hint="Remove it, try again.")
    unpack(data, folder)


def unpack(data: bytes, folder: Path) -> None:
    """Create `folder` from an archive. An existing folder, which may hold files of the job, is left unchanged."""
    if folder.is_dir():
        return
    with appearing(folder) as building, tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            _extract(archive, member, building)
    files.fsync_dir(folder.parent)


def written_since(folder: Path, saved: Collection[Path] = ()) -> dict[str, Any]:
    """Files that a job wrote into its copy of the code, except Python's caches and files in the folders `saved`: `{}`,
    or `{"folder", "files", "more"}` with the first names and the number of the others."""
    found = []
    for parent, names, others in os.walk(folder):
        names[:] = sorted(name for name in names if name != "__pycache__")
        if Path(parent) in saved:
            names[:], others = [], []
        for path in (Path(parent, name) for name in sorted(others)):
            with suppress(OSError):
                status = path.lstat()
                is_written = stat.S_ISREG(status.st_mode) and int(status.st_mtime) != _EXTRACTED_AT
                found += [path.relative_to(folder).as_posix()] if is_written and path.suffix != ".pyc" else []
    if not found:
        return {}
    return {"folder": str(folder), "files": found[:_NAMED], "more": max(0, len(found) - _NAMED)}


def registered_folders(job: JobFolder) -> set[Path]:
    """The folders of the versions that a job has registered: their registry protects them from removal."""
    with suppress(DamagedRunRecord):
        pins = [pin for pin in job.artifacts()["outputs"] if pin.get("version") is not None]
        return {folder_of(Path(str(pin.get("path")))) for pin in pins}
    return set()


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Extract one file, folder or link, inside `folder` and never through a link: the archive is treated as
    untrusted."""
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
        os.utime(path, (_EXTRACTED_AT, _EXTRACTED_AT))
    else:
        raise NemotronError(f"The code archive holds {member.name!r}, which is no file.")


ASK_SECONDS, FETCH_SECONDS = 30, 900
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\Z")


def commit_of(url: str, ref: str) -> str:
    """The commit that a branch or a tag of the repository resolves to; an annotated tag is dereferenced."""
    names = (f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}")
    lines = _git(".", "ls-remote", "--", url, *names, seconds=ASK_SECONDS).splitlines()
    found = {name: commit for commit, _, name in (line.partition("\t") for line in lines)}
    commit = next((found[name] for name in names if name in found), None)
    if commit is None:
        raise UserError(f"{url} has no branch or tag {ref!r}.", hint="A commit is named by all of its 40 digits.")
    return commit


def fetch_repository(cache: str, url: str, ref: str, commit: str, folder: str) -> str:
    """Check out the commit's files in `<cache>/<folder>`, atomically; an existing checkout is left unchanged."""
    if not _COMMIT.match(commit) or not _FOLDER.match(folder):
        raise UserError(f"{url}: {commit!r} is no commit, or {folder!r} no folder's name.")
    checkout = Path(cache) / folder
    if not checkout.is_dir():
        checkout.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with appearing(checkout) as building:
            _git(building, "init", "--quiet", seconds=ASK_SECONDS)
            try:
                _git(building, "fetch", "--quiet", "--depth=1", "--", url, commit, seconds=FETCH_SECONDS)
            except UserError:  # a server may give out branches and tags only
                _git(building, "fetch", "--quiet", "--", url, *({ref} - {commit}), seconds=FETCH_SECONDS)
            _git(building, "checkout", "--quiet", "--detach", commit, seconds=FETCH_SECONDS)
    used(checkout)
    return str(checkout)


def _git(folder: str | Path, *arguments: str, seconds: float) -> str:
    """The output of a git command, which never asks for a password. Raises UserError with git's message, Unreachable if
    it does not end in time."""
    silent = {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = run_git(folder, *arguments, seconds=seconds, variables=silent)
    except FileNotFoundError as error:
        raise UserError("There is no git where the job runs, for auto_mount.", hint="Mount a folder.") from error
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"git {arguments[0]} has not ended for {seconds:.0f} s.") from error
    if done.returncode != 0:
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(
            f"git could not fetch the repository: {errors[-1] if errors else f'exit code {done.returncode}'}"
        )
    return done.stdout.decode(errors="replace")
