"""The doors of the command line: the `nemotron` console script, `python -m nemotron_kit`, and App.run()."""

from __future__ import annotations

import gc
import os
import sys

from nemotron_kit.errors import NemotronError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from nemotron_kit.app import App
    from nemotron_kit.cli.index import Index
    from nemotron_kit.cli.request import Request
    from nemotron_kit.discovery import Tree


def nemotron(argv: Sequence[str] | None = None) -> int:
    """`nemotron …`: words, in the documented syntax."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _nemotron(words))


def console() -> NoReturn:
    """The console script. What only printed ends at once: taking a large process apart is a tenth of its time."""
    leave(nemotron())


def leave(code: int) -> NoReturn:
    """End this process. A job that ran in it ends as every Python program does; a launch to elsewhere that loaded
    NeMo-Run does not spend seconds on taking it and torch apart."""
    ran = "nemotron_kit.execution.launch" in sys.modules or "nemotron_kit.cli.hydra_app" in sys.modules
    if ran and "nemo_run" not in sys.modules:
        sys.exit(code)
    code = guarded(_flushed) or code
    os._exit(code)


def _flushed() -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    return 0


def hydra(argv: Sequence[str] | None = None) -> int:
    """`python -m nemotron_kit …`: the same, in Hydra's own words."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _hydra(words))


def run_app(app: App, argv: Sequence[str]) -> int:
    """`app.run()`: the words below one app, as in `python -m myrecipe data prep run -c tiny`."""
    return guarded(lambda: _app(app, list(argv)))


def guarded(action: Callable[[], int]) -> int:
    """Run a command; a user's mistake is one clear error and an exit code, a traceback only with HYDRA_FULL_ERROR=1."""
    try:
        return action()
    except NemotronError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        # `nemotron … | head`: nobody reads on, which is no error. Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is not None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # No file's name: it was what we printed that could not be written (a full disk, a closed terminal).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: output can't be written: {error.strerror}.", file=sys.stderr)  # noqa: T201
        return 1


def print_error(error: NemotronError) -> None:
    """`error: what was wrong`, and below it what would be right."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    label = "\x1b[1;31merror:\x1b[0m" if colour else "error:"
    print(f"{label} {error.message}", file=sys.stderr)  # noqa: T201
    if error.hint:
        print(error.hint, file=sys.stderr)  # noqa: T201


def _nemotron(words: list[str]) -> int:
    from nemotron_kit.cli import fast

    code = fast.handle(words)
    if code is not None:
        return code
    from nemotron_kit.cli.tree import TOOLS

    if words and words[0] in TOOLS:
        return _tool(words[0], words[1:])
    from nemotron_kit.cli.words import parse

    tree = _tree(words)
    return _dispatch(parse(words, _index(tree)), ["nemotron", *words], tree)


def _tool(name: str, argv: Sequence[str]) -> int:
    from importlib import import_module

    from nemotron_kit.cli.tree import TOOLS

    return int(import_module(TOOLS[name][0]).main(list(argv)))


def _hydra(words: list[str]) -> int:
    from nemotron_kit.cli.hydra_argv import parse_hydra

    tree = _tree(words)
    return _dispatch(parse_hydra(words, _index(tree)), ["python", "-m", "nemotron_kit", *words], tree)


def _app(app: App, words: list[str]) -> int:
    from nemotron_kit.cli import fast
    from nemotron_kit.cli.words import parse
    from nemotron_kit.discovery import Tree

    tree, root = Tree(apps={app.name: app}), (app.name,)
    index = _index(tree)
    code = fast.handle(words, index, root)
    if code is not None:
        return code
    return _dispatch(parse(words, index, root=root, prog=_program()), [*_program().split(), *words], tree, root)


def _tree(words: list[str]) -> Tree:
    from nemotron_kit.discovery import discover

    # Composing makes many objects and drops few: collecting in the middle of it only costs time.
    gc.disable()
    return discover(words=words)


def _index(tree: Tree) -> Index:
    from nemotron_kit.cli import indexing

    return indexing.live(tree)


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"


def _dispatch(request: Request, argv: list[str], tree: Tree, root: tuple[str, ...] = ()) -> int:
    from nemotron_kit.cli.request import Job, Tool

    if isinstance(request, Tool):
        return _tool(request.name, request.argv)
    if isinstance(request, Job):
        from nemotron_kit.cli.job import run

        return run(request, argv, tree)
    from nemotron_kit.cli import fast

    return fast.show(request, _index(tree), root)
