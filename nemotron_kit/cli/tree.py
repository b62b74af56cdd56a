"""Finds nodes in a command tree by their names on a command line.

A tree is plain data (see index.py): a group has "children", a command has not. Nothing heavy is imported.
"""

from __future__ import annotations

import sys

from nemotron_kit.cli import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nemotron_kit.cli.index import Index, Node


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


def is_subsequence(names: Sequence[str], argv: Sequence[str]) -> bool:
    """Whether `argv` contains the names in their order, possibly with other arguments between them."""
    rest = iter(argv)
    return all(argument in rest for argument in names)


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
