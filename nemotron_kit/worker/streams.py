"""Captures the output of a job's processes: into the log with secrets masked, and to the terminal as before."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import io
import json
import os
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any, TextIO, cast

from nemotron_kit.errors import printable
from nemotron_kit.masking import mask, noted_secrets

_OUT, _ERR = 1, 2
_PUMP = Path(__file__).with_name("pump.py")
_WAIT_SECONDS = 5.0
# The share of a job's time, and seconds besides, that may be spent on keeping the order between the two streams.
_SHARE, _FREE_SECONDS = 0.1, 0.5


class Channels:
    """Channels, and the process that copies what is written to them. A channel is (reading end, writing end, log,
    second target), all file descriptors; without a second target it is None. `ends` are the writing ends."""

    def __init__(self, channels: Sequence[tuple[int, int, int, int | None]], job: Path | None) -> None:
        """`job`: its folder, in which it lists the secrets that it has used."""
        self.ends = [end for _, end, _, _ in channels]
        ours, theirs = socket.socketpair()
        self._control = ours
        sources = [[source, log, target] for source, _, log, target in channels]
        asked = {"path": str(Path(__file__).parents[2]), "secrets": sorted(noted_secrets()), "sources": sources,
                 "control": theirs.fileno(), "job": str(job) if job else None}  # fmt: skip
        passed = {theirs.fileno(), *(fd for source in sources for fd in source if fd is not None)}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PUMP), json.dumps(asked)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=sorted(passed),
                cwd="/",
                start_new_session=True,  # Ctrl-C, and a terminal that closes, are not for it
            )
        finally:
            theirs.close()
            for source, *_ in channels:
                os.close(source)

    def close_ends(self) -> None:
        """Close this process's writing ends, except duplicates."""
        ends, self.ends = self.ends, []
        for end in ends:
            os.close(end)

    def drain(self) -> None:
        """Wait until everything written so far is in the log. Children that outlive the job are not waited for."""
        self.close_ends()
        with contextlib.suppress(OSError):  # it may have ended by itself
            self._control.sendall(b"e")  # the job's end, which pump.py answers once all is copied
            if not self._control.recv(1):
                self._process.wait()

    def finish(self) -> None:
        """Drain for the last time."""
        with self._control:
            self.drain()

    def waiting(self, end: int) -> bool:
        """Whether something that was written to a pipe is still to be read."""
        unread = int.from_bytes(ioctl(end, termios.FIONREAD, b"\0" * 4), sys.byteorder)
        return unread > 0 and self._process.poll() is None


@contextlib.contextmanager
def logging_to(log: io.FileIO, job: Path) -> Iterator[Channels]:
    """A channel for both streams of a child, which leads only to the log: the child is given `ends[0]`, and then this
    process closes it. When the block ends, what was written until then is in the log."""
    made = Channels([(*os.pipe(), log.fileno(), None)], job)
    try:
        yield made
    finally:
        made.finish()


# What ends the capture that a job of this process has left to its threads and exit functions.
_left: list[Callable[[], None]] = []


@contextlib.contextmanager
def captured(
    log: io.FileIO, *, job: Path | None = None, shown: bool = True, until_exit: bool = False, if_left: bool = False
) -> Iterator[None]:
    """Within the block, what this process and its children write to stdout and stderr goes into `log`, masked.

    `shown`: and to the streams as they were before. `job` is the job's folder, for the secrets that it has used.
    `until_exit`: until this process exits. `if_left`: if the block has left threads or exit functions behind (or an
    earlier one has), until this process exits or captures again; what this thread itself prints after the block is not
    captured.
    """
    left_before = bool(_left)
    _end_captures()
    before = sys.stdout, sys.stderr
    threads, functions = set(threading.enumerate()), atexit._ncallbacks()
    _flush()
    saved = [_saved(fd) for fd in (_OUT, _ERR)]
    targets = [None] if not shown else saved[:1] if os.path.sameopenfile(*saved) else saved
    channels = Channels([(*_channel(target), log.fileno(), target) for target in targets], job)
    ends = [channels.ends[0], channels.ends[-1]]
    several = len(targets) > 1 and not any(map(os.isatty, ends))
    for end, fd in zip(ends, (_OUT, _ERR), strict=True):
        os.dup2(end, fd)
    channels.close_ends()
    in_order = channels if several else None
    streams = _python_stream(before[0], _OUT, log, in_order), _python_stream(before[1], _ERR, log, in_order)
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        _flush(*streams)  # the handler may have replaced them
        more = left_before or atexit._ncallbacks() > functions or not threads.issuperset(threading.enumerate())
        if until_exit or (if_left and more):
            if not until_exit:
                _left.append(_set_this_thread_aside(streams, saved))
            _left.extend((functools.partial(_restore, before, saved), channels.finish))
            channels.drain()
        else:
            _restore(before, saved)
            channels.finish()


