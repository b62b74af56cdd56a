"""Passes artifacts from one step to the next through a pipe: one line of JSON, `{"slot": {"path": …, "type": …}}`."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import stat
import struct
import sys
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from nemotron_kit.artifacts.manifest import absolute
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.errors import DamagedRecordError, UserError, printable
from nemotron_kit.polling import until

if TYPE_CHECKING:
    from nemotron_kit.artifacts.saving import Artifact


T = TypeVar("T")
MAX_BYTES = 16 << 20
# The offset of the lock on the pipe identifies it as ours ("nemotron", as bytes).
_LOCK_AT, _LOCK_BYTES = 0x6E656D6F, 8
_FLOCK = "hhqqi4x"
# The time within which a step that was started together with this one announces itself: Python has to start.
_ANNOUNCE_SECONDS = 3.0
_TOGETHER_SECONDS = 10.0
_LAUNCHERS = ("python", "pypy", "uv", "nemotron", "torchrun", "poetry", "pdm", "hatch", "pixi", "conda", "mamba", "env")
# ssh's options, for getopt; and a remote command that is a step: no longer name, and no command that isn't a step.
_SSH_OPTIONS = "1246AaCfGgKkMNnqsTtVvXxYyB:b:c:D:E:e:F:I:i:J:L:l:m:O:o:P:p:Q:R:S:W:w:"
_REMOTE_STEP = r"(?:^|[\s/;&|('\"])nemotron(?:_kit)?\s+(?!runs\b|artifacts\b|profiles\b|-)\w"


def announce_step() -> None:
    """Mark standard output, if it is a pipe, as written by a step, so that the next step waits for its artifacts.

    The mark is a lock (F_OFD_SETLK) on the pipe. On a system without such locks, nothing is marked.
    """
    if _announced or not is_pipe(1):
        return
    with contextlib.suppress(
        OSError, ImportError, AttributeError
    ):  # the system has no such locks: the pipe stays unmarked
        import fcntl

        fcntl.fcntl(1, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
        _announced.append(os.getpid())
        atexit.register(withdraw_step)


_announced: list[int] = []


def withdraw_step() -> None:
    """Remove the mark of `announce_step`: other programs may write to the same pipe afterwards."""
    if _announced == [os.getpid()]:
        with contextlib.suppress(OSError):
            import fcntl

            sys.stdout.flush()
            fcntl.fcntl(1, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK))


def is_pipe(descriptor: int) -> bool:
    """Whether a file descriptor is a pipe; False for a closed one."""
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def from_step() -> str | None:
    """All output of the step that writes to standard input, once it has ended. Returns None, and reads nothing, if no
    step has marked the pipe and no ssh started together with this process runs one."""
    if not is_pipe(0):
        return None
    # The mark of a step over ssh is on a pipe of the other machine, so the command line of ssh is read instead.
    if not step_writes() and not any(_ssh_runs_step(pid) for pid in _started_together()):
        # A step that was started together with this process has a few seconds to mark the pipe.
        until(
            lambda: step_writes() or any(peek_input()) or not any(map(_launcher, _started_together())),
            0.02,
            within=_ANNOUNCE_SECONDS,
        )
        if not step_writes():
            return None
    return read_all()


def read_all() -> str:
    """Standard input, read to its end; of more than MAX_BYTES bytes the last ones, since the artifacts follow all other
    output."""
    found = bytearray()
    while chunk := os.read(0, 1 << 16):
        found += chunk
        if len(found) > 2 * MAX_BYTES:
            del found[:-MAX_BYTES]
    return found[-MAX_BYTES:].decode(errors="replace")


def peek_input() -> tuple[bytes, bool]:
    """(the bytes waiting in standard input, a pipe, without consuming them; whether all writers have closed it)."""
    import select

    poll = select.poll()
    poll.register(0, select.POLLIN)
    events = dict(poll.poll(0)).get(0, 0)
    if not events & select.POLLIN:
        return b"", bool(events & select.POLLHUP)
    return _peek_bytes(), bool(events & select.POLLHUP)


def consume(count: int) -> None:
    """Read and drop `count` bytes of standard input: those that `peek_input` returned."""
    while count > 0 and (chunk := os.read(0, count)):
        count -= len(chunk)


def step_writes() -> bool:
    """Whether a step has marked standard input as its output (see `announce_step`)."""
    with contextlib.suppress(OSError, ImportError, AttributeError):
        import fcntl

        found = fcntl.fcntl(0, fcntl.F_OFD_GETLK, _flock(fcntl.F_RDLCK))
        return bool(struct.unpack(_FLOCK, found)[0] == fcntl.F_WRLCK)
    return False


def _flock(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, _LOCK_AT, _LOCK_BYTES, 0)


def _peek_bytes() -> bytes:
    """The bytes waiting in standard input, copied with tee(2) into a pipe of this process."""
    import ctypes
    import fcntl

    tee = getattr(ctypes.CDLL(None, use_errno=True), "tee", None)
    if tee is None:
        return b""
    into, out_of = os.pipe()[::-1]
    try:
        with contextlib.suppress(OSError):
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, fcntl.fcntl(0, fcntl.F_GETPIPE_SZ))
        count = tee(0, into, MAX_BYTES, 2)  # SPLICE_F_NONBLOCK
        return os.read(out_of, count) if count > 0 else b""
    finally:
        os.close(into)
        os.close(out_of)


def _started_together() -> Iterator[int]:
    """The processes that write to standard input and were started together with this one. Parents of this process are
    left out; the result is empty if another process also holds this process's standard input."""
    inode, parent = os.fstat(0).st_ino, os.getppid()
    above = []
    while parent > 1:
        above.append(parent)
        fields = _stat(parent)
        parent = int(fields[1]) if fields else 0
    if any(_pipe_of(pid, 0) == inode and not _launcher(pid) for pid in above):
        return
    started = [_started(pid) for pid in (os.getpid(), *above[:3]) if pid == os.getpid() or _pipe_of(pid, 0) == inode]
    for pid in map(int, filter(str.isdigit, os.listdir("/proc") if sys.platform == "linux" else ())):  # noqa: PTH208
        together = pid not in (os.getpid(), *above) and _started(pid) > min(started) - _TOGETHER_SECONDS
        if together and (_pipe_of(pid, 1) == inode or _ssh_writes(pid, inode)):
            yield pid


