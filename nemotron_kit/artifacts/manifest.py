"""An artifact's folder: metadata.json, and the manifest of all other files in it.

metadata.json describes the artifact, in its folder, or beside it if the artifact is a file. It has `path`, `type` (the
class), `metadata` (typed fields and free entries), `created_at`, `producer` (a run id, or local), `tracking` (W&B's
ids), `name` once it has been registered, the typed fields again at the top level, `sealed_by` (nemotron_kit), and
`sha256` of the document without this key.

The manifest is each file's path, size and sha256. An artifact's digest is computed from it; a changed file is found by
its size, times and hash.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.reference import ArtifactChangedError, ArtifactNotFoundError, Pin
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.files import (
    WRITER,
    collect_leftovers,
    read_checksummed,
    read_regular,
    render_checksummed,
    sha256_of,
    write_text,
)
from nemotron_kit.lazy import Value

METADATA = "metadata.json"
_KINDS = {"type": str, "path": str, "metadata": dict}
# Bytes by which an incomplete metadata.json of ours is recognised: its beginning, and a field.
_BEGINS, _MARKED = b'{\n "path": "', b'"sealed_by": "nemotron_kit"'

# Leftovers of killed writers and of NFS clients, which are not part of the content.
_DEBRIS = r"\..+\.[0-9]+\.[0-9a-f]{8}\.tmp\Z|\.nfs[0-9a-fA-F]+\Z"
# A file system stamps files by a coarse clock (4 to 10 ms); younger files could change under an unchanged stamp.
_SETTLE_NS = 20_000_000
# Seconds between the scans of files that change.
_PAUSES = (0.1, 0.2, 0.4, 0.8)
_MANY_BYTES = 64 << 20

Stamp = tuple[int, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class FileEntry(Value):
    """One file: its path inside the folder, bytes, sha256, and (mtime, ctime) in ns when it was hashed.

    `sha256` is None above the hash limit, and of a file that was not read; `link` holds the target of a symbolic link
    that leads nowhere or in a circle.
    """

    path: str
    size: int
    sha256: str | None
    mtime_ns: int
    ctime_ns: int
    link: str | None = None

    @property
    def identity(self) -> list[Any]:
        """The part of the entry that goes into the artifact's digest."""
        if self.link is not None:
            return [self.path, "link", self.link]
        return [self.path, self.size, self.sha256 if self.sha256 is not None else f"mtime:{self.mtime_ns}"]

    @property
    def stamp(self) -> Stamp:
        """(size, mtime, ctime), which a change of the content changes."""
        return (self.size, self.mtime_ns, self.ctime_ns)

    def to_list(self) -> list[Any]:
        """One row of JSON."""
        return [self.path, self.size, self.sha256, self.mtime_ns, self.ctime_ns, self.link]

    @classmethod
    def from_list(cls, row: Any) -> FileEntry:
        """The entry that `to_list` wrote. Raises DamagedRecordError for anything else, and for a path outside of the
        folder."""
        if not (isinstance(row, list) and len(row) == 6 and all(isinstance(row[i], int) for i in (1, 3, 4))):
            raise DamagedRecordError(f"not a manifest entry: {row!r}")
        path = row[0]
        if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise DamagedRecordError(f"a manifest entry leads out of its folder: {path!r}")
        return cls(*row)


def walk(root: Path) -> dict[str, FileEntry]:
    """Every regular file below `root` by its relative path, sorted, not hashed, the top metadata.json left out.

    Links are followed, except in circles; sockets, pipes and writers' debris are left out. FileNotFoundError without
    a folder `root`.
    """
    return dict(sorted(_walked_folder(str(root), "", ()).items(), key=lambda item: item[0]))


