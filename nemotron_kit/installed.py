"""Versions and entry points of the installed packages, read from the folders that hold their metadata.

importlib.metadata gives the same answers, but importing it and letting it parse each package's whole description takes
a fifth of the time in which a job's process starts. It is asked where packages lie in anything but folders: in zip
files and eggs, or with a finder of somebody else's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.machinery import PathFinder

from nemotron_kit.errors import UserError

_SEPARATORS = re.compile(r"[-_.]+")


def versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of these packages that are installed."""
    names = list(names)
    installed = _installed()
    found: dict[str, str] = {}
    if installed is None:
        from importlib import metadata

        for name in names:
            with suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        return found
    for name in names:
        folder = installed.get(_normalized(name))
        if folder is not None and (version := _version(folder)):
            found[name] = version
    return found


def entry_points(group: str) -> Iterator[tuple[str, str]]:
    """(name, "module" or "module:object") of each entry point in that group."""
    installed = _installed()
    if installed is None:
        from importlib import metadata

        yield from ((point.name, point.value) for point in metadata.entry_points(group=group))
        return
    for folder in installed.values():
        text, section = _text(f"{folder}/entry_points.txt"), ""
        for line in map(str.strip, text.splitlines() if group in text else ()):
            if line.startswith("[") and line.endswith("]"):
                section = line[1:-1]
            elif line and not line.startswith("#") and section == group:
                name, _, value = line.partition("=")
                yield name.strip(), value.strip()


def require_packages(names: Iterable[str], who: str, *, hint: str) -> None:
    """Raise UserError if one of these packages can't be imported; `who` is such as "Data prep needs"."""
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{who} {', '.join(missing)}, which {verb} not installed.", hint=hint)


def _installed() -> dict[str, str] | None:
    """Name → folder of its metadata of each package, in the order of the import path, of which the first wins; None
    where folders don't tell."""
    if any(finder is not PathFinder and hasattr(finder, "find_distributions") for finder in sys.meta_path):
        return None
    found: dict[str, str] = {}
    for entry in map(str, sys.path):
        try:
            with os.scandir(entry or ".") as listed:
                names = [item.name for item in listed]
        except NotADirectoryError:
            return None
        except OSError:  # not there, or not readable: nothing is imported from it either
            continue
        if entry.lower().endswith(".egg"):
            return None
        for name in names:
            stem, _, kind = name.lower().rpartition(".")
            if kind in ("dist-info", "egg-info"):
                found.setdefault(_normalized(stem.partition("-")[0]), f"{entry or '.'}/{name}")
    return found


def _normalized(name: str) -> str:
    return _SEPARATORS.sub("_", name.lower())


def _version(folder: str) -> str | None:
    text = _text(f"{folder}/METADATA") or _text(f"{folder}/PKG-INFO") or _text(folder)
    for line in text.splitlines():
        if not line:  # the headers end
            break
        if line[:8].lower() == "version:":
            return line[8:].strip()
    return None


def _text(path: str) -> str:
    """A file's text; nothing for one that is not there."""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
