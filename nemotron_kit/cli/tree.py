"""The command trees as plain data: found by the names on a command line, and cached, so that help and completion import
no recipe. A group has "children", a command has not. Nothing heavy is imported.
"""

from __future__ import annotations

import binascii
import os
import sys

import nemotron_kit
from nemotron_kit.cli import options
from nemotron_kit.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Node = dict[str, Any]
    Stamp = list[Any]  # path, mtime in ns, size in bytes (-1: no such file), mode, owner
else:
    Node, Stamp = dict, list

# Importing pathlib takes as long as the rest of a help page; json is imported where the index is read.
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
    return os.path.isabs(os.environ.get("HOME", os.path.expanduser("~")))


def find_env_file() -> str | None:
    """The env.toml that envfile.find_env_file finds; the path in `NEMOTRON_ENV_FILE` even if the file does not
    exist."""
    named = os.environ.get("NEMOTRON_ENV_FILE")
    if named:
        return os.path.join(os.getcwd(), os.path.expanduser(named))
    folders = [os.getcwd()]  # and those above it, up to the first with a pyproject.toml or .git
    while not any(os.path.exists(os.path.join(folders[-1], mark)) for mark in ("pyproject.toml", ".git")):
        above = os.path.dirname(folders[-1])
        if above == folders[-1]:  # there is none
            folders = folders[:1]
            break
        folders.append(above)
    folders += [os.path.expanduser("~/.config/nemotron")] if _has_home() else []
    files = (os.path.join(folder, "env.toml") for folder in folders)
    return next((file for file in files if os.path.isfile(file)), None)


def artifacts_root() -> str:
    """The registry's folder on this machine; the same as artifacts.registry.open_registry().root."""
    table, path = tables().get("artifacts"), find_env_file()
    named = table.get("root") if isinstance(table, dict) else None
    if isinstance(named, str) and path is not None:
        return os.path.join(os.path.dirname(path), os.path.expanduser(named.removeprefix("file://")))
    return os.path.join(home(), "artifacts")


def tables() -> dict[str, Any]:
    """The tables of env.toml; {} if it does not exist or can't be read, since completion can't report errors."""
    path = find_env_file()
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
        import json

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
        find_env_file() or "",
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
    import json

    try:
        head, _, body = _read_trusted(path).partition("\n")
        header = json.loads(head)
        if header["key"] != key or header["crc"] != binascii.crc32(body.encode("utf-8", "surrogateescape")):
            return None
        sources = [stamp(source[0]) for source in header["sources"]]
        changed = [now[0] for now, then in zip(sources, header["sources"], strict=True) if now != then]
        if changed:
            if changed != [find_env_file()] or not _names_same_recipes(header):
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
    import json
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
    import json

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


def is_group(node: Node) -> bool:
    """Whether a node has children; a command or a pipeline has none."""
    return "children" in node


def child(node: Node, argument: str) -> Node | None:
    """The child called `argument`, by name or by alias; None if there is none."""
    children: dict[str, Node] = node.get("children", {})
    if argument in children:
        return children[argument]
    return next((each for each in children.values() if argument in each.get("aliases", ())), None)


def find(index: Index, names: Sequence[str]) -> Node | None:
    """The node that `names` lead to from the root."""
    node: Node | None = index.root
    for argument in names:
        node = child(node, argument) if node else None
    return node


def leaves(node: Node) -> list[Node]:
    """Every command at or below `node`, in the order of declaration."""
    if "children" not in node:
        return [node]
    return [leaf for each in node["children"].values() for leaf in leaves(each)]


def spellings(leaf: Node) -> list[tuple[str, ...]]:
    """The names that lead to a command: its path, then its path with each alias."""
    *above, name = leaf["path"]
    return [(*above, last) for last in (name, *leaf.get("aliases", ()))]


class Walk:
    """Where a command line leads: the node reached, its canonical path, and the first argument that names no child."""

    def __init__(self, node: Node, path: tuple[str, ...]) -> None:
        self.node, self.path = node, path
        self.unknown: str | None = None
        self.taken: list[tuple[str, str]] = []  # (option, the argument taken as its value)


def walk(argv: Sequence[str], index: Index, root: tuple[str, ...] = ()) -> Walk:
    """Follow the arguments that are no options down the tree. The argument after an unknown option may be that option's
    value, so it is skipped if it names no node."""
    node = find(index, root)
    found = Walk(index.root if node is None else node, root)
    may_be_value = False
    tokens = iter(argv)
    for argument in tokens:
        if options.is_option(argument):
            takes = options.takes_next(argument)
            if takes:
                found.taken.append((argument, next(tokens, "")))
            may_be_value = argument != "--" and takes is None and "=" not in argument
            continue
        below = child(found.node, argument)
        if below is not None:
            found.node, found.path = below, tuple(below["path"])
        elif not options.is_override(argument) and not may_be_value and is_group(found.node):
            found.unknown = argument
            return found
        may_be_value = False
    return found


def first_name(argv: Sequence[str]) -> str | None:
    """The first argument that is no option and no option's value."""
    tokens = iter(argv)
    for argument in tokens:
        if not options.is_option(argument):
            if not options.is_override(argument):
                return argument
        elif options.takes_next(argument):
            next(tokens, None)
    return None


def wants_help(argv: Sequence[str]) -> bool:
    """Whether -h or --help occurs before a `--`."""
    names = argv[: argv.index("--")] if "--" in argv else argv
    return "-h" in names or "--help" in names


def program(root: tuple[str, ...] = ()) -> str:
    """The name of this program: `nemotron`, or `python -m myrecipe` if an app runs itself."""
    if not root:
        return "nemotron"
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"
