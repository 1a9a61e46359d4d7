import re

import pytest

from rbft.engines.pace import Pace


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def sent_in(pace: Pace, clock: Clock, tokens: int, count: int) -> list[float]:
    """When so many requests are sent by one that waits as it is told."""
    times = []
    while len(times) < count:
        wait = pace.claim(tokens)
        if wait:
            clock.now += wait
        else:
            times.append(round(clock.now - 100, 6))
    return times


def test_requests_are_spread_over_the_minute() -> None:
    clock = Clock()
    assert sent_in(Pace(20, clock=clock), clock, 9, 4) == [0, 3, 6, 9]


def test_many_tokens_take_longer() -> None:
    clock = Clock()
    assert sent_in(Pace(tokens=1000, clock=clock), clock, 100, 3) == [0, 6, 12]
    clock = Clock()
    assert sent_in(Pace(60, 1000, clock), clock, 100, 3) == [0, 6, 12], "the longer of both"
    clock = Clock()
    assert sent_in(Pace(60, 1000, clock), clock, 1, 3) == [0, 1, 2]


def test_tokens_that_were_not_taken_are_given_back() -> None:
    clock = Clock()
    pace = Pace(tokens=600, clock=clock)
    assert pace.claim(300) == 0
    assert pace.claim(300) == pytest.approx(30)
    pace.settle(300, 100)
    assert pace.claim(300) == pytest.approx(10)


def test_a_pause_gives_no_right_to_a_burst() -> None:
    clock = Clock()
    pace = Pace(60, clock=clock)
    assert pace.claim(1) == 0
    clock.now += 600
    assert [pace.claim(1), pace.claim(1)] == [0, pytest.approx(1)]


def test_without_limits_nothing_waits() -> None:
    pace = Pace()
    assert [pace.claim(10**9) for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("name", ["requests", "tokens"])
def test_a_limit_is_one_or_more(name: str) -> None:
    said = re.escape(f"{name} a minute are 0; they must be 1 or more.")
    with pytest.raises(ValueError, match=f"^{said}$"):
        Pace(0) if name == "requests" else Pace(tokens=0)
