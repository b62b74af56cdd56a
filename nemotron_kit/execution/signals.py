"""Signals: a terminated job ends in order, and what its children get."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import FrameType

GRACE_SECONDS = 10.0


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
    """TERM to the child's process group, KILL after a grace; its exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        return child.wait(grace)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        return child.wait()
