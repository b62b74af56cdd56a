"""The manifest of an artifact's files, the identity made from it, and how a change is noticed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.errors import ArtifactChangedError, ArtifactNotFoundError, DamagedRecordError
from nemotron_kit.artifacts.sealed import sha256_of
from nemotron_kit.artifacts.walk import Found, Stamp, look, settle, sha256_file, sha256_files, walk
from nemotron_kit.errors import UserError

# Between the looks at files that change, in seconds.
_PAUSES = (0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class FileEntry:
    """One file: its path inside the folder, bytes, sha256, and (mtime, ctime) in ns when it was hashed.

    `sha256` is None above the hash limit; `link` holds the target of a symbolic link that leads nowhere or in a circle.
    """

    path: str
    size: int
    sha256: str | None
    mtime_ns: int
    ctime_ns: int
    link: str | None = None

    @property
    def identity(self) -> list[Any]:
        """What the artifact's digest is made from."""
        if self.link is not None:
            return [self.path, "link", self.link]
        return [self.path, self.size, self.sha256 if self.sha256 is not None else f"mtime:{self.mtime_ns}"]

    @property
    def stamp(self) -> Stamp:
        """What a stat of the unchanged file shows."""
        return (self.size, self.mtime_ns, self.ctime_ns)

    def to_list(self) -> list[Any]:
        """One row of JSON."""
        return [self.path, self.size, self.sha256, self.mtime_ns, self.ctime_ns, self.link]

    @classmethod
    def from_list(cls, row: Any) -> FileEntry:
        """The entry that `to_list` wrote; DamagedRecordError for anything else, or for a path that leads out."""
        if not (isinstance(row, list) and len(row) == 6 and all(isinstance(row[i], int) for i in (1, 3, 4))):
            raise DamagedRecordError(f"not a manifest entry: {row!r}")
        path = row[0]
        if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise DamagedRecordError(f"a manifest entry leads out of its folder: {path!r}")
        return cls(*row)


def identity(kind: str, files: Sequence[FileEntry], fields: Mapping[str, Any]) -> str:
    """An artifact's digest: over type, manifest and typed fields; never over time, run or metrics."""
    return sha256_of({"type": kind, "files": [entry.identity for entry in files], "fields": dict(fields)})


def scan(root: Path, hash_limit: int | None = None) -> tuple[FileEntry, ...]:
    """The manifest of folder `root`, sorted by path, its metadata.json left out.

    Files of more than `hash_limit` bytes are not read: size and mtime stand for their content. Files that change
    meanwhile are read again, a few times: another rank of the job may be writing the same. Should they go on changing,
    it is an ArtifactChangedError.
    """
    known: dict[str, tuple[Found, str | None]] = {}
    for pause in (*_PAUSES, None):
        found = _walked(root)
        settle(found.values())
        known = _hashed(root, found, known, hash_limit)
        changed = next((name for name, file in found.items() if not file.link and look(str(root / name)) != file), None)
        if changed is None:
            break
        if pause is None:
            raise ArtifactChangedError(
                f"{root / changed} changed while the artifact was being saved.", hint="Save when all is written."
            )
        time.sleep(pause)
    return tuple(
        FileEntry(name, file.size, digest, file.mtime_ns, file.ctime_ns, file.link)
        for name, (file, digest) in known.items()
    )


def _walked(root: Path) -> dict[str, Found]:
    try:
        return walk(root)
    except FileNotFoundError as error:
        raise ArtifactNotFoundError(str(root), f"There is no folder {error.filename}.") from error
    except OSError as error:
        raise UserError(f"{error.filename} can't be read: {error.strerror}.") from error


def _hashed(
    root: Path, found: Mapping[str, Found], known: Mapping[str, tuple[Found, str | None]], limit: int | None
) -> dict[str, tuple[Found, str | None]]:
    """Each file that was found, with its digest: the known one where it is as it was then."""
    fresh = {name: file for name, file in found.items() if name not in known or known[name][0] != file}
    read = [name for name, file in fresh.items() if file.link is None and (limit is None or file.size <= limit)]
    hashes = sha256_files([root / name for name in read], sum(fresh[name].size for name in read))
    digests = dict(zip(read, hashes, strict=True))
    return {name: (file, digests.get(name)) if name in fresh else known[name] for name, file in found.items()}


def first_change(
    root: Path,
    files: Sequence[FileEntry],
    *,
    seen: Mapping[str, Stamp] | None = None,
    deep: bool = False,
    unread: Collection[str] = (),
) -> str | None:
    """The first file that is not as recorded, with what is wrong with it; None if all are.

    A file whose size, mtime and ctime are those of the manifest (or of `seen`, a later look at equal content) is taken
    as unchanged; any other is hashed, and so is every file with `deep`; those in `unread` are only compared by size.
    Hidden files that were added don't count.
    """
    recorded = {entry.path: entry for entry in files}
    try:
        found = walk(root)
    except (FileNotFoundError, NotADirectoryError):
        return f"{root} is gone"
    except OSError as error:
        return f"{error.filename} can't be read: {error.strerror}"
    for name in sorted(recorded.keys() | found.keys()):
        known = recorded[name].stamp if name in recorded else None
        trusted: tuple[Stamp | None, ...] = () if deep else (known, (seen or {}).get(name))
        if name in unread and name in found:
            trusted = (*trusted, found[name].stamp)
        why = _difference(root / name, name, recorded.get(name), found.get(name), trusted)
        if why:
            return f"{name} {why}"
    return None


def _difference(
    file: Path, name: str, entry: FileEntry | None, now: Found | None, trusted: tuple[Stamp | None, ...]
) -> str | None:
    if entry is None:
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))
        return None if hidden else "was added"
    if now is None:
        return "is missing"
    if entry.link is not None or now.link is not None:
        return None if entry.link == now.link else "leads elsewhere"
    if now.size != entry.size:
        return f"has {now.size:,} bytes, not {entry.size:,}"
    if entry.sha256 is None:
        return None if now.mtime_ns == entry.mtime_ns else "has another modification time"
    if now.stamp in trusted:
        return None
    return None if sha256_file(file) == entry.sha256 else "has other content"
