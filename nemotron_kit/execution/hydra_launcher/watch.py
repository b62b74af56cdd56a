"""A sweep's jobs elsewhere, seen from the launch: one question about all of them, less and less often."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from nemotron_kit.errors import Unreachable
from nemotron_kit.execution.attach import record
from nemotron_kit.execution.backends.base import Backend
from nemotron_kit.execution.mirror import mirror
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.states import TERMINAL

log = logging.getLogger("nemotron_kit.launcher")
_FASTEST, _SLOWEST = 0.3, 10.0


def watch(run: RunFolder, backend: Backend, jobs: Sequence[int], ended: Callable[[JobFolder], None]) -> None:
    """Until the jobs have ended; `ended` hears of each as it does. Losing sight of them ends nothing."""
    left = {number: run.job(number) for number in jobs}
    pause, lost = _FASTEST, False
    while left:
        try:
            observed = backend.observe(run, list(left.values()))
            lost = False
        except Unreachable as error:
            if not lost:
                log.warning("%s: out of sight, still trying: %s", run.id, error.message)
            observed, lost = {}, True
        over = [number for number, seen in observed.items() if seen.state in TERMINAL]
        try:
            mirror(run, run.plan(), [left[number] for number in over])
        except Unreachable:
            observed, over = {}, []  # they are asked again
        record(list(left.values()), observed)
        for number in over:
            ended(left.pop(number))
        pause = _FASTEST if over else min(pause * 1.2, _SLOWEST)
        if left:
            time.sleep(pause)
