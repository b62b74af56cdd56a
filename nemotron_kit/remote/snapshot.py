"""A snapshot of the code that is sent with a launch, including uncommitted edits, identified by its hash."""

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
from typing import Any, NoReturn

from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import nemotron_home
from nemotron_kit.remote.agent.bootstrap import unpack
from nemotron_kit.remote.agent.code import used
from nemotron_kit.remote.agent.operations import CODE
from nemotron_kit.remote.ssh import Transport
from nemotron_kit.spec.package import package_zip
from nemotron_kit.spec.paths import CodeTree, RemotePaths, run_git
from nemotron_kit.spec.runconfig import RunConfig

_SUBMODULE = "160000 "  # the mode of a link to another repository's commit


def git(root: Path, *arguments: str) -> bytes:
    """The output of `git arguments` in `root`. Raises UserError with git's message when it fails."""
    try:
        done = run_git(root, *arguments)
    except FileNotFoundError as error:
        raise UserError(
            f"{root} is a git work tree, but git is not installed here, so its files can't be listed.",
            hint='Install git, or choose packager = "pattern" or "none".',
        ) from error
    if done.returncode != 0:
        errors = done.stderr.decode("utf-8", "replace").strip()
        raise UserError(
            f"git {arguments[0]} failed in {root}: {errors}", hint='Or choose packager = "pattern" or "none".'
        )
    return done.stdout


def listed(root: Path, *options: str) -> list[str]:
    """`git ls-files` relative to `root`, which may be a folder inside the work tree."""
    return [os.fsdecode(name) for name in git(root, "ls-files", "-z", *options).split(b"\x00") if name]


def work_tree(root: Path, *, new: bool, submodules: bool = True) -> Iterator[str]:
    """The files that git tracks in `root`, with its submodules' files; with `new`, also those that are neither tracked
    nor ignored. New files of a submodule, or of a nested clone that is no submodule, count as new files too."""
    inner = []
    for record in listed(root, "--cached", "--stage"):
        facts, _, name = record.partition("\t")
        if facts.startswith(_SUBMODULE):
            inner += [name] if submodules else []
        else:
            yield name
    for name in listed(root, "--others", "--exclude-standard") if new else ():
        if name.endswith("/"):
            inner.append(name.rstrip("/"))
        else:
            yield name
    for folder in inner:
        if (root / folder / ".git").exists():  # a submodule may not be checked out
            for name in work_tree(root / folder, new=new, submodules=submodules):
                yield f"{folder}/{name}"


def commit_of(root: Path) -> tuple[str | None, bool]:
    """(the checked-out commit, None before the first; whether the work tree differs from it)."""
    status = git(root, "status", "--porcelain", "-z", "--untracked-files=normal", "--", ".")
    try:
        return git(root, "rev-parse", "HEAD").decode().strip(), bool(status)
    except UserError:
        return None, True


def committed(root: Path, *, submodules: bool = True) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The content of the checked-out commit in `root`, including submodules, as members of an archive without owner and
    time."""
    top = Path(os.fsdecode(git(root, "rev-parse", "--show-toplevel")).rstrip("\n"))
    inside = root.resolve().relative_to(top.resolve()).as_posix()
    yield from _archived(top, "HEAD" if inside == "." else f"HEAD:{inside}", "")
    yield from _submodules(root, "HEAD", "") if submodules else ()


def _submodules(root: Path, tree: str, prefix: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The content of the submodules of a commit, and of theirs, at the commits that it refers to."""
    for record in git(root, "ls-tree", "-r", "-z", tree).split(b"\x00"):
        facts, _, name = os.fsdecode(record).partition("\t")
        if facts.startswith(_SUBMODULE) and (root / name / ".git").exists():
            commit = facts.split()[2]
            yield from _archived(root / name, commit, f"{prefix}{name}/")
            yield from _submodules(root / name, commit, f"{prefix}{name}/")


def _archived(root: Path, tree: str, prefix: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(git(root, "archive", "--format=tar", tree))) as archive:
        for member in archive:
            info = tarfile.TarInfo(prefix + member.name)
            if member.issym():
                info.type, info.linkname = tarfile.SYMTYPE, member.linkname
                yield info, b""
            elif member.isfile():
                info.mode = 0o755 if member.mode & 0o100 else 0o644
                source = archive.extractfile(member)
                yield info, source.read() if source else b""


