"""Which files of a tree go along, by packager. Each is one function."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_kit.errors import UserError
from nemotron_kit.execution.snapshot_git import work_tree
from nemotron_kit.home import nemotron_home

# No code, wherever they stand.
_CACHES = frozenset(
    {"__pycache__", "node_modules", ".git", ".hg", ".svn", ".tox", ".nox", ".venv", ".ipynb_checkpoints"}
)


@dataclass(frozen=True)
class Choice:
    """What to choose from: `root`, whether it lies in a git work tree, and what the profile says. In the folders of
    `leave_out` only what git tracks is code."""

    root: Path
    in_git: bool = False
    patterns: Sequence[str] = ()
    submodules: bool = True
    leave_out: Collection[str] = field(default_factory=tuple)


def choose(packager: str, choice: Choice) -> list[str]:
    """Paths relative to the root, sorted: files and links."""
    found = set(_PACKAGERS[packager](choice))
    return sorted(name for name in found if _is_there(choice.root / name))


def tracked(choice: Choice) -> list[str]:
    """What git tracks, with the submodules' own files where they are wanted."""
    return list(work_tree(choice.root, new=False, submodules=choice.submodules))


def _worktree(choice: Choice) -> list[str]:
    """Tracked and new files that git doesn't ignore; without git all but environments, caches and records."""
    if not choice.in_git:
        return [name for name in _walk(choice.root, "") if not _left_out(choice, name)]
    known = set(tracked(choice))
    found = work_tree(choice.root, new=True, submodules=choice.submodules)
    return [name for name in found if name in known or not _left_out(choice, name)]


def _git(choice: Choice) -> list[str]:
    return [*tracked(choice), *_matching(choice)]


def _pattern(choice: Choice) -> list[str]:
    if not choice.patterns:
        raise UserError("packager 'pattern' needs packager_include_pattern.", hint='For instance ["src/**/*.py"].')
    found = _matching(choice)
    if not found:
        raise UserError(f"packager_include_pattern: nothing in {choice.root} matches {', '.join(choice.patterns)}.")
    return found


_PACKAGERS: dict[str, Callable[[Choice], list[str]]] = {
    "worktree": _worktree,
    "git": _git,
    "pattern": _pattern,
    "hybrid": _git,
}


def _matching(choice: Choice) -> list[str]:
    found: list[str] = []
    for pattern in choice.patterns:
        if pattern.startswith("/") or ".." in Path(pattern).parts:
            raise UserError(f"packager_include_pattern: {pattern} leads out of {choice.root}.")
        for path in choice.root.glob(pattern):
            name = path.relative_to(choice.root).as_posix()
            found += _walk(choice.root, name) if path.is_dir() and not path.is_symlink() else [name]
    return found


def _walk(root: Path, below: str) -> Iterator[str]:
    for folder, names, files in os.walk(root / below):
        here = Path(folder)
        names[:] = [name for name in names if not _is_debris(here / name)]
        for name in [*files, *(name for name in names if (here / name).is_symlink())]:
            yield (here / name).relative_to(root).as_posix()


def _left_out(choice: Choice, name: str) -> bool:
    text = str(choice.root / name)
    return any(text == folder or text.startswith(folder.rstrip("/") + "/") for folder in choice.leave_out)


def _is_debris(folder: Path) -> bool:
    """A cache (its CACHEDIR.TAG says so), an environment of Python's, or the kit's own records."""
    if folder.name in _CACHES or folder.name.endswith(".egg-info"):
        return True
    if (folder / "pyvenv.cfg").exists() or (folder / "CACHEDIR.TAG").exists():
        return True
    return folder.resolve() == nemotron_home().resolve()


def _is_there(path: Path) -> bool:
    """Files that were deleted are still tracked; sockets, pipes and a submodule's own folder are no files."""
    return path.suffix != ".pyc" and (path.is_symlink() or path.is_file())
