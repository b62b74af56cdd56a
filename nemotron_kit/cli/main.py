"""The entry points of the command line: the script `nemotron`, `python -m nemotron_kit`, and App.run()."""

from __future__ import annotations

import gc
import os
import sys

from nemotron_kit.errors import NemotronError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from nemotron_kit.app import App
    from nemotron_kit.cli.index import Index
    from nemotron_kit.cli.request import Request
    from nemotron_kit.discovery import Tree


def nemotron(argv: Sequence[str] | None = None) -> int:
    """`nemotron …`: the documented syntax."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _nemotron(_readable(arguments)))


def console() -> NoReturn:
    """The console script."""
    leave(nemotron())


def leave(code: int) -> NoReturn:
    """End this process as every Python program ends: threads are waited for, atexit is called, objects are finalised.

    Two things are done before. The streams are flushed: where that fails Python prints an error of its own at exit and
    makes the exit code 120, and what can't be printed any more must not change how a job ended. And where no job was
    started (until then the collector is off), what is loaded is frozen: at exit Python looks through all objects for
    cycles, a seventh of a dry-run's time. A job's own objects are never frozen: a file that it left open would lose its
    last lines.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if not gc.isenabled():
        gc.freeze()
    sys.exit(code)


def hydra(argv: Sequence[str] | None = None) -> int:
    """`python -m nemotron_kit …`: the same, as Hydra's overrides and flags."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _hydra(_readable(arguments)))


def run_app(app: App, argv: Sequence[str]) -> int:
    """`app.run()`: run the command of this app that the arguments name, as in `python -m myrecipe data prep run -c
    tiny`."""
    return guarded(lambda: _app(app, _readable(list(argv))))


def guarded(action: Callable[[], int]) -> int:
    """Run a command; a user's mistake is one clear error and an exit code, a traceback only with HYDRA_FULL_ERROR=1."""
    if sys.stdout is None or sys.stderr is None:
        _open_streams()
    try:
        return action()
    except NemotronError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        try:
            print_error(error)
            sys.stderr.flush()
        except OSError:  # where standard error can't be written, the exit code says it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        # `nemotron … | head`: nobody reads on, which is no error. Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        return _machine_said_no(error)


def _machine_said_no(error: OSError) -> int:
    """A disk that is full or may not be written, a folder that is gone: one line that names it; the exit code, 1."""
    if error.filename is not None:
        print(f"error: {_shown(os.fsdecode(error.filename))}: {error.strerror}.", file=sys.stderr)  # noqa: T201
        print("HYDRA_FULL_ERROR=1 shows where it happened.", file=sys.stderr)  # noqa: T201
    elif isinstance(error, FileNotFoundError):
        print("error: the working folder does not exist any more.", file=sys.stderr)  # noqa: T201
    else:  # what we printed could not be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: output can't be written: {error.strerror}.", file=sys.stderr)  # noqa: T201
    return 1


def _open_streams() -> None:
    """Started with a closed stream (`>&-`): what is printed goes nowhere, and no file of ours gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.dup2(descriptor, number)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: PTH123, SIM115
            if descriptor > 2:
                os.close(descriptor)


def _readable(arguments: list[str]) -> list[str]:
    """The arguments as text, also where the locale is not UTF-8. Raises UserError for bytes that are no text."""
    return [argument if argument.isascii() else _text(argument) for argument in arguments]


def _text(argument: str) -> str:
    try:
        return os.fsencode(argument).decode()
    except UnicodeEncodeError:  # not from the shell, so text already
        return argument
    except UnicodeDecodeError:
        from nemotron_kit.errors import UserError

        raise UserError(f"{os.fsencode(argument)!r} on the command line is not UTF-8 text.") from None


def print_error(error: NemotronError) -> None:
    """`error: what was wrong`, and below it what would be right."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    label = "\x1b[1;31merror:\x1b[0m" if colour else "error:"
    print(f"{label} {_shown(error.message)}", file=sys.stderr)  # noqa: T201
    if error.hint:
        print(_shown(error.hint), file=sys.stderr)  # noqa: T201


def _shown(text: str) -> str:
    """A message as a terminal may have it: names of files and what other machines say can hold anything."""
    from nemotron_kit.masking import mask

    return printable(mask(text))


def _nemotron(arguments: list[str]) -> int:
    from nemotron_kit.cli import fast

    gc.disable()  # a page or an answer makes little garbage, and ends
    code = fast.handle(arguments)
    if code is not None:
        return code
    from nemotron_kit.cli.tools import TOOLS

    if arguments and arguments[0] in TOOLS:
        return _tool(arguments[0], arguments[1:])
    from nemotron_kit.cli.parse import parse

    _say_step(arguments)
    tree = _tree(_recipe_argument(arguments))
    return _dispatch(parse(arguments, _index(tree)), ["nemotron", *arguments], tree)


def _say_step(arguments: Sequence[str]) -> None:
    """Report at once that this job's output is piped: the step that reads it may start at the same time."""
    # What only prints is no step; neither is a sweep, which prints no artifacts of its own.
    if not {"--dry-run", "--dry_run", "-d", "--json", "--cfg", "--info", "-m", "--multirun", "-i"} & set(arguments):
        from nemotron_kit.artifacts.pipe import announce_step

        announce_step()


def _tool(name: str, argv: Sequence[str]) -> int:
    from nemotron_kit.cli.tools import run

    gc.enable()  # it may stay for days
    code = run(name, argv)
    sys.stdout.flush()  # what can't be printed is an error of a command that prints
    return code


def _hydra(arguments: list[str]) -> int:
    from nemotron_kit.cli.parse import parse_hydra

    _say_step(arguments)
    tree = _tree([argument.removeprefix("recipe=") for argument in arguments if argument.startswith("recipe=")])
    return _dispatch(parse_hydra(arguments, _index(tree)), ["python", "-m", "nemotron_kit", *arguments], tree)


def _app(app: App, arguments: list[str]) -> int:
    from nemotron_kit.cli import fast
    from nemotron_kit.cli.parse import parse
    from nemotron_kit.discovery import Tree

    tree, root = Tree(apps={app.name: app}), (app.name,)
    index = _index(tree)
    code = fast.handle(arguments, index, root)
    if code is not None:
        return code
    _say_step(arguments)
    return _dispatch(parse(arguments, index, root=root, prog=_program()), [*_program().split(), *arguments], tree, root)


def _recipe_argument(arguments: list[str]) -> list[str]:
    """The argument that can only be the recipe's name: a bare one that no option may have taken as its value."""
    from nemotron_kit.cli import options, tree

    first = tree.first_name(arguments)
    before = arguments[: arguments.index(first)] if first is not None else []
    doubtful = any(options.is_option(argument) and options.takes_next(argument) is None for argument in before)
    return [first] if first is not None and not doubtful else []


def _tree(names: list[str]) -> Tree:
    from nemotron_kit.discovery import discover

    # Composing makes many objects and drops few: collecting in the middle of it only costs time.
    gc.disable()
    return discover(names=names)


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
        from nemotron_kit.cli.run_job import run

        return run(request, argv, tree)
    from nemotron_kit.cli import fast

    return fast.show(request, _index(tree), root)
