"""What git says of a work tree. Nothing of the repository's own (hooks, filters, pagers) is run."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from nemotron_kit.errors import UserError

_SUBMODULE = "160000 "  # the mode of a link to another repository's commit
# fsmonitor is a program that a repository's own config names.
_QUIET = ("-c", "core.fsmonitor=false", "-c", "core.quotepath=false")


def git(root: Path, *words: str) -> bytes:
    """The output of `git words` in `root`; UserError with git's own words when it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *_QUIET, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{root} is a git work tree, but there is no git here to say what belongs to it.",
            hint='Install git, or choose packager = "pattern" or "none".',
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise UserError(f"git {words[0]} failed in {root}: {said}", hint='Or choose packager = "pattern" or "none".')
    return done.stdout


def listed(root: Path, *options: str) -> list[str]:
    """`git ls-files` relative to `root`, which may be a folder inside the work tree."""
    return [os.fsdecode(name) for name in git(root, "ls-files", "-z", *options).split(b"\x00") if name]


def work_tree(root: Path, *, new: bool, submodules: bool = True) -> Iterator[str]:
    """What git tracks in `root`, with its submodules' files; with `new`, also what is neither tracked nor ignored. A
    submodule's new files, and a clone that lies in the tree without being one, are new files like any other."""
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
    """(the commit that is checked out, None before the first; whether anything differs from it)."""
    status = git(root, "status", "--porcelain", "-z", "--untracked-files=normal", "--", ".")
    try:
        return git(root, "rev-parse", "HEAD").decode().strip(), bool(status)
    except UserError:
        return None, True


def committed(root: Path, *, submodules: bool = True) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """What the commit that is checked out has in `root`, submodules included: members of an archive, without owner and
    time."""
    top = Path(os.fsdecode(git(root, "rev-parse", "--show-toplevel")).rstrip("\n"))
    inside = root.resolve().relative_to(top.resolve()).as_posix()
    yield from _archived(top, "HEAD" if inside == "." else f"HEAD:{inside}", "")
    for record in git(root, "ls-tree", "-r", "-z", "HEAD").split(b"\x00") if submodules else ():
        facts, _, name = os.fsdecode(record).partition("\t")
        if facts.startswith(_SUBMODULE) and (root / name / ".git").exists():
            yield from _archived(root / name, facts.split()[2], f"{name}/")


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
    """UserError that names what is not committed."""
    changed = git(root, "status", "--porcelain", "--untracked-files=normal", "--", ".").decode("utf-8", "replace")
    lines = changed.splitlines()
    shown = "\n".join(f"  {line}" for line in lines[:10]) + (f"\n  … {len(lines) - 10} more" if len(lines) > 10 else "")
    raise UserError(
        f"packager 'git' sends what is committed, but {root} holds more:\n{shown}",
        hint='Commit it, use packager = "worktree", or allow_dirty = true to leave it out.',
    )