def refuse_dirty(root: Path) -> NoReturn:
    """Raise UserError, naming the files, if something is not committed."""
    changed = git(root, "status", "--porcelain", "--untracked-files=normal", "--", ".").decode("utf-8", "replace")
    lines = changed.splitlines()
    shown = "\n".join(f"  {line}" for line in lines[:10]) + (f"\n  … {len(lines) - 10} more" if len(lines) > 10 else "")
    raise UserError(
        f"packager 'git' sends what is committed, but {root} holds more:\n{shown}",
        hint='Commit it, use packager = "worktree", or allow_dirty = true to leave it out.',
    )


# Never code, in whichever folder.
_CACHES = frozenset(
    {"__pycache__", "node_modules", ".git", ".hg", ".svn", ".tox", ".nox", ".venv", ".ipynb_checkpoints"}
)


def choose(tree: CodeTree, settings: RunConfig, leave_out: Collection[str] = ()) -> list[str]:
    """Paths of files and links relative to the tree's root, sorted. Its packager decides:

    `worktree`: tracked and new files that git does not ignore; without git all files except environments, caches and
    records. `git`: tracked files. `pattern`: those that match the settings' patterns. `hybrid`: both. In the folders of
    `leave_out` only files tracked by git count as code.
    """
    root, submodules = Path(tree.root), settings.include_submodules is not False
    patterns = settings.packager_include_pattern or ()
    if tree.packager == "pattern":
        if not patterns:
            raise UserError("packager 'pattern' needs packager_include_pattern.", hint='For instance ["src/**/*.py"].')
        found = set(_matching(root, patterns))
        if not found:
            raise UserError(f"packager_include_pattern: nothing in {root} matches {', '.join(patterns)}.")
    elif tree.packager == "worktree":
        tracked = set(work_tree(root, new=False, submodules=submodules)) if tree.git else set()
        folders = tuple(f"{folder.rstrip('/')}/" for folder in leave_out)
        names = work_tree(root, new=True, submodules=submodules) if tree.git else _walk(root, "")
        found = {name for name in names if name in tracked or not f"{root / name}/".startswith(folders)}
    else:
        found = set(work_tree(root, new=False, submodules=submodules))
        found.update(_matching(root, patterns) if tree.packager == "hybrid" else ())
    paths = [(name, root / name) for name in sorted(found)]
    # Deleted files may still be tracked; sockets, pipes and a submodule's folder are no files.
    return [name for name, path in paths if path.suffix != ".pyc" and (path.is_symlink() or path.is_file())]


