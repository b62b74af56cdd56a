"""Polling a state that another process changes: the intervals, and the time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


class Pace:
    """Polling intervals: `first` seconds, each `factor` times as long as the one before, at most `longest`. Call
    `restart` after a change: the intervals start over, since more changes are likely."""

    def __init__(self, first: float, factor: float = 1.0, longest: float = float("inf")) -> None:
        self.first, self.factor, self.longest = first, factor, longest
        self._next = first

    def restart(self) -> None:
        """Begin again with the first interval."""
        self._next = self.first

    def seconds(self) -> float:
        """The next wait; the one after it is longer."""
        seconds = min(self._next, self.longest)
        self._next = seconds * self.factor
        return seconds

    def wait(self) -> None:
        """Sleep for the next interval."""
        time.sleep(self.seconds())


def polls(pace: Pace | float, *, within: float) -> Iterator[None]:
    """`for _ in polls(0.05, within=10):` runs its body at once and then after each interval, the last time when
    `within` seconds are over. A number is a constant interval."""
    pace = pace if isinstance(pace, Pace) else Pace(pace)
    deadline = time.monotonic() + within
    while True:
        yield
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(pace.seconds(), left))


def until(condition: Callable[[], bool], pace: Pace | float, *, within: float) -> bool:
    """Poll until `condition()` is true, at most `within` seconds; returns whether it became true."""
    return any(condition() for _ in polls(pace, within=within))
