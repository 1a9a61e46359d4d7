"""Intervals, tests, power and calibration against scipy, statsmodels, scikit-learn and others."""

import math
import warnings
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss
from torchmetrics.classification import MulticlassCalibrationError

from rbft.analysis.calibration import calibration, fit_temperature, with_temperature
from rbft.analysis.distributions import incomplete_beta, t_quantile, t_two_sided
from rbft.analysis.intervals import bootstrap_scores, wilson
from rbft.analysis.paired import compare_pair, mcnemar, mcnemar_power
from rbft.analysis.scored import ScoredClips
from rbft.analysis.seeds import paired_difference, paired_power, seeds_needed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that statsmodels imports
    from statsmodels.stats import contingency_tables, power, proportion


def answers(clips, classes=3, seed=0, skill=1.5, name="a"):
    """Made-up answers; some are no class and have no right to be right."""
    drawer = np.random.default_rng(seed)
    labels = np.random.default_rng(99).choice(classes, clips, p=np.arange(1, classes + 1) / 6)
    scores = drawer.normal(size=(clips, classes))
    scores[np.arange(clips), labels] += skill
    predictions = scores.argmax(axis=1)
    predictions[drawer.random(clips) < 0.05] = classes
    names = tuple("xyzuvw"[:classes])
    ids = tuple(f"clip{number}" for number in range(clips))
    return ScoredClips(
        name, "val", names, ids, labels, predictions, special.softmax(2 * scores, axis=1)
    )


@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(("correct", "n"), [(0, 7), (3, 10), (139, 196), (999, 1000), (5, 5)])
def test_wilson_against_statsmodels(correct, n, level):
    found = wilson(correct, n, level)
    expected = proportion.proportion_confint(correct, n, 1 - level, method="wilson")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def f1(labels, answers, index):
    """F1 of a class in each row."""
    both = ((labels == index) & (answers == index)).sum(axis=-1)
    return 2 * both / ((labels == index).sum(axis=-1) + (answers == index).sum(axis=-1))


def macro(labels, answers):
    return sum(f1(labels, answers, index) for index in range(3)) / 3


def accuracy(labels, answers):
    return (labels == answers).mean(axis=-1)


def no_axis(statistic: Any, *drawn, axis):
    """scipy says which axis is the clips'; it is the last one."""
    assert axis == -1
    return statistic(*drawn)


def resampled(every, statistic):
    """scipy's interval; it draws clips one by one."""
    found = stats.bootstrap(
        every, statistic, paired=True, vectorized=True, n_resamples=20_000, batch=2000,
        method="percentile", rng=np.random.default_rng(1),
    )  # fmt: skip
    return found.confidence_interval


def test_resampled_scores_against_drawing_clips_one_by_one():
    """The multinomial draw of cells must spread as scipy's draw of clips does."""
    scored = answers(120)
    every = (scored.labels, scored.predictions)
    found = bootstrap_scores(scored.confusion, scored.classes)
    sklearn: Any = f1_score(*every, labels=[0, 1, 2], average=cast(Any, None))
    assert found["f1/x"].value == pytest.approx(sklearn[0])
    assert found["f1/macro"].value == pytest.approx(sklearn.mean())
    assert found["accuracy"].value == pytest.approx(accuracy_score(*every))
    for name, statistic in (
        ("accuracy", accuracy),
        ("f1/x", lambda labels, answers: f1(labels, answers, 0)),
        ("f1/macro", macro),
    ):
        expected = resampled(every, partial(no_axis, statistic))
        # Quantiles of so many draws scatter by some thousandths.
        assert (found[name].low, found[name].high) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 5), (7, 3), (40, 40), (700, 600)])
def test_mcnemar_against_statsmodels(only_a, only_b):
    table = [[11, only_a], [only_b, 5]]
    peer: Any = contingency_tables.mcnemar(table, exact=True)
    expected = peer.pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)
    total = only_a + only_b
    middle = expected - stats.binom.pmf(min(only_a, only_b), total, 0.5)
    if only_a != only_b:  # else both tails hold the middle, and p is 1 at most
        assert mcnemar(only_a, only_b, mid_p=True) == pytest.approx(middle, rel=1e-9)


