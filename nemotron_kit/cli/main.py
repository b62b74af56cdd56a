"""The entry points of the command line: the script `nemotron`, `python -m nemotron_kit`, and App.run().

Help, version and completion are printed from the index before anything heavy is imported.
"""

from __future__ import annotations

import gc
import os
import sys

from nemotron_kit import __version__
from nemotron_kit.cli import options, tree
from nemotron_kit.cli.tools import TOOLS
from nemotron_kit.errors import NemotronError, UserError, full_trace, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from nemotron_kit.app import App
    from nemotron_kit.cli.request import Request
    from nemotron_kit.cli.tree import Index
    from nemotron_kit.discovery import Tree


def nemotron(argv: Sequence[str] | None = None) -> int:
    """`nemotron …`: the documented syntax."""
    return guarded(lambda: _nemotron(_readable(argv)))


def console() -> NoReturn:
    """The console script."""
    leave(nemotron)


_exits = False  # whether this process exits after the command


def leave(command: Callable[[], int]) -> NoReturn:
    """Run a command, and end this process with its exit code as every Python program ends: threads are joined, atexit
    handlers run, objects are finalised.

    Two things are done in between. The streams are flushed: if that failed at exit, Python would print an error and
    exit with 120, and output that can't be printed must not change the exit code of a job. And if no job was started
    (the collector is off until then), the loaded objects are frozen, since at exit Python searches all objects for
    cycles, a seventh of a dry-run's time. A job's objects are never frozen: a file that it left open would lose its
    last lines.
    """
    global _exits
    _exits = True
    code = command()
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
    return guarded(lambda: _hydra(_readable(argv)))


def run_app(app: App, argv: Sequence[str]) -> int:
    """`app.run()`: run the command of this app that the arguments name, as in `python -m myrecipe data prep run -c
    tiny`."""
    return guarded(lambda: _app(app, _readable(argv)))


