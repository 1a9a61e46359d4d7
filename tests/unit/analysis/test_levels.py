import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error
from torch import tensor
from torchmetrics.functional import spearman_corrcoef

from rbft.analysis.intervals import Cells
from rbft.analysis.levels import constant_scores, level_intervals, level_scores, spearman
from rbft.analysis.scored import ScoredClips

NAN = math.nan
LEVELS = (1.0, 2.0, 4.0)


def rank_correlation(a: Any, b: Any) -> float:
    """Of scipy."""
    found: Any = spearmanr(a, b)
    return found.statistic


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=2, max_size=30))
def test_spearman_against_scipy_with_ties(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    found = spearman(a, b)
    if len({*a}) == 1 or len({*b}) == 1:
        assert math.isnan(found)
        return
    assert found == pytest.approx(rank_correlation(a, b), abs=1e-12)


def test_spearman_against_torchmetrics() -> None:
    drawn = np.random.default_rng(0)
    a, b = drawn.normal(size=50), drawn.integers(0, 5, size=50).astype(float)
    assert spearman(a, b) == pytest.approx(spearman_corrcoef(tensor(a), tensor(b)).item())


def test_clips_without_answer_are_left_out() -> None:
    expected, answered = np.array([1.5, NAN, 3.0, 1.2]), np.array([1.0, NAN, 4.0, 2.0])
    true = np.array([1.0, 4.0, 2.0, 4.0])
    have = [0, 2, 3]
    found = level_scores(expected, answered, true)
    assert found["mae"] == pytest.approx(mean_absolute_error(true[have], expected[have]))
    assert found["mae/answer"] == pytest.approx(mean_absolute_error(true[have], answered[have]))
    assert found["spearman"] == pytest.approx(rank_correlation(true[have], expected[have]))
    assert list(found) == ["mae", "mae/answer", "spearman"]
    nobody = level_scores(np.array([NAN]), np.array([NAN]), np.array([1.0]))
    assert all(math.isnan(value) for value in nobody.values())


@pytest.mark.parametrize("clips", [1, 2, 9, 40])
def test_intervals_are_quantiles_of_clips_that_are_drawn_again(clips: int) -> None:
    drawn = np.random.default_rng(clips)
    true = drawn.choice(LEVELS, size=clips)
    answered = drawn.choice(LEVELS, size=clips)
    expected = np.round(answered + drawn.normal(size=clips), 1)  # some are equal
    expected[clips // 2 : clips // 2 + (clips > 2)] = NAN
    have = ~np.isnan(expected)
    own = (expected[have], answered[have], true[have])
    size = int(have.sum())
    again: dict[str, list[float]] = {"mae": [], "mae/answer": [], "spearman": []}
    cells = Cells(np.ones(size, dtype=int), np.zeros(size, dtype=int), 1)
    (every,) = cells.resamples(300, seed=3)
    for counts in every:
        one = level_scores(*(np.repeat(values, counts) for values in own))
        for name, value in one.items():
            again[name] += [] if math.isnan(value) else [value]
    found = level_intervals(expected, answered, true, resamples=300, seed=3)
    for name, value in level_scores(expected, answered, true).items():
        interval = found[name]
        if math.isnan(value):
            assert math.isnan(interval.low)
            continue
        assert interval.value == value
        ends = np.quantile(again[name], [0.025, 0.975])
        assert [interval.low, interval.high] == pytest.approx(list(ends), abs=1e-9)
    assert found["mae"].low <= found["mae"].value <= found["mae"].high
    nobody = level_intervals(np.array([NAN]), np.array([NAN]), np.array([1.0]))
    assert all(math.isnan(one.low) for one in nobody.values())


@pytest.mark.parametrize("counts", [(3, 1, 1), (1, 1, 3), (1, 2, 1), (2, 0, 2), (0, 0, 1)])
def test_no_other_constant_errs_less_than_the_median_level(counts: tuple[int, ...]) -> None:
    true = np.repeat(LEVELS, counts)
    least = min(np.abs(true - level).mean() for level in LEVELS)
    found = constant_scores(LEVELS, counts)
    assert found["mae"] == found["mae/answer"] == pytest.approx(least)
    assert math.isnan(found["spearman"])


def test_of_answers_as_they_stand_in_files() -> None:
    rows = [
        {"id": "a", "label": "low", "prediction": "low",
         "probabilities": {"low": 0.5, "mid": 0.25, "high": 0.25}},
        {"id": "b", "label": "high", "prediction": "mid"},  # written
        {"id": "c", "label": "mid", "prediction": "high",
         "probabilities": {"low": 0.0, "mid": 0.25, "high": 0.75}},
        {"id": "d", "label": "mid", "prediction": None, "error": "damaged"},
    ]  # fmt: skip
    made = ScoredClips.from_rows(rows, ("low", "mid", "high"), "test", "x", LEVELS)
    expected, answered, true = [2.0, 2.0, 3.5], [1.0, 2.0, 4.0], [1.0, 4.0, 2.0]
    assert made.level_scores == {
        "mae": pytest.approx(mean_absolute_error(true, expected)),
        "mae/answer": pytest.approx(mean_absolute_error(true, answered)),
        "spearman": pytest.approx(rank_correlation(true, expected)),
    }
    assert made.in_order_of(["d", "c", "b", "a"]).level_scores == pytest.approx(made.level_scores)
    written = [{**row, "probabilities": None} for row in rows]
    bare = [{k: v for k, v in row.items() if k != "probabilities"} for row in written]
    found = ScoredClips.from_rows(bare, made.classes, "test", "x", LEVELS).level_scores
    assert found["mae"] == found["mae/answer"] == pytest.approx(made.level_scores["mae/answer"])
    assert ScoredClips.from_rows(rows, made.classes, "test", "x").level_scores == {}
