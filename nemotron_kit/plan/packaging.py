"""Which code a launch sends: the folder that is the tree, and where in it the launch stands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from nemotron_kit.errors import UserError
from nemotron_kit.plan.runconfig import RunConfig

WORKTREE, NONE = "worktree", "none"
_LOOKED_AT = 1000


@dataclass(frozen=True)
class CodeTree:
    """`root` on this machine is what a job finds as its code; `inside` is the launch folder relative to it, "." for the
    root itself. `git`: the root lies in a git work tree."""

    root: str
    inside: str
    packager: str
    git: bool


def code_tree(settings: RunConfig, cwd: Path | None = None) -> CodeTree | None:
    """The tree that goes along with a job; None for packager "none". Looks for a .git, starts no program."""
    packager = settings.packager or WORKTREE
    if packager == NONE:
        return None
    here = (cwd or Path.cwd()).resolve()
    top = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)
    if packager == "git" and top is None:
        raise UserError(f"packager 'git': {here} is in no git repository.", hint='Use packager = "worktree".')
    root = top or here
    if settings.subpath:
        root = (root / settings.subpath).resolve()
        if not root.is_dir():
            raise UserError(f"subpath: {settings.subpath} is no folder of {top or here}.")
    inside = os.path.relpath(here, root) if here.is_relative_to(root) else "."
    return CodeTree(str(root), inside, packager, top is not None)


def ignored(tree: CodeTree, names: Sequence[str]) -> set[str]:
    """Which of these files of the tree git ignores (and does not track). Without git, or another packager: none."""
    if not tree.git or tree.packager not in (WORKTREE, "git"):
        return set()
    return set(_git(tree.root, "check-ignore", "-z", "--stdin", text="".join(f"{name}\x00" for name in names)))


@cache
def repositories_left_out(tree: CodeTree) -> tuple[str, ...]:
    """Repositories inside the tree that git ignores there, so that they are not sent."""
    if not tree.git or tree.packager not in (WORKTREE, "git"):
        return ()
    folders = _git(tree.root, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
    return tuple(name for folder in folders if folder.endswith("/") for name in _repositories(tree.root, folder))


def _repositories(root: str, folder: str) -> Iterator[str]:
    """`folder` itself, or what lies directly in it."""
    inside = (entry.path for entry in islice(os.scandir(Path(root, folder)), _LOOKED_AT))
    for path in (Path(root, folder), *map(Path, inside)):
        if (path / ".git").exists():
            yield path.relative_to(root).as_posix()


def _git(root: str, *words: str, text: str = "") -> list[str]:
    """Names that git prints; nothing where there is no git, as packing says."""
    import subprocess

    given = text.encode("utf-8", "surrogateescape")
    try:
        line = ["git", "-C", root, "-c", "core.fsmonitor=false", *words]  # a program that the repository names
        done = subprocess.run(line, input=given, capture_output=True, check=False)
    except FileNotFoundError:
        return []
    return [name.decode("utf-8", "surrogateescape") for name in done.stdout.split(b"\x00") if name]