@atexit.register  # of exit functions the one that is registered first, before any job's, runs last
def _end_captures() -> None:
    while _left:
        _left.pop(0)()


def _set_this_thread_aside(streams: Sequence[TextIO], saved: Sequence[int]) -> Callable[[], None]:
    """Make `streams` sys.stdout and sys.stderr again, and print to `saved` what this thread writes to them, until its
    exit functions run or the function that this returns is called."""
    ending = contextlib.ExitStack()
    ending.callback(_set_streams, sys.stdout, sys.stderr)  # perhaps the handler's own, which it means for the others
    _set_streams(*streams)
    for stream, fd in zip(streams, saved, strict=True):
        if isinstance(stream, Stream | Tee):
            ending.enter_context(stream.aside(fd))
    atexit.register(ending.close)  # of exit functions the last one registered runs first
    return ending.close


def _set_streams(stdout: TextIO, stderr: TextIO) -> None:
    sys.stdout, sys.stderr = stdout, stderr


def _restore(before: tuple[TextIO, TextIO], saved: Sequence[int]) -> None:
    """Give the process the streams and descriptors back that it had."""
    _flush()
    sys.stdout, sys.stderr = before
    for kept, fd in zip(saved, (_OUT, _ERR), strict=True):
        os.dup2(kept, fd)
        os.close(kept)


def masked_streams() -> None:
    """Mask what Python prints from now on in this process, whose streams lead to its job's log. Each line is written at
    once."""
    sys.stdout = _python_stream(sys.stdout, _OUT, None, None)
    sys.stderr = _python_stream(sys.stderr, _ERR, None, None)


class Stream(io.TextIOWrapper):
    """A stream that masks the text that Python writes: only this process knows the secrets that it has looked up."""

    # A thread's id, and where its text goes instead.
    _aside: tuple[int, TextIO] | None = None

    def write(self, text: str) -> int:
        """Write `text` masked. Returns the length of the unmasked text, as callers expect."""
        if (other := self._other()) is None:
            super().write(mask(text))
        else:
            with unless_gone(other):
                other.write(mask(text))
        return len(text)

    def flush(self) -> None:
        """Flush what this thread has written."""
        if (other := self._other()) is None:
            super().flush()
        else:
            with unless_gone(other):
                other.flush()

    @contextlib.contextmanager
    def aside(self, fd: int) -> Iterator[None]:
        """Within the block what this thread writes goes to `fd`."""
        other = open(fd, "w", encoding=self.encoding, errors=self.errors, closefd=False, buffering=1)  # noqa: SIM115
        self._aside = threading.get_ident(), other
        try:
            yield
        finally:
            self._aside = None
            with contextlib.suppress(OSError):
                other.close()

    def _other(self) -> TextIO | None:
        aside = self._aside
        # Not the main thread: in a process that another thread forks, that one is the main thread.
        return aside[1] if aside is not None and threading.get_ident() == aside[0] else None


