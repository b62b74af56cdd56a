"""How a job ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """`code` is what the command line exits with, `state` what the ledger says, `value` what the handler returned.

    `signal` is the signal that ended a child that nobody here had sent one.
    """

    code: int
    state: str
    error: str | None = None
    value: Any = None
    exception: BaseException | None = None
    signal: int | None = None