def _walked_folder(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> dict[str, FileEntry]:
    info, files = os.stat(folder), dict[str, FileEntry]()  # noqa: PTH116
    inode = info.st_dev, info.st_ino
    if inode in above:  # a link to a folder that holds it
        path = prefix.rstrip("/")
        return {path: FileEntry(path, 0, None, 0, 0, os.readlink(folder))}  # noqa: PTH115
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            if path == METADATA or re.match(_DEBRIS, entry.name):
                continue
            found = file_entry(entry.path, path)
            if found is None:
                files.update(_walked_folder(entry.path, path + "/", (*above, inode)))
            elif found.size >= 0:
                files[path] = found
    return files


def file_entry(file: str, path: str) -> FileEntry | None:
    """The entry of one file, links followed, not hashed; None for a folder, size -1 for a socket or the like. `path` is
    the one inside its artifact. Raises ArtifactChangedError if it can't be read."""
    try:
        info = os.stat(file)  # noqa: PTH116
    except OSError as error:
        if os.path.islink(file):  # noqa: PTH114
            return FileEntry(path, 0, None, 0, 0, os.readlink(file))  # noqa: PTH115
        raise ArtifactChangedError(f"{file} can't be read: {error.strerror}.") from error
    if stat.S_ISDIR(info.st_mode):
        return None
    size = info.st_size if stat.S_ISREG(info.st_mode) else -1
    return FileEntry(path, size, None, info.st_mtime_ns, info.st_ctime_ns)


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


def identity(kind: str, files: Sequence[FileEntry], fields: Mapping[str, Any]) -> str:
    """An artifact's digest: computed from type, manifest and typed fields, and not from time, run or metrics."""
    return sha256_of({"type": kind, "files": [entry.identity for entry in files], "fields": dict(fields)})


def scan(
    root: Path, hash_limit: int | None = None, sums: Mapping[str, tuple[int, str]] | None = None
) -> tuple[FileEntry, ...]:
    """The manifest of folder `root`, sorted by path, without its metadata.json.

    Files of more than `hash_limit` bytes are not read: size and mtime identify their content. Files that change during
    the scan are read again, a few times, since another rank of the job may be writing them. Raises ArtifactChangedError
    if they keep changing. `sums` are the (size, sha256) of files that their writer has just hashed: they aren't read
    again.
    """
    known: dict[str, FileEntry] = {}
    written = dict(sums or {})
    for pause in (*_PAUSES, None):
        try:
            found = walk(root)
        except FileNotFoundError as error:
            raise ArtifactNotFoundError(str(root), f"There is no folder {error.filename}.") from error
        except OSError as error:
            raise UserError(f"{error.filename} can't be read: {error.strerror}.") from error
        # Wait, 20 ms at most, until any later change to these files will also change their time stamps.
        youngest = max((max(file.mtime_ns, file.ctime_ns) for file in found.values()), default=0)
        if time.time_ns() - youngest < _SETTLE_NS:
            time.sleep(_SETTLE_NS / 1e9)
        known = _hashed(root, found, known, hash_limit, written)
        written = {}  # not used for files that change meanwhile
        changed = next(
            (path for path, file in found.items() if not file.link and file_entry(str(root / path), path) != file), None
        )
        if changed is None:
            break
        if pause is None:
            raise ArtifactChangedError(
                f"{root / changed} changed while the artifact was being saved.", hint="Save when all is written."
            )
        time.sleep(pause)
    return tuple(known.values())


def _hashed(
    root: Path,
    found: Mapping[str, FileEntry],
    known: Mapping[str, FileEntry],
    limit: int | None,
    written: Mapping[str, tuple[int, str]],
) -> dict[str, FileEntry]:
    """The files found, with their sha256: the known one if the file's stat is unchanged."""
    same = {path for path, file in known.items() if path in found and replace(file, sha256=None) == found[path]}
    fresh = {path: file for path, file in found.items() if path not in same}
    read = [path for path, file in fresh.items() if file.link is None and (limit is None or file.size <= limit)]
    sums = {path: written[path][1] for path in read if path in written and written[path][0] == fresh[path].size}
    read = [path for path in read if path not in sums]
    hashes = sha256_files([root / path for path in read], sum(fresh[path].size for path in read))
    sums |= dict(zip(read, hashes, strict=True))
    return {path: known[path] if path in same else replace(file, sha256=sums.get(path)) for path, file in found.items()}


def first_change(
    root: Path,
    files: Sequence[FileEntry],
    *,
    stamps: Mapping[str, Stamp] | None = None,
    deep: bool = False,
    unread: Collection[str] = (),
) -> str | None:
    """A message about the first file that differs from its record; None if no file differs.

    A file whose size, mtime and ctime are those of the manifest (or those in `stamps`, recorded when equal content was
    saved again) is taken as unchanged; any other is hashed, and so is every file with `deep`; those in `unread` are
    only compared by size. Hidden files that were added don't count. A file that can't be read differs.
    """
    recorded = {entry.path: entry for entry in files}
    try:
        found = walk(root)
        for path in sorted(recorded.keys() | found.keys()):
            entry, now = recorded.get(path), found.get(path)
            trusted = {entry.stamp, (stamps or {}).get(path)} if entry and not deep else set()
            if path in unread and now:
                trusted.add(now.stamp)
            if why := _difference(root / path, entry, now, trusted):
                return f"{path} {why}"
    except (FileNotFoundError, NotADirectoryError):
        return f"{root} is gone"
    except OSError as error:
        return f"{error.filename} can't be read: {error.strerror}"
    except ArtifactChangedError as error:
        return error.message.removesuffix(".")
    return None


def _difference(
    file: Path, entry: FileEntry | None, now: FileEntry | None, trusted: Collection[Stamp | None]
) -> str | None:
    if entry is None:
        parts = now.path.split("/") if now else []
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        return None if hidden else "was added"
    if now is None:
        return "is missing"
    if entry.link is not None or now.link is not None:
        return None if entry.link == now.link else "is a link to another target"
    if now.size != entry.size:
        return f"has {now.size:,} bytes, not {entry.size:,}"
    if entry.sha256 is None:
        return None if now.mtime_ns == entry.mtime_ns else "has another modification time"
    if now.stamp in trusted:
        return None
    return None if sha256_file(file) == entry.sha256 else "has other content"


# --- metadata.json, and the paths in it


def folder_of(path: Path) -> Path:
    """The folder that an artifact at `path` owns: `path`, or the folder of a file (of a .json not written yet, too)."""
    # pathlib's is_file raises for a name that is too long, and a record may hold any text.
    is_file = os.path.isfile(path) or (path.suffix == ".json" and not os.path.exists(path))  # noqa: PTH110, PTH113
    return path.parent if is_file else path


def read_document(folder: Path) -> dict[str, Any] | None:
    """The metadata.json in `folder`, None without one; DamagedRecordError if it is cut off or was changed."""
    try:
        document = read_checksummed(folder / METADATA, METADATA, strict=False)
    except FileNotFoundError:
        return None
    for key, kind in _KINDS.items():
        if not isinstance(document.get(key, kind()), kind):
            raise DamagedRecordError(f"{folder / METADATA}: this {METADATA} is damaged: {key} is {document[key]!r}.")
    return document


def is_ours(folder: Path) -> bool:
    """Whether a save may replace metadata.json in `folder`: it does not exist, or was written by nemotron_kit (also if
    damaged) or by the reference implementation."""
    try:
        document = read_document(folder)
    except DamagedRecordError:
        text = read_regular(folder / METADATA)
        return text.startswith(_BEGINS) or _MARKED in text
    return document is None or all(isinstance(document.get(key), kind) for key, kind in _KINDS.items())


def write_document(folder: Path, document: dict[str, Any]) -> None:
    """Write metadata.json atomically, with the permissions of the user's umask."""
    try:
        collect_leftovers(folder)
        write_text(folder / METADATA, render_checksummed({**document, **WRITER}), mode=0o666)
    except OSError as error:
        raise NemotronError(f"{folder / METADATA} can't be written: {error.strerror or error}.") from error


def absolute(path: str | os.PathLike[str]) -> Path:
    """`path` as an absolute path without `~` and `..`; links are not resolved. Raises UserError for an invalid path."""
    try:
        full = Path(path).expanduser().absolute()
        return full.resolve() if ".." in full.parts else full
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{os.fspath(path)!r} is no path on this machine: {error}.") from error


def path_pin(text: str | os.PathLike[str]) -> Pin:
    """The pin of a plain path, with type and name from its metadata.json if there is one. Raises
    ArtifactNotFoundError."""
    path = absolute(text)
    try:
        exists = os.path.exists(path)  # noqa: PTH110
    except ValueError:
        exists = False
    if not exists:
        raise ArtifactNotFoundError(str(path), f"There is no file or folder {path}.")
    document = read_document(folder_of(path)) or {}
    name = document.get("name")
    return Pin(name if isinstance(name, str) else "", None, None, document.get("type", ""), str(path))


def located_in(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The document with its paths changed to the folder where it was found: the artifact may have been moved."""
    old = Path(document.get("path") or folder)
    # A file in a folder of its name is told from the folder by the path alone.
    is_file = (old.parent == folder or old.name != folder.name) and (folder / old.name).is_file()
    root = old.parent if is_file else old
    values = document if root == folder else relative_to(document, {str(root): str(folder)})
    return {**values, "path": folder / old.name if is_file else folder}


def relative_to(value: Any, roots: dict[str, str]) -> Any:
    """`value` with every path that is one of the folders `roots`, or inside one, replaced by the path that the folder
    maps to."""
    if isinstance(value, dict):
        return {key: relative_to(item, roots) for key, item in value.items()}
    if isinstance(value, list):
        return [relative_to(item, roots) for item in value]
    if isinstance(value, str):
        for root in sorted(roots, key=len, reverse=True):
            if value == root or value.startswith(root + "/"):
                return roots[root] + value[len(root) :]
    return value
