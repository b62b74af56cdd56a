"""The command trees as plain data, cached: help and completion read it instead of importing recipes."""

from __future__ import annotations

import binascii
import json
import os
import sys

import nemotron_kit
from nemotron_kit.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Node = dict[str, Any]
    Stamp = list[Any]  # path, mtime in ns, size in bytes (-1: no such file), mode, owner
else:
    Node, Stamp = dict, list

# Importing pathlib takes as long as the rest of a help page.
# ruff: noqa: PTH109, PTH110, PTH111, PTH113, PTH116, PTH117, PTH118, PTH120, PTH123


RESERVED = ("wandb", "artifacts", "cache", "cli", "tracking")


def home() -> str:
    """`$NEMOTRON_HOME`, or ~/.nemotron. Raises UserError if `~` can't be resolved."""
    named = os.environ.get("NEMOTRON_HOME") or "~/.nemotron"
    if (named == "~" or named.startswith("~/")) and not _has_home():
        from nemotron_kit.home import check_home

        check_home()
    return os.path.join(os.getcwd(), os.path.expanduser(named))


def _has_home() -> bool:
    return "HOME" not in os.environ or os.path.isabs(os.environ["HOME"])


def find() -> str | None:
    """The env.toml that envfile.find_env_file finds; the path in `NEMOTRON_ENV_FILE` even if the file does not
    exist."""
    named = os.environ.get("NEMOTRON_ENV_FILE")
    if named:
        return os.path.join(os.getcwd(), os.path.expanduser(named))
    folders = [*_project_folders(os.getcwd()), *([os.path.expanduser("~/.config/nemotron")] if _has_home() else [])]
    files = (os.path.join(folder, "env.toml") for folder in folders)
    return next((file for file in files if os.path.isfile(file)), None)


def _project_folders(start: str) -> list[str]:
    """`start` and its parents up to the first folder with a pyproject.toml or .git; [start] when there is none."""
    folders = [start]
    while True:
        folder = folders[-1]
        if any(os.path.exists(os.path.join(folder, mark)) for mark in ("pyproject.toml", ".git")):
            return folders
        above = os.path.dirname(folder)
        if above == folder:
            return [start]
        folders.append(above)


def artifacts_root() -> str:
    """The registry's folder on this machine; the same as artifacts.registry.open_registry().root."""
    table, path = tables().get("artifacts"), find()
    named = table.get("root") if isinstance(table, dict) else None
    if isinstance(named, str) and path is not None:
        return os.path.join(os.path.dirname(path), os.path.expanduser(named.removeprefix("file://")))
    return os.path.join(home(), "artifacts")


def tables() -> dict[str, Any]:
    """The tables of env.toml; {} if it does not exist or can't be read, since completion can't report errors."""
    path = find()
    if path is None:
        return {}
    import tomllib

    from nemotron_kit.ownership import untrusted_reason

    try:
        if untrusted_reason(path):
            return {}
        with open(path, encoding="utf-8-sig") as file:
            return tomllib.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}


FORMAT = 3
# The detail (see Index.detail) of a node that is no command, or a broken one.
NO_DETAIL: Node = {"fields": [], "artifacts": [], "configs": [], "groups": {}, "config_folder": "", "produces": []}


class Index:
    """The command trees. `root` is a group whose children are the recipes; `broken` maps the other recipes' names to
    their errors."""

    def __init__(self, root: Node, broken: dict[str, str], lines: list[str]) -> None:
        self.root = root
        self.broken = broken
        self._lines = lines

    def detail(self, leaf: Node) -> Node:
        """What a command takes: {"fields", "artifacts", "configs", "groups", "config_folder", "produces",
        "interactive"}."""
        detail: Node = json.loads(self._lines[leaf["line"]])
        return detail


def load_index() -> Index:
    """The index, for help and completion: from the cache, which is rebuilt if it is not valid. A job reads its trees
    live: `indexing.LiveIndex`."""
    cached = read(cache_file(), cache_key())
    if cached is not None:
        return cached
    from nemotron_kit.cli import indexing

    return indexing.rebuild()


def cache_key() -> list[str]:
    """The values on which a cached index depends besides files."""
    folder = os.path.dirname(nemotron_kit.__file__)
    return [
        f"{FORMAT} {nemotron_kit.__version__}",
        sys.version,
        sys.prefix,
        folder,
        find() or "",
        *import_path(),
    ]


def import_path() -> list[str]:
    """The import path of recipes: sys.path without the program's folder, or the working folder, which Python adds."""
    working_folder = os.getcwd()
    return [entry for entry in sys.path[1:] if entry not in ("", working_folder)]


def cache_file() -> str:
    """The cache's path; one file for each key, so that two checkouts don't overwrite each other's."""
    name = binascii.crc32("\0".join(cache_key()).encode("utf-8", "surrogateescape"))
    return os.path.join(home(), "cache", f"index-{name:08x}.jsonl")


def stamp(path: str) -> Stamp:
    """The path with values that change with the file (or with the names in the folder)."""
    try:
        found = os.stat(path)
    except OSError:
        return [path, 0, -1]
    # Who owns it and may write to it: a folder's recipes are not imported because of that.
    return [path, found.st_mtime_ns, found.st_size, found.st_mode, found.st_uid]


def read(path: str, key: list[str]) -> Index | None:
    """The index cached at `path`; None unless the file is owned by this user, complete, for `key`, and up to date."""
    try:
        head, _, body = _read_trusted(path).partition("\n")
        header = json.loads(head)
        if header["key"] != key or header["crc"] != binascii.crc32(body.encode("utf-8", "surrogateescape")):
            return None
        sources = [stamp(source[0]) for source in header["sources"]]
        changed = [now[0] for now, then in zip(sources, header["sources"], strict=True) if now != then]
        if changed:
            if changed != [find()] or not _names_same_recipes(header):
                return None
            _rewrite(path, {**header, "sources": sources}, body)
        lines = body.split("\n")
        tree = json.loads(lines[0])
        return Index(tree["root"], tree["broken"], lines[1:])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _names_same_recipes(header: dict[str, Any]) -> bool:
    """Whether env.toml, which has changed, says the same of recipes: the index depends on nothing else in it, and
    importing every recipe takes seven times as long as reading it."""
    from nemotron_kit.envfile import read_env_file

    try:
        # None: it could not be read when the index was made.
        return bool(header["recipes"] == read_env_file().table("cli").get("recipes", []))
    except UserError:
        return False


def _rewrite(path: str, header: dict[str, Any], body: str) -> None:
    """Store the new state of env.toml, from before it was read, so that it need not be read again."""
    from pathlib import Path

    from nemotron_kit.files import write_text

    try:
        write_text(Path(path), f"{json.dumps(header)}\n{body}")
    except OSError:  # the next call reads it again
        return


def dump(
    root: Node,
    broken: dict[str, str],
    details: list[Node],
    sources: list[Stamp],
    key: list[str],
    recipes: list[str] | None = None,
) -> str:
    """The text of a cache file. `recipes`: those that env.toml names; None if it can't be read."""
    body = "\n".join(json.dumps(each) for each in ({"root": root, "broken": broken}, *details))
    header = {"key": key, "crc": binascii.crc32(body.encode()), "sources": sources, "recipes": recipes}
    return f"{json.dumps(header)}\n{body}"


def _read_trusted(path: str) -> str:
    """The text of a file that belongs to this user and that no other user may write. Raises OSError otherwise."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(path)
        return file.read()
