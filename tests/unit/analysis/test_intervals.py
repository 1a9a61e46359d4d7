import math
import re

import numpy as np
import pytest

from rbft.analysis.intervals import (
    Cells,
    Interval,
    bootstrap_scores,
    for_results,
    score_intervals,
    wilson,
)

CLASSES = ["quiet", "alarm"]


def matrix(*rows):
    return np.array(rows)


def test_wilson_at_the_ends_and_without_clips():
    none, every = wilson(0, 20), wilson(20, 20)
    assert none.low == 0
    assert every.high == 1
    assert none.high == pytest.approx(0.1611, abs=5e-5)  # z^2 / (n + z^2)
    assert every.low == pytest.approx(1 - none.high)
    empty = wilson(0, 0)
    assert math.isnan(empty.value)
    assert (empty.low, empty.high) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 4), "Right answers (5) must be from 0 to the number of clips (4)."),
        ((-1, 4), "Right answers (-1) must be from 0 to the number of clips (4)."),
        ((1, 4, 1.0), "The level of an interval (1.0) must be above 0 and below 1."),
    ],
)
def test_counts_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        wilson(*arguments)


def test_the_same_counts_and_seed_give_the_same_intervals():
    counts = matrix([40, 8, 2], [10, 30, 0])
    assert bootstrap_scores(counts, CLASSES) == bootstrap_scores(counts, CLASSES)
    assert bootstrap_scores(counts, CLASSES) != bootstrap_scores(counts, CLASSES, seed=1)


def test_the_chunks_of_a_large_matrix_are_one_draw(monkeypatch):
    """As many draws in many chunks; the multinomial draws of a seed follow each other."""
    counts = matrix([40, 8, 2], [10, 30, 0])
    whole = bootstrap_scores(counts, CLASSES, resamples=100)
    monkeypatch.setattr("rbft.analysis.intervals.CHUNK", 6 * 30)  # 30 resamples, 10 the last
    assert bootstrap_scores(counts, CLASSES, resamples=100) == whole


def test_a_resample_has_as_many_clips():
    cells = Cells(np.array([3, 0, 7]), np.array([0, 1, 1]), 2)
    (drawn,) = cells.resamples(50, seed=0)
    assert drawn.sum(axis=1).tolist() == [10] * 50
    assert not drawn[:, 1].any()
    assert len(np.unique(drawn[:, 0])) > 3


def test_a_class_without_clips_has_no_interval():
    found = bootstrap_scores(matrix([0, 0, 0], [3, 17, 0]), CLASSES)
    assert math.isnan(found["f1/quiet"].value)
    assert found["f1/quiet"].as_dict() == {"low": None, "high": None}
    assert found["f1/macro"] == found["f1/alarm"]
    assert found["f1/alarm"].value == pytest.approx(34 / 37)


def test_resamples_without_a_class_leave_it_out():
    """Of one quiet clip 37 % of the resamples have none; its F1 is of the others."""
    found = bootstrap_scores(matrix([1, 0, 0], [0, 9, 0]), CLASSES)
    assert (found["f1/quiet"].low, found["f1/quiet"].high) == (1, 1)
    assert (found["f1/macro"].low, found["f1/macro"].high) == (1, 1)


def test_no_clips_at_all():
    found = bootstrap_scores(matrix([0, 0, 0], [0, 0, 0]), CLASSES)
    assert all(math.isnan(one.value) and math.isnan(one.low) for one in found.values())


def test_answers_that_are_no_class_count_as_wrong():
    answered = bootstrap_scores(matrix([10, 0, 0], [0, 10, 0]), CLASSES)
    silent = bootstrap_scores(matrix([10, 0, 10], [0, 10, 0]), CLASSES)
    assert answered["accuracy"].value == 1
    assert silent["accuracy"].value == pytest.approx(2 / 3)
    assert silent["f1/quiet"].value == pytest.approx(20 / 30)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"resamples": 0}, "The number of resamples (0) must be 1 or more."),
        ({"level": 0.0}, "The level of an interval (0.0) must be above 0 and below 1."),
    ],
)
def test_a_bootstrap_out_of_range(more, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bootstrap_scores(matrix([1, 0, 0], [0, 1, 0]), CLASSES, **more)


def test_what_stands_beside_scores():
    """Wilson's for the accuracy: the bootstrap of a perfect score has no width."""
    found = score_intervals(matrix([10, 0, 0], [0, 10, 0]), CLASSES)
    assert found["accuracy"] == wilson(20, 20)
    assert set(found) == {"accuracy", "f1/quiet", "f1/alarm", "f1/macro"}
    assert for_results(found)["f1/macro"] == {"low": 1.0, "high": 1.0}


def test_in_per_cent():
    assert Interval(0.7131, 0.66, 0.7614).percent() == "71.3 [66.0, 76.1]"
    assert Interval(0.05, -0.012, 0.1).percent(sign="+") == "+5.0 [-1.2, +10.0]"
    assert Interval(0.7131, 0.66, 0.7614).percent(0) == "71 [66, 76]"
    assert Interval(math.nan, math.nan, math.nan).percent() == "-"
