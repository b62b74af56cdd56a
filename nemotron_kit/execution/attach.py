"""Attached to a launch: every log from its first line to its last, until all jobs have ended. Ctrl-C only detaches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from nemotron_kit.errors import Unreachable
from nemotron_kit.execution.backends.base import Backend, Observation
from nemotron_kit.execution.outcome import INTERRUPTED, Outcome
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.logs import Neutraliser
from nemotron_kit.runs.states import EXIT_CODES, TERMINAL

FASTEST, SLOWEST = 0.3, 10.0
CHUNK = 1 << 16


class Follower:
    """One log, read on from where it stopped, in bounded memory."""

    def __init__(self, backend: Backend, job: JobFolder, name: str = "job", offset: int = 0) -> None:
        self.backend, self.job, self.name, self.offset = backend, job, name, offset
        self._clean = Neutraliser()

    def pump(self, write: Callable[[str], object]) -> bool:
        """Write what is new; whether there was anything."""
        moved = False
        while chunk := self.backend.read_log(self.job, self.name, self.offset, CHUNK):
            self.offset += len(chunk)
            write(self._clean.feed(chunk))
            moved = True
        return moved


def attach(run: RunFolder, backend: Backend, jobs: Sequence[JobFolder], *, offset: int = 0) -> Outcome:
    """Follow the jobs to their end. Losing sight of them never cancels them and never counts as success."""
    followers = [Follower(backend, job, offset=offset) for job in jobs]
    pause, lost = FASTEST, False
    try:
        while True:
            try:
                observed = backend.observe(run, jobs)
                moved = sum(follower.pump(sys.stdout.write) for follower in followers) > 0
                lost = False
            except Unreachable as error:
                if not lost:
                    print(f"{run.id}: out of sight, still trying: {error.message}", file=sys.stderr)  # noqa: T201
                lost, moved, observed = True, False, {}
            sys.stdout.flush()
            record(jobs, observed)
            if observed and all(o.state in TERMINAL for o in observed.values()):
                for follower in followers:
                    follower.pump(sys.stdout.write)
                return outcome_of(observed)
            pause = FASTEST if moved else min(pause * 1.3, SLOWEST)
            time.sleep(pause)
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED, "detached", "detached")


def record(jobs: Sequence[JobFolder], observed: dict[int, Observation]) -> None:
    """Write what has changed into the ledger; a job that recorded its own end needs nothing more."""
    for job in jobs:
        seen = observed.get(job.number)
        if seen is None or job.exit_record() is not None:
            continue
        if seen.state in TERMINAL:
            job.finish(seen.code if seen.code is not None else 1, seen.state, error=seen.error, **seen.facts)
        elif seen.state != job.state().state:
            job.transition(seen.state, process=None, reason=seen.reason, **seen.facts)


def outcome_of(observed: dict[int, Observation]) -> Outcome:
    """One outcome of many jobs: success only if all are known to have succeeded."""
    states = [o.state for o in observed.values()]
    for state in ("unknown", "unreachable", "failed", "preempted", "cancelled"):
        if state in states:
            error = next((o.error for o in observed.values() if o.state == state and o.error), state)
            return Outcome(EXIT_CODES.get(state, 1), state, error)
    return Outcome(0, "succeeded")
