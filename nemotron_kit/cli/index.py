"""The command trees as plain data, cached: what help and completion read instead of importing recipes.

The cache is a private file of JSON lines under $NEMOTRON_HOME/cache: a header (key, sources with mtime and size,
checksum), the tree, then one line for each command. It is good while no source has changed; anything else about it
that isn't as it should be (another owner, a flipped bit) means building it anew. Jobs never read or write it.
"""

# pathlib alone costs as much as the rest of a help page.
# ruff: noqa: PTH116, PTH118, PTH120, PTH123
from __future__ import annotations

import binascii
import json
import os
import sys

import nemotron_kit
from nemotron_kit.cli import env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Node = dict[str, Any]
    Stamp = list[Any]  # path, mtime in ns, size in bytes (-1: it isn't there)
else:
    Node, Stamp = dict, list

FORMAT = 1


class Index:
    """The trees. `root` is a group whose children are the recipes; `broken` says why a recipe isn't among them."""

    def __init__(self, root: Node, broken: dict[str, str], lines: list[str]) -> None:
        self.root = root
        self.broken = broken
        self._lines = lines

    def detail(self, leaf: Node) -> Node:
        """What a command takes: {"fields", "artifacts", "configs", "config_folder", "produces"}."""
        detail: Node = json.loads(self._lines[leaf["line"]])
        return detail


def load_index() -> Index:
    """The index, for help and completion: from the cache, which is made anew when it is not good. (A job reads its
    trees live, by `indexing.live`.)"""
    cached = read(cache_file(), cache_key())
    if cached is not None:
        return cached
    from nemotron_kit.cli import indexing

    return indexing.rebuild()


def cache_key() -> list[str]:
    """What must be equal for a cached index to be about the same recipes."""
    folder = os.path.dirname(nemotron_kit.__file__)
    return [
        f"{FORMAT} {nemotron_kit.__version__}",
        sys.version,
        sys.prefix,
        folder,
        env.find() or "",
        *import_path(),
    ]


def import_path() -> list[str]:
    """Where recipes are imported from: without the folder of the program, or the working folder, that Python adds."""
    here = os.getcwd()  # noqa: PTH109
    return [entry for entry in sys.path[1:] if entry not in ("", here)]


def cache_file() -> str:
    """The cache's path; one file for each key, so that two checkouts don't take turns in overwriting each other's."""
    name = binascii.crc32("\0".join(cache_key()).encode("utf-8", "surrogateescape"))
    return os.path.join(env.home(), "cache", f"index-{name:08x}.jsonl")


def stamp(path: str) -> Stamp:
    """The path with what changes when the file (or the list of names in the folder) does."""
    try:
        found = os.stat(path)
    except OSError:
        return [path, 0, -1]
    return [path, found.st_mtime_ns, found.st_size]


def read(path: str, key: list[str]) -> Index | None:
    """The index cached at `path`, or None unless it is ours, whole, about `key`, and still true."""
    try:
        head, _, body = _own_text(path).partition("\n")
        header = json.loads(head)
        if header["key"] != key or header["crc"] != binascii.crc32(body.encode("utf-8", "surrogateescape")):
            return None
        if any(stamp(source[0]) != source for source in header["sources"]):
            return None
        lines = body.split("\n")
        tree = json.loads(lines[0])
        return Index(tree["root"], tree["broken"], lines[1:])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def dump(root: Node, broken: dict[str, str], details: list[Node], sources: list[Stamp], key: list[str]) -> str:
    """The text of a cache file."""
    body = "\n".join(json.dumps(each) for each in ({"root": root, "broken": broken}, *details))
    header = {"key": key, "crc": binascii.crc32(body.encode()), "sources": sources}
    return f"{json.dumps(header)}\n{body}"


def _own_text(path: str) -> str:
    """The text of a file that is this user's and that nobody else may write; OSError otherwise."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(path)
        return file.read()
