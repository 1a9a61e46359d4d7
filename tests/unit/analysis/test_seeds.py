import math
import re

import pytest

from rbft.analysis.seeds import (
    paired_difference,
    paired_power,
    seeds_needed,
    summary,
)


def test_mean_and_spread():
    found = summary([0.5, 0.7])
    assert (found.mean, found.n) == (pytest.approx(0.6), 2)
    assert found.sd == pytest.approx(math.sqrt(0.02))
    assert summary([0.5]).as_dict() == {"mean": 0.5, "sd": None, "n": 1}
    with pytest.raises(ValueError, match=r"^There is no seed to take a mean over\.$"):
        summary([])


def test_differences_are_taken_seed_by_seed():
    found = paired_difference({2: 0.7, 1: 0.6, 3: 0.5}, {1: 0.5, 2: 0.5, 3: 0.5})
    assert (found.mean, found.n, found.wins, found.ties) == (pytest.approx(0.1), 3, 2, 1)
    assert found.sd == pytest.approx(0.1)
    # t of 0.975 with 2 degrees of freedom is 4.303.
    assert found.high - found.mean == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_seed_has_no_interval():
    found = paired_difference({1: 0.6}, {1: 0.5})
    expected = {"low": None, "high": None, "t": None, "p": None, "sd": None}
    assert expected.items() <= found.as_dict().items()
    assert (found.mean, found.wins) == (pytest.approx(0.1), 1)


def test_differences_that_are_all_alike():
    """0.7 - 0.6 and 0.8 - 0.7 differ by rounding, which is no spread."""
    found = paired_difference({1: 0.7, 2: 0.8, 3: 0.4}, {1: 0.6, 2: 0.7, 3: 0.3})
    assert (found.sd, found.t, found.p, found.low) == (0, math.inf, 0, found.mean)
    assert found.as_dict()["t"] is None
    below = paired_difference({1: 0.6, 2: 0.7}, {1: 0.7, 2: 0.8})
    assert (below.t, below.p, below.wins) == (-math.inf, 0, 0)
    same = paired_difference({1: 0.6, 2: 0.7}, {1: 0.6, 2: 0.7})
    assert (same.t, same.p, same.ties) == (0, 1, 2)


def test_other_seeds_are_refused():
    message = (
        "Differences are taken seed by seed, but only one side has the seeds 2, 4. Run them with "
        "the other too."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        paired_difference({1: 0.5, 2: 0.5}, {1: 0.5, 4: 0.5})


def test_seeds_needed_are_the_first_with_the_power():
    needed = seeds_needed(1.0, 1.0)
    assert needed == 10  # of every table of the paired t test
    assert paired_power(needed - 1, 1.0, 1.0) < 0.8 <= paired_power(needed, 1.0, 1.0)
    assert seeds_needed(-2.0, 2.0) == needed
    assert seeds_needed(1.0, 1.0, power=0.95) > needed
    assert seeds_needed(1.0, 1.0, alpha=0.01) > needed
    assert seeds_needed(100.0, 1.0) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: seeds_needed(0.0, 1.0),
            "The difference to see (0) must be a finite number other than 0.",
        ),
        (
            lambda: seeds_needed(1.0, math.nan),
            "The standard deviation of a seed's difference (nan) must be above 0. It takes two "
            "seeds or more to estimate one.",
        ),
        (
            lambda: paired_power(1, 1.0, 1.0),
            "The number of seeds (1) must be 2 or more for a t test.",
        ),
        (
            lambda: seeds_needed(1.0, 1.0, alpha=1.0),
            "The level of the test (1) must be above 0 and below 1.",
        ),
        (
            lambda: seeds_needed(1.0, 1.0, power=0.0),
            "The power (0) must be above 0 and below 1.",
        ),
        (
            lambda: seeds_needed(0.001, 1.0),
            "A difference of 0.001 with a standard deviation of 1 takes more than 100000 seeds. "
            "Ask for a larger one.",
        ),
    ],
)
def test_power_out_of_range(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
