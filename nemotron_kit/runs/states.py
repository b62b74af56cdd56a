"""The states of a job and of a run, and the exit code that each stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

STATES = ("pending", "running", "succeeded", "failed", "cancelled", "preempted", "unreachable", "unknown")
# Nobody leaves these by himself; `nemotron runs resume` begins a new attempt. A job that its scheduler starts again
# is `pending`, whatever stopped it.
TERMINAL = frozenset({"succeeded", "failed", "cancelled", "preempted"})
# A run whose plan.json can't be read; no job is ever in this state.
DAMAGED = "damaged"

# sysexits' EX_TEMPFAIL: stopped by a signal after a checkpoint.
PREEMPTED = 75

# What a command that reports on a job exits with; those not named here (it is still going) count as success.
EXIT_CODES = {
    "succeeded": 0,
    "failed": 1,
    "unreachable": 3,
    "unknown": 3,
    DAMAGED: 3,
    "cancelled": 4,
    "preempted": PREEMPTED,
}

_YEAR_3000 = 32_503_680_000.0
# The state of a run is the first of these that one of its jobs is in.
_PRECEDENCE = ("running", "pending", "unreachable", "unknown", "failed", "preempted", "cancelled", "succeeded")


@dataclass(frozen=True)
class JobState:
    """Where a job stands. Times are seconds since the epoch; `code` is the exit code once there is one.

    `facts` is what the last writer said: `process` (pid, host, …) for a job on this machine, and what a back end adds.
    """

    state: str
    at: float | None = None
    started: float | None = None
    finished: float | None = None
    code: int | None = None
    error: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL


def run_state(states: Iterable[str]) -> str:
    """One word for all jobs of a run: still going before failed, failed before succeeded. No jobs yet: pending."""
    present = set(states)
    return next((state for state in _PRECEDENCE if state in present), "pending")


def now_iso() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def parse_time(value: object) -> float | None:
    """Seconds since the epoch of an ISO time or a number; None for anything else (a damaged record), and for a time
    that no run can have had and no calendar can show."""
    if isinstance(value, bool):
        return None
    try:
        seconds = float(value) if isinstance(value, int | float) else datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < _YEAR_3000 else None