def _ssh_writes(pid: int, inode: int) -> bool:
    """Whether a process is an ssh that writes to this pipe: by another descriptor, once its session is open."""
    if _ssh_argv(pid) is None:
        return False
    found = _of_proc(lambda: list(map(int, os.listdir(f"/proc/{pid}/fd")))) or []  # noqa: PTH208
    return any(_pipe_of(pid, descriptor) == inode and _is_for_writing(pid, descriptor) for descriptor in found)


def _is_for_writing(pid: int, descriptor: int) -> bool:
    text = _of_proc(lambda: open(f"/proc/{pid}/fdinfo/{descriptor}").read()) or ""  # noqa: PTH123, SIM115
    flags = re.search(r"^flags:\s*([0-7]+)", text, re.MULTILINE)
    return bool(flags and int(flags[1], 8) & (os.O_WRONLY | os.O_RDWR))


def _ssh_argv(pid: int) -> list[str] | None:
    """The arguments of an ssh process; None for any other process."""
    argv = (_of_proc(lambda: open(f"/proc/{pid}/cmdline").read()) or "").split("\0")  # noqa: PTH123, SIM115
    return argv if os.path.basename(argv[0]) == "ssh" else None  # noqa: PTH119


def _ssh_runs_step(pid: int) -> bool:
    argv = _ssh_argv(pid)
    if argv is None:
        return False
    from getopt import GetoptError, getopt

    try:
        host, *rest = getopt(argv[1:], _SSH_OPTIONS)[1]
        command = getopt(rest, _SSH_OPTIONS)[1]  # options may also follow the host
    except (GetoptError, ValueError):
        return False
    return bool(host and re.search(_REMOTE_STEP, " ".join(command)))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (state, parent, …)."""
    return _of_proc(lambda: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()) or []  # noqa: PTH123


def _started(pid: int) -> float:
    """When a process was started, in seconds since boot."""
    fields = _stat(pid)
    return int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _pipe_of(pid: int, descriptor: int) -> int | None:
    """The inode of the pipe that a process has open as `descriptor`; None if that is no pipe."""
    name = _of_proc(lambda: os.readlink(f"/proc/{pid}/fd/{descriptor}"))  # noqa: PTH115
    return int(name[6:-1]) if name and name.startswith("pipe:[") else None


def _launcher(pid: int) -> bool:
    """Whether a process is Python, or a program that starts Python programs."""
    name = _of_proc(lambda: os.readlink(f"/proc/{pid}/exe")) or ""  # noqa: PTH115
    return os.path.basename(name).startswith(_LAUNCHERS)  # noqa: PTH119


def _of_proc(read: Callable[[], T]) -> T | None:
    """The result of a read from /proc; None for a process that has ended or belongs to another user."""
    try:
        return read()
    except (OSError, ValueError):
        return None


_HINT = 'What a step prints when its output is piped is {"slot": {"path": …, "type": …}}.'
Entry = dict[str, Any]


def parse_piped(text: str) -> dict[str, Entry]:
    """The artifacts by slot, read from the JSON line; other output may precede it. A single artifact has the slot "".

    Raises UserError if there are none.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    for candidate in (text, lines[-1] if lines else ""):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(candidate)
            if isinstance(found, dict):
                break
    else:
        what = "it is not JSON." if lines else "it is empty."
        raise UserError(f"Standard input holds no artifacts: {what}", hint=_HINT)
    if isinstance(found.get("path"), str):
        return {"": found}
    entries = {slot: entry for slot, entry in found.items() if isinstance(entry, dict) and "path" in entry}
    if not entries or len(entries) < len(found):
        raise UserError("Standard input holds JSON, but no artifacts.", hint=_HINT)
    return entries


