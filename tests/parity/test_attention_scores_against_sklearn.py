"""Scores of maps against scikit-learn and scipy, and boxes drawn pixel by pixel."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from rbft.analysis.means import bootstrap_difference, bootstrap_mean
from rbft.attention.boxes import coverage
from rbft.attention.scores import entropy, weighted_auroc
from rbft.masking.boxes import Box


@pytest.mark.parametrize("seed", range(5))
def test_auroc_of_whole_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, inside = rng.integers(0, 5, 40).astype(float), rng.integers(0, 2, 40)  # with ties
    found = weighted_auroc(values, inside.astype(float))
    assert found == pytest.approx(roc_auc_score(inside, values))


@pytest.mark.parametrize("seed", range(5))
def test_auroc_of_partly_covered_cells(seed: int) -> None:
    """A cell is a positive with its covered part and a negative with the rest."""
    rng = np.random.default_rng(seed)
    values, inside = rng.integers(0, 9, 30).astype(float), rng.random(30)
    labels = np.repeat([1, 0], 30)
    weights = np.concatenate([inside, 1 - inside])
    expected = roc_auc_score(labels, np.tile(values, 2), sample_weight=weights)
    assert weighted_auroc(values, inside) == pytest.approx(expected)


@pytest.mark.parametrize("inside", [0.0, 1.0])
def test_auroc_where_nothing_or_everything_is_covered(inside: float) -> None:
    assert math.isnan(weighted_auroc(np.arange(4.0), np.full(4, inside)))


def test_entropy() -> None:
    values = np.random.default_rng(0).random((2, 3, 4))
    expected = stats.entropy(values.ravel()) / math.log(24)
    assert entropy(values) == pytest.approx(expected)
    assert entropy(np.ones((2, 3, 4))) == pytest.approx(1)
    single = np.zeros((2, 3, 4))
    single[1, 2, 3] = 7
    assert entropy(single) == 0
    assert entropy(np.ones((1, 1, 1))) == 0


SIDES = st.tuples(st.integers(0, 59), st.integers(1, 60)).map(sorted).filter(lambda p: p[0] < p[1])


@given(st.lists(st.tuples(SIDES, SIDES), max_size=4), st.sampled_from([1, 3, 4, 5]))
def test_coverage_of_boxes_drawn_pixel_by_pixel(sides: list, rows: int) -> None:
    """60 x 60 pixels: 1, 3, 4 and 5 rows have whole pixels, 6 columns too."""
    drawn = np.zeros((60, 60))
    boxes = []
    for (x1, x2), (y1, y2) in sides:
        drawn[y1:y2, x1:x2] = 1
        boxes.append(Box(x1 / 60, y1 / 60, x2 / 60, y2 / 60))
    expected = drawn.reshape(rows, 60 // rows, 6, 10).mean(axis=(1, 3))
    np.testing.assert_allclose(coverage(boxes, rows, 6), expected, atol=1e-9)


def test_bootstrap_of_a_mean() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    found = bootstrap_mean(values.tolist())
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    # Two sets of draws: their quantiles differ by chance.
    spread = values.std() / math.sqrt(len(values))
    assert found.low == pytest.approx(theirs.low, abs=0.06 * spread)
    assert found.high == pytest.approx(theirs.high, abs=0.06 * spread)


def test_bootstrap_of_a_paired_difference() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(size=30)
    a = {f"clip{n}": shared[n] + 0.5 + 0.1 * rng.normal() for n in range(30)}
    b = {f"clip{n}": shared[n] for n in range(29)} | {"other": 9.0}
    a["lost"], b["lost"] = 1.0, math.nan
    found, clips = bootstrap_difference(a, b)
    assert clips == 29
    apart = np.array([a[f"clip{n}"] - b[f"clip{n}"] for n in range(29)])
    theirs = stats.bootstrap(
        (apart,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.value == pytest.approx(apart.mean())
    assert found.low == pytest.approx(theirs.low, abs=0.003)
    assert found.high == pytest.approx(theirs.high, abs=0.003)
