"""A sweep's jobs on another machine or under a scheduler: submitted at once, then asked after less and less often."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.execution.attach import record
from nemotron_kit.execution.backends.base import Backend, Observation, backend_for
from nemotron_kit.execution.mirror import mirror
from nemotron_kit.execution.signals import Terminated
from nemotron_kit.plan.plan import Plan
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.states import TERMINAL

log = logging.getLogger("nemotron_kit.launcher")
_FASTEST, _SLOWEST = 0.3, 10.0

Ended = Callable[[JobFolder], None]
Waiting = deque[tuple[Plan, JobFolder]]


def run_elsewhere(run: RunFolder, plans: Sequence[Plan], jobs: Sequence[JobFolder], ended: Ended | None) -> None:
    """Submit the jobs and stay until all have ended; `ended` hears of each as it does (None: don't stay).

    Ctrl-C leaves them alone and says how to get back, or cancels them where the profile says so.
    """
    backend = backend_for(plans[0])
    window = len(plans) if ended is None else _window(plans)
    _submit(backend, run, plans[:window], jobs[:window])
    if ended is None:
        return
    waiting = deque(zip(plans[window:], jobs[window:], strict=True))
    try:
        _watch(run, backend, list(jobs[:window]), waiting, ended)
    except (KeyboardInterrupt, Terminated):
        _leave_behind(waiting)
        if plans[0].settings.get("cancel_on_interrupt"):
            backend.cancel(run, jobs)
            log.warning("%s: cancelled.", run.id)
        else:
            log.warning("%s goes on: nemotron runs show %s", run.id, run.id)
            log.warning("To stop it: nemotron runs cancel %s", run.id)
        raise


def _window(plans: Sequence[Plan]) -> int:
    """How many jobs may be submitted at a time. A scheduler sees to that itself; an engine starts whatever it is told
    to."""
    if plans[0].executor != "docker":
        return len(plans)
    return int(plans[0].settings.get("max_parallel") or os.cpu_count() or 1)


def _leave_behind(waiting: Waiting) -> None:
    for _, job in waiting:
        job.finish(130, "cancelled", error="the sweep was interrupted before it was submitted")


def _submit(backend: Backend, run: RunFolder, plans: Sequence[Plan], jobs: Sequence[JobFolder]) -> None:
    """What is known of the jobs when that fails is on record."""
    try:
        backend.submit(run, plans)
    except Unreachable as error:
        for job in jobs:
            job.transition("unknown", observed=True, error=error.message)
        raise
    except NemotronError as error:
        for job in jobs:
            job.finish(error.exit_code, "failed", error=error.message)
        raise


def _watch(run: RunFolder, backend: Backend, jobs: Sequence[JobFolder], waiting: Waiting, ended: Ended) -> None:
    """Losing sight of the jobs ends nothing."""
    left = {job.number: job for job in jobs}
    plan, pause, lost = run.plan(), _FASTEST, False
    while left:
        asked = time.time()
        observed: dict[int, Observation] = {}
        try:
            observed = backend.observe(run, list(left.values()))
            mirror(run, plan, [left[number] for number, seen in observed.items() if seen.state in TERMINAL])
            lost = False
        except Unreachable as error:
            if not lost:
                log.warning("%s: out of sight, still trying: %s", run.id, error.message)
            observed, lost = {}, True
        record(list(left.values()), observed, asked)
        over = [number for number, seen in observed.items() if seen.state in TERMINAL]
        for number in over:
            ended(left.pop(number))
        next_ones = [waiting.popleft() for _ in over[: len(waiting)]]
        if next_ones:
            _submit(backend, run, [plan for plan, _ in next_ones], [job for _, job in next_ones])
            left.update({job.number: job for _, job in next_ones})
        pause = _FASTEST if over else min(pause * 1.2, _SLOWEST)
        if left:
            time.sleep(pause)
