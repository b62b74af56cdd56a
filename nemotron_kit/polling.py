"""Looking again and again at something that another process changes: how long to wait in between, and until when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


class Pace:
    """The waits between two looks: `first` seconds, each `factor` times as long as the one before, at most `longest`.
    `again` after something has happened: then more is likely to follow soon."""

    def __init__(self, first: float, factor: float = 1.0, longest: float = float("inf")) -> None:
        self.first, self.factor, self.longest = first, factor, longest
        self._next = first

    def again(self) -> None:
        self._next = self.first

    def seconds(self) -> float:
        """The next wait; the one after it is longer."""
        seconds = min(self._next, self.longest)
        self._next = seconds * self.factor
        return seconds

    def wait(self) -> None:
        time.sleep(self.seconds())


def looks(pace: Pace | float, *, within: float) -> Iterator[None]:
    """`for _ in looks(0.05, within=10):` runs its body at once, then at each look, the last time when `within` seconds
    are over. A number is a pace that stays the same."""
    pace = pace if isinstance(pace, Pace) else Pace(pace)
    deadline = time.monotonic() + within
    while True:
        yield
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(pace.seconds(), left))


def until(condition: Callable[[], bool], pace: Pace | float, *, within: float) -> bool:
    """Wait until `condition()` holds; whether it does, within so many seconds."""
    return any(condition() for _ in looks(pace, within=within))
