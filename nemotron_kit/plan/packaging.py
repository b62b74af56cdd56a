"""Which code a launch sends: the folder that is the tree, and where in it the launch stands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_kit.errors import UserError
from nemotron_kit.plan.runconfig import RunConfig

WORKTREE, NONE = "worktree", "none"


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
    import subprocess

    try:
        done = subprocess.run(
            ["git", "-C", tree.root, "check-ignore", "-z", "--stdin"],
            input="".join(f"{name}\x00" for name in names).encode("utf-8", "surrogateescape"),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return set()  # packing says that git is missing
    return {name.decode("utf-8", "surrogateescape") for name in done.stdout.split(b"\x00") if name}
