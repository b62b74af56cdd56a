"""How long is waited between two looks, and until when; with a clock that the test moves."""

from __future__ import annotations

import pytest

from nemotron_kit import polling
from nemotron_kit.polling import Pace, polls, until


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(polling, "time", made)
    return made


def test_a_pace_slows_down_to_its_longest_wait_and_begins_again() -> None:
    pace = Pace(1.0, 2.0, 5.0)
    assert [pace.seconds() for _ in range(5)] == [1, 2, 4, 5, 5]
    pace.restart()
    assert [pace.seconds() for _ in range(2)] == [1, 2]


def test_a_look_comes_at_once_and_the_last_one_when_the_time_is_over(clock: Clock) -> None:
    seen = [clock.now for _ in polls(Pace(1.0, 2.0), within=5)]
    assert seen == [0, 1, 3, 5] and clock.slept == [1, 2, 2]
    assert [clock.now for _ in polls(0.5, within=0)] == [5], "without time there is one look"


def test_until_says_whether_it_came_to_hold(clock: Clock) -> None:
    assert until(lambda: clock.now >= 2, 0.5, within=2) and clock.now == 2
    assert until(lambda: True, 0.5, within=0) and clock.now == 2
    assert not until(lambda: False, 0.5, within=1) and clock.now == 3
