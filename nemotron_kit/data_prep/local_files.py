"""Finds files on this machine: those below a folder, and those that a path or pattern denotes, links followed."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_kit.files import kind_of_file

NAMED = 100  # names kept of each reason
_MAGIC = re.compile(r"[*?\[]")


@dataclass
class Omissions:
    """Files of a source that are not read: reason → number, and the first names."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, why: str) -> None:
        """Count a file that is not read, and keep its name if it is one of the first of its reason."""
        self.counts[why] = self.counts.get(why, 0) + 1
        kept = self.names.setdefault(why, [])
        if len(kept) < NAMED:
            kept.append(name)


def is_pattern(text: str) -> bool:
    """Whether a path has a character that matches others: `*`, `?` or `[`."""
    return bool(_MAGIC.search(text))


def local_files_below(root: Path, left: Omissions) -> dict[str, Path]:
    """Relative path → path, of every regular file below `root`, links followed; hidden ones are left out."""
    found: dict[str, Path] = {}
    for folder in _folders(root, left):
        before = "" if folder == root else f"{folder.relative_to(root)}/"
        for entry in _entries(folder):
            name = before + entry.name
            if entry.name.startswith("."):
                left.add(name, "hidden")
                continue
            # A file is known from the listing, without a stat for each.
            if entry.is_file(follow_symlinks=False) or _kind(entry.path, name, left) == stat.S_IFREG:
                found[name] = folder / entry.name
    return found


def matching(path: Path, left: Omissions | None = None) -> list[Path]:
    """The regular files that a path denotes, sorted.

    Component by component: an existing one is taken literally, whatever characters it has; any other is a pattern, in
    which `**` matches any number of folders. Patterns match hidden names only if they begin with a dot.
    """
    left = Omissions() if left is None else left
    first, *rest = path.parts
    places = [Path(first)]
    for number, part in enumerate(rest, 1):
        found = [below for place in places for below in _step(place, part, number == len(rest), left)]
        places = list(dict.fromkeys(found))
    files = []
    for place in sorted(places, key=str):
        kind = _kind(str(place), str(place), left)
        if kind == stat.S_IFREG:
            files.append(place)
        elif kind == stat.S_IFDIR and path.name != "**":  # such as the a.jsonl/ that Spark writes
            left.add(str(place), "a folder, of which a pattern takes nothing: end it with /**")
    return files


def _step(place: Path, part: str, last: bool, left: Omissions) -> Iterator[Path]:
    if os.path.lexists(place / part):
        yield place / part
    elif part == "**":
        for folder in _folders(place, left) if place.is_dir() else ():
            yield folder
            if last:  # the files, too
                yield from (folder / entry.name for entry in _entries(folder) if not entry.name.startswith("."))
    elif is_pattern(part) and place.is_dir():
        for entry in _entries(place):
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if not hidden and fnmatch.fnmatchcase(entry.name, part):
                yield place / entry.name


def _folders(root: Path, left: Omissions) -> Iterator[Path]:
    """`root` and every folder below it that is not hidden, each real folder once: directories before links."""
    above = {_identity(parent) for parent in root.resolve().parents}
    seen: dict[tuple[int, int], Path] = {}
    real, links = deque([root]), deque[Path]()
    while real or links:
        folder = real.popleft() if real else links.popleft()
        identity, name = _identity(folder), str(folder.relative_to(root))
        if identity in seen:
            same = seen[identity].relative_to(root)
            left.add(name, f"a link to {'the folder itself' if same == Path() else f'{same}/, which is read'}")
            continue
        if identity in above:
            left.add(name, "a link to a folder above")
            continue
        seen[identity] = folder
        yield folder
        for entry in _entries(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                real.append(folder / entry.name)
            elif entry.is_symlink():
                mode = _mode(entry.path)
                if isinstance(mode, int) and stat.S_ISDIR(mode):
                    links.append(folder / entry.name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _kind(path: str, name: str, left: Omissions) -> int:
    """S_IFREG or S_IFDIR of a path's target; what is neither, or not there, is left out under `name`."""
    mode = _mode(path)
    if isinstance(mode, str):
        left.add(name, mode)
        return 0
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        left.add(name, f"{kind_of_file(mode)}, not a regular file")
    return stat.S_IFMT(mode)


def _mode(path: str) -> int | str:
    """The mode of a path's target, or why it has none."""
    try:
        return os.stat(path).st_mode  # noqa: PTH116  (a Path for each of a million files takes longer than the call)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "a link that leads nowhere"
        if error.errno == errno.ELOOP:
            return "a link that leads in a circle"
        raise
