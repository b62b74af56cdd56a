"""How a job ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INTERRUPTED = 130
# What a shell says of a process that TERM ended.
TERMINATED = 128 + 15


def exit_code(number: int) -> int:
    """What a process exits with that asks for `number`: the system keeps its last eight bits, and a failure must not
    become 0 by that."""
    return number & 0xFF or 1 if number else 0


@dataclass(frozen=True)
class Outcome:
    """`code` is what the command line exits with, `state` what the ledger says, `value` what the handler returned.

    `own` is the exit code of the job's own process, where that was another process; killed by signal N it is 128+N.
    `signal` is the signal that ended a child that nobody here had sent one.
    """

    code: int
    state: str
    error: str | None = None
    value: Any = None
    exception: BaseException | None = None
    signal: int | None = None
    own: int | None = None

    @property
    def recorded(self) -> int:
        """The exit code that is put on record: the job's own, where it had one."""
        return self.code if self.own is None else self.own