def test_paired_differences_against_drawing_clips_one_by_one():
    a, b = answers(150, seed=1, skill=2.0), answers(150, seed=2, name="b")
    found = compare_pair(a, b)
    every = (a.labels, a.predictions, b.predictions)
    for interval, statistic in ((found.accuracy, accuracy), (found.macro_f1, macro)):

        def difference(labels, first, second, axis, of: Any = statistic):
            return of(labels, first) - of(labels, second)

        assert interval.value == pytest.approx(difference(*every, axis=-1))
        expected = resampled(every, difference)
        assert (interval.low, interval.high) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("mid_p", [False, True])
@pytest.mark.parametrize(("clips", "shares"), [(40, (0.3, 0.05)), (90, (0.1, 0.2))])
def test_power_of_mcnemar_against_every_outcome(clips, shares, mid_p):
    """Summed over all outcomes of the trinomial draw, tested with statsmodels' p."""
    expected = 0.0
    outcomes = stats.multinomial(clips, [*shares, 1 - sum(shares)])
    for a in range(clips + 1):
        for b in range(clips + 1 - a):
            p = 2 * stats.binom.cdf(min(a, b), a + b, 0.5) if a != b else 1.0
            if mid_p:
                p -= stats.binom.pmf(min(a, b), a + b, 0.5) if a != b else 0
            if p <= 0.05:
                expected += outcomes.pmf([a, b, clips - a - b])
    difference, discordant = shares[0] - shares[1], sum(shares)
    found = mcnemar_power(clips, difference, discordant, mid_p=mid_p)
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_t_distribution_against_scipy():
    for a in (0.5, 1.0, 2.5, 40.0, 500.0):
        for b in (0.5, 3.0, 50.0):
            for x in (0.0, 1e-6, 0.2, 0.5, 0.99, 1.0):
                assert incomplete_beta(a, b, x) == pytest.approx(
                    special.betainc(a, b, x), rel=1e-10
                )
    for freedom in (1, 2, 4, 30, 1000):
        for t in (0.0, 0.3, -2.5, 40.0):
            expected = 2 * stats.t.sf(abs(t), freedom)
            assert t_two_sided(t, freedom) == pytest.approx(expected, rel=1e-9)
        for level in (0.5, 0.95, 0.999):
            expected = stats.t.ppf((1 + level) / 2, freedom)
            assert t_quantile(level, freedom) == pytest.approx(expected, rel=1e-9)


def test_differences_over_seeds_against_scipy():
    a, b = [0.71, 0.74, 0.69, 0.80, 0.77], [0.70, 0.69, 0.71, 0.72, 0.70]
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)), level=0.9)
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.9)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("effect", [0.4, -1.0, 3.0])
def test_power_over_seeds_against_statsmodels(effect, alpha):
    peer = power.TTestPower()
    for seeds in (2, 3, 5, 40):
        expected = peer.power(abs(effect), seeds, alpha)
        assert paired_power(seeds, effect, 1.0, alpha) == pytest.approx(expected, abs=1e-10)
    needed = seeds_needed(effect / 10, 0.1, alpha)
    expected = peer.solve_power(abs(effect), alpha=alpha, power=0.8)
    assert needed == max(2, math.ceil(float(np.squeeze(expected))))


def test_calibration_against_scikit_learn_and_torchmetrics():
    scored = answers(400)
    shares, labels = scored.probabilities, scored.labels
    assert shares is not None
    found = calibration(scored, bins=10)
    ece = MulticlassCalibrationError(3, n_bins=10, norm="l1")(
        torch.tensor(shares), torch.tensor(labels)
    )
    assert found.ece == pytest.approx(float(ece), abs=1e-6)  # computed in 32 bits there
    assert found.nll == pytest.approx(log_loss(labels, shares))
    assert found.brier == pytest.approx(
        brier_score_loss(labels, shares, scale_by_half=cast(Any, False))
    )


def test_the_temperature_against_a_search():
    scored = answers(400)

    def nll(temperature):
        assert scored.probabilities is not None
        return log_loss(scored.labels, with_temperature(scored.probabilities, temperature))

    expected: Any = optimize.minimize_scalar(nll, bounds=(0.05, 20), method="bounded")
    assert fit_temperature(scored) == pytest.approx(expected.x, rel=1e-3)
    assert nll(fit_temperature(scored)) < nll(1.0) - 0.005
