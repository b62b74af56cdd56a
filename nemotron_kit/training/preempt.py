"""Being told to stop: TERM and USR1 set a flag, and the run ends at the next step boundary with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from nemotron_kit.errors import NemotronError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(NemotronError):
    """The run was told to stop and has saved a checkpoint, if it keeps any.

    Exit code 75 (EX_TEMPFAIL of sysexits.h): not a failure, start it again.
    """

    exit_code = 75


class StopRequest:
    """`with StopRequest() as stop:` catches TERM (a scheduler's preemption) and USR1 (its time limit).

    `stop.signal` is the signal's name once one came, else None. Handlers are put back on leaving. Off the main thread,
    where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