def guarded(action: Callable[[], int]) -> int:
    """Run a command. A user's mistake gives one error message and an exit code; with HYDRA_FULL_ERROR=1 a traceback,
    too."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _open_streams()
    # A character that the locale's encoding lacks is a ? on the terminal, and no UnicodeEncodeError.
    if (
        getattr(sys.stdout, "errors", None) == "strict"
        and (replace := getattr(sys.stdout, "reconfigure", None)) is not None
    ):
        replace(errors="replace")
    try:
        _set_pwd()
        return action()
    except NemotronError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        from nemotron_kit.cli.output import print_status

        print_status("interrupted")
        return 130
    except BrokenPipeError:
        # `nemotron … | head`: a closed pipe is no error. Python must not report it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _report_os_error(error)
        return 1


def _set_pwd() -> None:
    """Set PWD, to which configs refer, to the working folder. A shell has, perhaps with a link in it; but a program
    that cron or a container starts may have none, and one that another program starts in a folder (subprocess's `cwd`)
    has that program's."""
    try:
        named, here = os.environ.get("PWD", ""), os.getcwd()  # noqa: PTH109 — help needs no pathlib
        if not (os.path.isabs(named) and os.path.realpath(named) == os.path.realpath(here)):  # noqa: PTH117
            os.environ["PWD"] = here
    except OSError:  # the folder was deleted; whatever needs it reports that
        return


def _report_os_error(error: OSError) -> None:
    """Print one line for an OSError that names a path (a full or read-only disk, a missing folder)."""
    what, hint = f"output can't be written: {error.strerror}.", None
    if error.filename is not None:
        what = f"{os.fsdecode(error.filename)}: {error.strerror}."
        hint = "HYDRA_FULL_ERROR=1 shows where it happened."
    elif isinstance(error, FileNotFoundError):
        what = "the working folder does not exist any more."
    else:  # what we printed could not be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    failure = NemotronError(what, hint=hint)
    failure.__cause__ = error
    print_error(failure)


def _open_streams() -> None:
    """Open standard streams that were closed at the start (`>&-`) on /dev/null, so that none of our files gets their
    numbers: a job's log with number 0 would not reach the process that writes it. sys.stdin stays None, by which it is
    known to be closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if number > 0:
                os.dup2(descriptor, number)
                setattr(sys, name, open(number, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
            if descriptor > number:
                os.close(descriptor)


def _readable(argv: Sequence[str] | None) -> list[str]:
    """The arguments (None: this process's) as text, also if the locale is not UTF-8. Raises UserError for bytes that
    are no text."""
    texts = []
    for argument in sys.argv[1:] if argv is None else argv:
        try:
            texts.append(os.fsencode(argument).decode())
        except UnicodeEncodeError:  # not from the shell, so text already
            texts.append(argument)
        except UnicodeDecodeError:
            raise UserError(f"{os.fsencode(argument)!r} on the command line is not UTF-8 text.") from None
    return texts


def print_error(error: NemotronError) -> None:
    """`error: what was wrong`, and below it what would be right. If standard error can't be written, the exit code
    remains."""
    from nemotron_kit.cli.output import colour

    label = "\x1b[1;31merror:\x1b[0m" if colour(sys.stderr) else "error:"
    text = f"{_sanitized(full_trace(error))}{label} {_sanitized(str(error))}"
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _sanitized(text: str) -> str:
    """A message as it may be printed to a terminal: file names and texts from other machines can contain any
    character."""
    from nemotron_kit.masking import mask

    return printable(mask(text))


def _nemotron(arguments: list[str]) -> int:
    gc.disable()  # help and completion make little garbage and end at once
    code = page_for(arguments)
    if code is not None:
        return code
    if arguments and arguments[0] in TOOLS:
        return _tool(arguments[0], arguments[1:])
    from nemotron_kit.cli.parse import parse

    _announce_step(arguments)
    # Only the recipe that is named is imported: by a bare argument that no option may have taken as its value.
    first = tree.first_name(arguments)
    before = arguments[: arguments.index(first)] if first is not None else []
    doubtful = any(options.is_option(argument) and options.takes_next(argument) is None for argument in before)
    found = _tree([first] if first is not None and not doubtful else [])
    return _dispatch(parse(arguments, _index(found)), ["nemotron", *arguments], found)


def _announce_step(arguments: Sequence[str]) -> None:
    """Mark this job's piped output at once: the step that reads it may start at the same time."""
    # Commands that only print are no steps; neither is a sweep, which prints no artifacts.
    if not {"--dry-run", "--dry_run", "-d", "--json", "--cfg", "--info", "-m", "--multirun", "-i"} & set(arguments):
        from nemotron_kit.artifacts.pipe import announce_step

        announce_step()


def _tool(name: str, argv: Sequence[str]) -> int:
    from nemotron_kit.cli.tools import run

    gc.enable()  # a tool may run for days (runs watch, runs wait)
    code = run(name, argv)
    sys.stdout.flush()  # so that output that can't be written is reported as this command's error
    return code


def _hydra(arguments: list[str]) -> int:
    from nemotron_kit.cli.parse import parse_hydra

    _announce_step(arguments)
    found = _tree([argument.removeprefix("recipe=") for argument in arguments if argument.startswith("recipe=")])
    return _dispatch(parse_hydra(arguments, _index(found)), ["python", "-m", "nemotron_kit", *arguments], found)


def _app(app: App, arguments: list[str]) -> int:
    from nemotron_kit.cli.parse import parse
    from nemotron_kit.discovery import Tree

    found, root = Tree(apps={app.name: app}), (app.name,)
    index = _index(found)
    code = page_for(arguments, index, root)
    if code is not None:
        return code
    _announce_step(arguments)
    prog = tree.program(root)
    return _dispatch(parse(arguments, index, root=root, prog=prog), [*prog.split(), *arguments], found, root)


def _tree(names: list[str]) -> Tree:
    from nemotron_kit.discovery import discover

    # Composing makes many objects and drops few: collecting in the middle of it only costs time.
    gc.disable()
    return discover(names=names)


def _index(found: Tree) -> Index:
    from nemotron_kit.cli.indexing import LiveIndex

    return LiveIndex(found.apps, found.broken)


def page_for(argv: Sequence[str], index: Index | None = None, root: tuple[str, ...] = ()) -> int | None:
    """Print the help page, version or completion that `argv` asks for, and return the exit code. None if it asks for
    something else, or for help about a name that does not exist.

    `index` and `root` are given for one app (`python -m myrecipe`). Without arguments, the help page is printed.
    """
    if not root and argv[:1] == ["__complete"]:
        from nemotron_kit.cli.completion import answer

        return answer(argv[1:])
    if not root and argv[:1] == ["--version"]:
        return _version()
    first = tree.first_name(argv)
    if not root and first == "help":
        at = list(argv).index(first)
        argv = [*argv[:at], *argv[at + 1 :]]
        first = tree.first_name(argv)
    elif argv and not tree.wants_help(argv):
        return None
    if not root and first in TOOLS:
        return None
    index = index or tree.load_index()
    reached = tree.walk(argv, index, root)
    if reached.unknown is not None:
        return None
    from nemotron_kit.cli import help as pages

    return pages.show(index, reached.path, root=root)


def _version() -> int:
    sys.stdout.write(f"nemotron-kit {__version__} (Python {sys.version.split()[0]})\n")
    sys.stdout.flush()
    return 0


def _dispatch(request: Request, argv: list[str], found: Tree, root: tuple[str, ...] = ()) -> int:
    from nemotron_kit.cli.request import Help, Job, Tool

    if isinstance(request, Tool):
        return _tool(request.name, request.argv)
    if isinstance(request, Job):
        from nemotron_kit.cli.run_job import run

        return run(request, argv, found, exits=_exits)
    if isinstance(request, Help):
        from nemotron_kit.cli import help as pages

        return pages.show(_index(found), request.path, asked=request.asked, root=root)
    return _version()
