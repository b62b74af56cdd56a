"""Help, version and completion, printed from the index before anything heavy is imported."""

from __future__ import annotations

import sys

from nemotron_kit.cli import tree
from nemotron_kit.cli.tools import TOOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nemotron_kit.cli.index import Index
    from nemotron_kit.cli.request import Request


def handle(argv: Sequence[str], index: Index | None = None, root: tuple[str, ...] = ()) -> int | None:
    """The exit code, once the page or the answer is printed; None when `argv` asks for something else, or wrongly.

    `index` and `root` are given for one app (`python -m myrecipe`). No arguments at all: the help page, and 0.
    """
    if not root and argv[:1] == ["__complete"]:
        from nemotron_kit.cli.completion import answer

        return answer(argv[1:])
    if not root and argv[:1] == ["--version"]:
        return version()
    names = _asked(argv, root)
    if names is None:
        return None
    index = _index(index)
    reached = tree.walk(names, index, root)
    if reached.unknown is not None:
        return None
    from nemotron_kit.cli import help as pages

    return pages.show(index, reached.path, root=root)


def show(request: Request, index: Index | None = None, root: tuple[str, ...] = ()) -> int:
    """Print what a Help or Version request asks for; the exit code (2 for a group that was named without a command)."""
    from nemotron_kit.cli import help as pages
    from nemotron_kit.cli.request import Help

    if not isinstance(request, Help):
        return version()
    return pages.show(_index(index), request.path, asked=request.asked, root=root)


def version() -> int:
    from nemotron_kit import __version__

    sys.stdout.write(f"nemotron-kit {__version__} (Python {sys.version.split()[0]})\n")
    sys.stdout.flush()
    return 0


def _asked(argv: Sequence[str], root: tuple[str, ...]) -> Sequence[str] | None:
    """The words that help is asked about: `X --help`, `help X`, or nothing at all. None when it isn't."""
    first = tree.first_name(argv)
    if not root and first == "help":
        at = list(argv).index(first)
        argv = [*argv[:at], *argv[at + 1 :]]
        first = tree.first_name(argv)
    elif argv and not tree.wants_help(argv):
        return None
    return None if not root and first in TOOLS else argv


def _index(index: Index | None) -> Index:
    if index is not None:
        return index
    from nemotron_kit.cli.index import load_index

    return load_index()