def pick(piped: dict[str, Entry], *, slot: str | None = None, types: Collection[str] | None = None) -> Entry:
    """The artifact of `slot`, else the only one of these types (None: of any). Raises UserError if there isn't exactly
    one."""
    if slot is not None and slot in piped:
        return piped[slot]
    fitting = {name: entry for name, entry in piped.items() if types is None or entry.get("type") in types}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    listed = ", ".join(f"{name or '(one)'}: {entry.get('type', 'untyped')}" for name, entry in piped.items())
    wanted = " or ".join(sorted(types)) if types else "artifact"
    count = "no" if not fitting else "more than one"
    raise UserError(f"Standard input holds {count} {wanted}; it holds {listed}.", hint="Name the one: --art.<slot>.")


def pins_from_step(slots: Collection[str]) -> dict[str, Pin]:
    """The pins of a script's inputs, if a step writes to its standard input; else {}."""
    text = from_step() if slots else None
    if not text or not text.strip():
        return {}
    piped = parse_piped(text)
    return {slot: piped_pin(pick(piped, slot=slot)) for slot in slots}


def piped_pin(entry: Entry) -> Pin:
    """The pin that a step printed; one without a version is a plain path."""
    try:
        return Pin.from_dict(entry)
    except DamagedRecordError as error:
        raise UserError(f"Standard input: {error.message}", hint=_HINT) from error


def print_step_complete(*args: dict[str, Artifact], title: str = "Complete", **artifacts: Artifact) -> None:
    """Announce named artifacts, as in `print_step_complete(data=artifact)`; a dict of them is taken too.

    Stdout gets `{"data": {"path": …, "type": …}}`, and the name and version of what has them, unless it is a terminal.
    On rank 0 only.
    """
    announce_step()
    named = {name: artifact for given in (*args, artifacts) for name, artifact in given.items()}
    if os.environ.get("RANK", "0") != "0":
        return
    rows = {f"{name} ({artifact.type})": _rows(artifact) for name, artifact in named.items()}
    if sys.stderr is not None and sys.stderr.isatty():
        _print_panels(title, rows)
    else:
        lines = [title]
        for name, fields in rows.items():
            lines += [f"  {name}", *(f"    {key}: {value}" for key, value in fields.items())]
        print(printable("\n".join(lines)), file=sys.stderr, flush=True)  # noqa: T201
    if sys.stdout is not None and not sys.stdout.isatty():
        try:
            print(json.dumps({name: json.loads(each.to_json()) for name, each in named.items()}), flush=True)  # noqa: T201
        except BrokenPipeError:
            # The reader has ended; the artifacts are saved. Python must not try to flush into the pipe again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print("The reader of the JSON on standard output has closed the pipe.", file=sys.stderr)  # noqa: T201


def is_step_output(line: str) -> bool:
    """Whether a line is what `print_step_complete` writes to a standard output that is no terminal."""
    if not (line.startswith('{"') and '"path": "' in line):
        return False
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return all(isinstance(each, dict) and {"path", "type"} <= each.keys() for each in document.values())


def _rows(artifact: Artifact) -> dict[str, str]:
    rows = {"artifact": artifact.art_path, "path": str(absolute(artifact.path))}
    if artifact.metrics:
        rows["metrics"] = ", ".join(f"{key}={_number(value)}" for key, value in artifact.metrics.items())
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value, 0) and abs(value) < 1e15 else f"{value:.4g}"


def _print_panels(title: str, rows: dict[str, dict[str, str]]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    text = Text()
    for name, fields in rows.items():
        text.append(f"{name}\n", style="bold cyan")
        for key, value in fields.items():
            style = "bold" if key == "artifact" else ""
            text.append(f"  {key:9}", style="dim").append(f"{printable(value)}\n", style=style)
    text.rstrip()
    Console(file=sys.stderr).print(Panel(text, title=Text(title), title_align="left", border_style="green"))