def _matching(root: Path, patterns: Sequence[str]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith("/") or ".." in Path(pattern).parts:
            raise UserError(f"packager_include_pattern: {pattern} leads out of {root}.")
        # pathlib fails at "" and "."; from Python 3.13 on it takes `**.py` for `*.py`.
        parts = Path(pattern).parts
        if not parts or any("**" in part and part != "**" for part in parts):
            raise UserError(
                f"packager_include_pattern: {pattern!r} is no pattern of files: ** can only be a whole folder's name.",
                hint='Write "src/**/*.py", or "*" for all files.',
            )
        for path in root.glob(pattern):
            name = path.relative_to(root)
            if any(_is_debris(root / parent) for parent in name.parents if parent != Path()):
                continue
            found += _walk(root, str(name)) if path.is_dir() and not path.is_symlink() else [name.as_posix()]
    return found


def _walk(root: Path, below: str) -> Iterator[str]:
    for folder, names, files in os.walk(root / below):
        path = Path(folder)
        names[:] = [name for name in names if not _is_debris(path / name)]
        for name in [*files, *(name for name in names if (path / name).is_symlink())]:
            yield (path / name).relative_to(root).as_posix()


def _is_debris(folder: Path) -> bool:
    """Whether a folder is a cache (it has a CACHEDIR.TAG), a Python environment, or holds nemotron's records."""
    if folder.name in _CACHES or folder.name.endswith(".egg-info"):
        return True
    if (folder / "pyvenv.cfg").exists() or (folder / "CACHEDIR.TAG").exists():
        return True
    return folder.resolve() == nemotron_home().resolve()


LIMIT_BYTES = 100 * 1000 * 1000
_LARGEST = 8


@dataclass(frozen=True)
class Snapshot:
    """`files`: path relative to `root` → size in bytes. `digest`: sha256 of `archive`, a tar.gz that depends on content
    only. `dirty`: the work tree differs from `commit`."""

    root: str
    files: Mapping[str, int]
    digest: str
    archive: bytes = field(repr=False)
    commit: str | None = None
    dirty: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON data for the run's record that identifies the code."""
        return {
            "digest": self.digest,
            "root": self.root,
            "commit": self.commit,
            "dirty": self.dirty,
            "files": len(self.files),
            "bytes": sum(self.files.values()),
        }


def take_snapshot(
    tree: CodeTree,
    settings: RunConfig | None = None,
    *,
    leave_out: Collection[str] = (),
    limit: int = LIMIT_BYTES,
) -> Snapshot:
    """Pack a plan's code tree as a profile's settings specify.

    Of the folders in `leave_out` (artifacts, which are referenced and not copied) only files tracked by git are sent.
    Raises UserError for a tree of more than `limit` bytes, with its largest files, and for a dirty one with packager
    "git".
    """
    settings = settings or RunConfig()
    root = Path(tree.root)
    commit, dirty = commit_of(root) if tree.git else (None, False)
    if tree.packager == "git" and dirty:
        if not settings.allow_dirty:
            refuse_dirty(root)
        members: Iterable[tuple[tarfile.TarInfo, bytes]] = committed(
            root, submodules=settings.include_submodules is not False
        )
        dirty = False
    else:
        names = choose(tree, settings, leave_out)
        _check_size(root, {name: (root / name).lstat().st_size for name in names}, limit)
        members = _members(root, names)
    sizes, archive = _pack(members)
    _check_size(root, sizes, limit)
    return Snapshot(str(root), sizes, hashlib.sha256(archive).hexdigest(), archive, commit, dirty)


def send_snapshot(transport: Any, snapshot: Snapshot, root: str) -> None:
    """Send the snapshot's archive to the target whose runs are below `root`, unless the target has it."""
    known, _ = transport.call("has_code", root=root, digest=snapshot.digest)
    if not known:
        transport.call("put_code", snapshot.archive, root=root, digest=snapshot.digest)


def provide_code(transport: Transport, paths: RemotePaths, settings: RunConfig) -> dict[str, str]:
    """Make the code of a plan's tree available on the target. Returns the run's file that identifies it (name → text);
    {} for a run that has one, whose launch has sent the code, and for a plan without a tree. Raises NemotronError if
    that code is not on the target any more and the tree has changed since."""
    tree = paths.tree
    if not tree:
        return {}
    kept: Mapping[str, Any] = transport.call("code_of", root=paths.root, run=paths.run)[0]
    if kept.get("there"):
        return {}
    snapshot = take_snapshot(tree, settings, leave_out=artifact_folders(tree.root))
    if kept and kept["digest"] != snapshot.digest:
        raise NemotronError(
            f"The code that this was launched with (sha256 {kept['digest'][:12]}) is not on the target any more, and "
            f"{tree.root} holds another by now.",
            hint="Launch it again: nemotron runs rerun.",
        )
    send_snapshot(transport, snapshot, paths.root)
    return {CODE: json.dumps({**snapshot.to_dict(), "target_root": paths.root})}


def provide_package(folder: str) -> None:
    """Put nemotron_kit into a folder of this machine, for a container, unless it exists."""
    package = Path(folder)
    if package.is_dir():
        used(package)
    else:
        unpack(package_zip(), package)


def artifact_folders(root: str) -> list[str]:
    """The folders below `root` that versions of this machine's registry refer to, including damaged versions if their
    path can still be read."""
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
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)  # noqa: PTH115 — as it is written
            target = Path(os.path.normpath(path.parent / info.linkname))
            if not target.is_relative_to(root):
                info.linkname = str(target)  # the copy has another path
            elif info.linkname.startswith("/"):
                info.linkname = os.path.relpath(target, path.parent)
            yield info, b""
            continue
        info.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
        yield info, path.read_bytes()


def _pack(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> tuple[dict[str, int], bytes]:
    """(name → size, the archive). No time and no owner: equal content gives equal bytes."""
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
