"""Signals: a terminated job ends in order, and what its children get."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from nemotron_kit.runs.process import descendants

GRACE_SECONDS = 10.0
_SUBREAPER = 36  # prctl: PR_SET_CHILD_SUBREAPER


class Terminated(BaseException):
    """SIGTERM, as an exception: not an Exception, so that no handler's `except Exception` swallows it."""


@contextlib.contextmanager
def term_raises() -> Iterator[None]:
    """Within the block SIGTERM raises Terminated in the main thread, unless the job sets a handler of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_terminated(_: int, __: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def forwarded(
    child: subprocess.Popen[bytes], names: tuple[signal.Signals, ...], seen: set[str] | None = None
) -> Iterator[None]:
    """Within the block the named signals go to the child's process group, and appear in `seen` (`TERM`)."""

    def forward(number: int, _: FrameType | None) -> None:
        if seen is not None:
            seen.add(_short(number))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    with _handled(names, forward):
        yield


@contextlib.contextmanager
def noted(names: tuple[signal.Signals, ...], seen: set[str]) -> Iterator[None]:
    """Within the block the named signals do nothing but appear in `seen` (`TERM`)."""
    with _handled(names, lambda number, _: seen.add(_short(number))):
        yield


@contextlib.contextmanager
def hangup_ignored() -> Iterator[None]:
    """Within the block a terminal that closes (SIGHUP) ends neither this process nor what it starts, as with nohup.
    Whoever has said otherwise is heard."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _short(number: int) -> str:
    return signal.Signals(number).name.removeprefix("SIG")


@contextlib.contextmanager
def _handled(names: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, handler) for name in names}
    try:
        yield
    finally:
        for name, old in before.items():
            signal.signal(name, old)


def stop(child: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> int:
    """TERM to the child's process group, KILL after a grace, to all below it, too; its exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        return child.wait(grace)
    except subprocess.TimeoutExpired:
        below = descendants(child.pid)  # torchrun's ranks lead groups of their own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        _send(below, signal.SIGKILL)
        return child.wait()


def adopt_orphans() -> None:
    """From here on what a child of this process leaves behind becomes this process's own child (on Linux)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def stop_orphans(grace: float = GRACE_SECONDS) -> None:
    """TERM to every process below this one, KILL after a grace: ranks whose torchrun was killed would run on."""
    _send(descendants(os.getpid()), signal.SIGTERM)
    deadline = time.monotonic() + grace
    while _left() and time.monotonic() < deadline:
        time.sleep(0.05)
    _send(descendants(os.getpid()), signal.SIGKILL)


def _left() -> bool:
    """Whether a child is there that has not ended; those that have are taken off the system's list."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _send(processes: list[int], number: signal.Signals) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, number)
