"""The code that goes along with a launch: what was just edited, packed once and known by its content."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.execution.snapshot_files import Choice, choose
from nemotron_kit.execution.snapshot_git import commit_of, committed, refuse_dirty
from nemotron_kit.plan.kit import kit_zip
from nemotron_kit.target.bootstrap import unpack
from nemotron_kit.target.clean import used
from nemotron_kit.target.folders import CODE

LIMIT_BYTES = 100 * 1000 * 1000
_LARGEST = 8


@dataclass(frozen=True)
class Snapshot:
    """`files`: path relative to `root` → size. `digest`: sha256 of `archive`, a tar.gz that depends on content alone.
    `dirty`: something in the tree is not what `commit` says."""

    root: str
    files: Mapping[str, int]
    digest: str
    archive: bytes = field(repr=False)
    commit: str | None = None
    dirty: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON data for the run's record: which code this was."""
        return {
            "digest": self.digest,
            "root": self.root,
            "commit": self.commit,
            "dirty": self.dirty,
            "files": len(self.files),
            "bytes": sum(self.files.values()),
        }


def take_snapshot(
    tree: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    leave_out: Collection[str] = (),
    limit: int = LIMIT_BYTES,
) -> Snapshot:
    """Pack a plan's code tree (plan.packaging.CodeTree as a mapping) as a profile's settings say.

    Of the folders in `leave_out` (artifacts: they are named, not copied) only what git tracks is sent. Raises UserError
    for a tree beyond `limit` bytes, with its largest files, and for a dirty one with packager "git".
    """
    settings = settings or {}
    root, packager = Path(tree["root"]), str(tree["packager"])
    commit, dirty = commit_of(root) if tree["git"] else (None, False)
    if packager == "git" and dirty:
        if not settings.get("allow_dirty"):
            refuse_dirty(root)
        members: Iterable[tuple[tarfile.TarInfo, bytes]] = committed(
            root, submodules=settings.get("include_submodules") is not False
        )
        dirty = False
    else:
        choice = Choice(
            root=root,
            in_git=bool(tree["git"]),
            patterns=settings.get("packager_include_pattern") or (),
            submodules=settings.get("include_submodules") is not False,
            leave_out=leave_out,
        )
        names = choose(packager, choice)
        _check_size(root, {name: (root / name).lstat().st_size for name in names}, limit)
        members = _members(root, names)
    sizes, archive = _pack(members)
    _check_size(root, sizes, limit)
    return Snapshot(str(root), sizes, hashlib.sha256(archive).hexdigest(), archive, commit, dirty)


def send_snapshot(reach: Any, snapshot: Snapshot, root: str, folders: Sequence[str]) -> None:
    """Have the snapshot unpacked as each of `folders` on the target; it is sent only where it isn't there already."""
    known, _ = reach.call("has_code", root=root, digest=snapshot.digest)
    if not known:
        reach.call("put_code", snapshot.archive, root=root, digest=snapshot.digest)
    if folders:
        reach.call("place_code", root=root, digest=snapshot.digest, folders=list(folders))


def code_there(reach: Any, place: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Have the code of a plan's tree on the target; the file of the run that says which. A run that has one keeps it:
    its launch has sent the code, and the tree may be another by now, or none."""
    tree = place.get("tree")
    if not tree:
        return {}
    kept: Mapping[str, Any] = reach.call("code_of", root=place["root"], run=place["run"])[0]
    if kept.get("there"):
        return {}
    snapshot = take_snapshot(tree, settings, leave_out=artifact_folders(tree["root"]))
    if kept and kept["digest"] != snapshot.digest:
        raise NemotronError(
            f"The code that this was launched with (sha256 {kept['digest'][:12]}) is not on the target any more, and "
            f"{tree['root']} holds another by now.",
            hint="Launch it again: nemotron runs rerun.",
        )
    send_snapshot(reach, snapshot, place["root"], [])
    return {CODE: json.dumps({**snapshot.to_dict(), "target_root": place["root"]})}


def place_kit(folder: str) -> None:
    """Have this kit in a folder of this machine, for a container."""
    kit = Path(folder)
    if kit.is_dir():
        used(kit)
    else:
        unpack(kit_zip(), kit)


def artifact_folders(root: str) -> list[str]:
    """The folders below `root` that versions of this machine's registry refer to; also damaged ones, as far as they
    still say so."""
    from nemotron_kit.artifacts.registry import open_registry

    registry = open_registry()
    found = {record.root for record in registry.everything()}
    return sorted(folder for folder in found if folder and folder.startswith(root.rstrip("/") + "/"))


def _check_size(root: Path, sizes: Mapping[str, int], limit: int) -> None:
    total = sum(sizes.values())
    if total <= limit:
        return
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:_LARGEST]
    shown = "\n".join(f"  {_mb(size):>10}  {name}" for name, size in largest)
    raise UserError(
        f"The code in {root} has {_mb(total)}, more than the {_mb(limit)} that go along. The largest:\n{shown}",
        hint='Name what is no code in .gitignore, or choose another packager: "git", "pattern" or "none".',
    )


def _members(root: Path, names: Sequence[str]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for name in names:
        path, info = root / name, tarfile.TarInfo(name)
        if path.is_symlink():
            info.type, info.linkname = tarfile.SYMTYPE, _link(root, path)
            yield info, b""
            continue
        info.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
        yield info, path.read_bytes()


def _link(root: Path, path: Path) -> str:
    """What a link says; one that leads out of the tree, by its whole path: the copy lies elsewhere."""
    text = os.readlink(path)  # noqa: PTH115 — as it is written
    target = Path(os.path.normpath(path.parent / text))
    return text if target.is_relative_to(root) and not text.startswith("/") else str(target)


def _pack(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> tuple[dict[str, int], bytes]:
    """(name → size, the archive). No time, no owner: equal content gives equal bytes."""
    buffer, sizes = io.BytesIO(), {}
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for info, data in members:
            info.size = sizes[info.name] = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sizes, buffer.getvalue()


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