@contextlib.contextmanager
def unless_gone(stream: TextIO) -> Iterator[None]:
    """Within the block a closed terminal or pipe raises no error: later output is discarded."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def print_notice(text: str) -> None:
    """Print a line on standard error, secrets masked and control characters made visible. Where nobody can read it
    (`2>&1 | head -1`, a full disk, a closed terminal), what it is about goes on."""
    with unless_gone(sys.stderr):
        print(printable(mask(text)), file=sys.stderr)  # noqa: T201


class Tee:
    """A stream that is no descriptor of this process (a notebook's, a test's): what is printed goes there and to a log
    (None: it gets there by itself). Everything else (isatty, fileno, encoding) is that stream's."""

    def __init__(self, stream: TextIO, log: io.FileIO | None) -> None:
        self._stream = stream
        self._log = log
        self._aside: int | None = None  # the id of a thread whose text is not logged

    def write(self, text: str) -> int:
        """Write `text` masked to both. A log that can't be written is no reason to stop a job: the disk is full, or the
        job has ended, and its logging still uses this stream."""
        shown = mask(text)
        if self._log is not None and self._aside != threading.get_ident():
            with contextlib.suppress(OSError, ValueError):
                self._log.write(shown.encode("utf-8", "replace"))
        with unless_gone(self._stream):
            self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """Flush the stream; the log has no buffer."""
        with unless_gone(self._stream):
            self._stream.flush()

    @contextlib.contextmanager
    def aside(self, _fd: int) -> Iterator[None]:
        """Within the block what this thread writes is not logged, and the log may be closed by its owner."""
        self._aside = threading.get_ident()
        with io.FileIO(os.dup(self._log.fileno()), "a") if self._log else contextlib.nullcontext() as self._log:
            try:
                yield
            finally:
                self._aside = None

    def writelines(self, lines: Any) -> None:
        """`write` each of `lines`."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _InOrder(io.FileIO):
    """A raw stream that keeps the order between stdout and stderr: it waits before a write until what was written to
    the other one has been read, and after it until this has."""

    def __init__(self, fd: int, channels: Channels) -> None:
        super().__init__(fd, "w", closefd=False)
        self._fd, self._other, self._channels = fd, _ERR if fd == _OUT else _OUT, channels
        self._begun, self._waited = time.monotonic(), 0.0

    def write(self, data: Any) -> int:
        self._until_read(self._other)
        written = super().write(data) or 0
        before = time.monotonic()
        if self._waited < _FREE_SECONDS + _SHARE * (before - self._begun):
            self._until_read(self._fd)
            self._waited += time.monotonic() - before
        return written

    def _until_read(self, fd: int) -> None:
        begun, pause = time.monotonic(), 0.0
        with contextlib.suppress(OSError):  # it is a pipe no longer
            while self._channels.waiting(fd) and time.monotonic() < begun + _WAIT_SECONDS:
                time.sleep(pause)
                pause = min(pause + 0.00001, 0.01)


def _python_stream(stream: TextIO | None, fd: int, log: io.FileIO | None, channels: Channels | None) -> TextIO:
    """The line-buffered, masking replacement of sys.stdout or sys.stderr."""
    try:
        is_ours = stream is None or stream.fileno() == fd
    except (OSError, ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        # A program's own stream often writes to the one that it replaces, which is captured.
        wraps = any(
            each is sys.__stdout__ or each is sys.__stderr__ for each in getattr(stream, "__dict__", {}).values()
        )
        tee = Tee(cast("TextIO", stream), None if wraps else log)
        return cast("TextIO", tee if log is not None else stream)
    raw = _InOrder(fd, channels) if channels else io.FileIO(fd, "w", closefd=False)
    encoding, errors = getattr(stream, "encoding", "utf-8"), getattr(stream, "errors", "backslashreplace")
    return Stream(io.BufferedWriter(raw), encoding, errors, line_buffering=True)


def _channel(target: int | None) -> tuple[int, int]:
    """(what the pump reads, what is written to): a terminal where the target is one."""
    if target is None or not os.isatty(target):
        return os.pipe()
    try:
        source, end = os.openpty()
    except OSError:  # a machine without /dev/pts
        return os.pipe()
    modes = termios.tcgetattr(end)
    modes[1] &= ~termios.OPOST  # the real terminal does that
    modes[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(end, termios.TCSANOW, modes)
    with contextlib.suppress(OSError):
        ioctl(end, termios.TIOCSWINSZ, ioctl(target, termios.TIOCGWINSZ, b"\0" * 8))
    return source, end


def _saved(fd: int) -> int:
    """A duplicate of `fd`; of one that is closed (`>&-`), of /dev/null."""
    try:
        return os.dup(fd)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, fd)
        return nowhere


def _flush(*streams: TextIO) -> None:
    """Flush the buffers of Python's and C's stdout and stderr, and `streams`."""
    for stream in (sys.stdout, sys.stderr, *streams):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
