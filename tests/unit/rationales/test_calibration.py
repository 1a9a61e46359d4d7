"""The judge's mean corrected by human scores."""

import math
import random
from statistics import NormalDist

import numpy as np
import pytest

from rbft.rationales.calibration import (
    calibrated_mean,
    draw_for_humans,
    load_human_scores,
    mean_of,
)


def scores(values) -> dict[tuple[str, str], float]:
    return {("full", str(number)): float(value) for number, value in enumerate(values)}


def drawn(seed: int, texts: int, labelled: int, bias: float = 0.2, noise: float = 0.15):
    """People's scores of all texts, and the judge's, which is biased and noisy."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.2, 0.9, texts)
    judged = np.clip(truth + bias + rng.normal(0, noise, texts), 0, 1.2)
    human = dict(list(scores(truth).items())[:labelled])
    return truth, scores(judged), human


@pytest.mark.parametrize("tune", [False, True])
@pytest.mark.parametrize(("texts", "labelled"), [(40, 10), (300, 50), (12, 11)])
def test_against_the_formula(tune, texts, labelled):
    truth, judged, human = drawn(0, texts, labelled)
    f, y = np.array(list(judged.values())), truth[:labelled]
    more = texts - labelled
    weight = 1.0
    if tune:
        covariance = np.cov(y, f[:labelled], ddof=1)[0, 1]
        weight = np.clip(covariance / ((1 + labelled / more) * f.var(ddof=1)), 0, 1)
    value = y.mean() + weight * (f[labelled:].mean() - f[:labelled].mean())
    error = (y - weight * f[:labelled]).var(ddof=1) / labelled + weight**2 * f.var(ddof=1) / more
    half = 1.959963984540054 * math.sqrt(error)
    found = calibrated_mean(judged, human, tune=tune)
    assert (found.value, found.low, found.high) == pytest.approx(
        (value, value - half, value + half), abs=1e-12
    )
    assert (found.n, found.n_human) == (texts, labelled)


@pytest.mark.parametrize("tune", [False, True])
def test_the_interval_covers_the_truth_as_often_as_it_says(tune):
    """Of 600 draws with a judge that is 0.2 too kind, about 95 % of the intervals hold 0.55."""
    hits, wide, naive = 0, 0.0, 0
    for seed in range(600):
        _, judged, human = drawn(seed, 300, 60)
        found = calibrated_mean(judged, human, tune=tune)
        hits += found.low <= 0.55 <= found.high
        wide += found.high - found.low
        plain = mean_of(list(judged.values()))
        naive += plain.low <= 0.55 <= plain.high
    assert 0.925 <= hits / 600 <= 0.975
    assert naive == 0  # the judge's own mean is never right
    alone = 2 * NormalDist().inv_cdf(0.975) * 0.7 / math.sqrt(12 * 60)
    assert wide / 600 < (0.95 if tune else 1.2) * alone


def test_a_judge_that_knows_nothing_does_no_harm_when_tuned():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, 50)
    judged = scores(rng.uniform(0, 1, 400))
    human = dict(zip(judged, truth.tolist(), strict=False))
    tuned, plain = calibrated_mean(judged, human), calibrated_mean(judged, human, tune=False)
    only = mean_of(truth.tolist())
    assert tuned.high - tuned.low < 1.1 * (only.high - only.low)
    assert plain.high - plain.low > 1.2 * (only.high - only.low)


def test_a_perfect_judge_gives_its_own_mean():
    values = [0.0, 0.25, 0.5, 0.75, 1.0] * 20
    judged = scores(values)
    human = dict(list(judged.items())[:20])
    found = calibrated_mean(judged, human, tune=False)
    assert found.value == pytest.approx(0.5)
    assert found.high - found.low < 0.2


def test_where_people_scored_all_it_is_their_mean():
    judged = scores([1.0] * 5)
    human = scores([0.0, 0.5, 1.0, 0.5, 0.5])
    found = calibrated_mean(judged, human)
    assert found == mean_of([0.0, 0.5, 1.0, 0.5, 0.5]).__class__(0.5, found.low, found.high, 5, 5)
    assert found.high == pytest.approx(mean_of(list(human.values())).high)


def test_a_judge_that_always_says_the_same():
    judged = scores([0.5] * 30)
    human = dict(list(scores(random.Random(0).choices([0.25, 0.75], k=30)).items())[:10])
    assert calibrated_mean(judged, human).value == pytest.approx(sum(human.values()) / 10)


def test_what_cannot_be_calibrated():
    judged = scores([0.5] * 5)
    with pytest.raises(ValueError, match="too few") as error:
        calibrated_mean(judged, scores([0.5]))
    assert str(error.value) == (
        "1 human scores are too few to correct the judge's mean: it takes 2, and 50 or more for an "
        "interval to rely on."
    )
    with pytest.raises(ValueError, match="no score for") as error:
        calibrated_mean(judged, {("full", "z"): 0.5})
    assert str(error.value) == (
        "1 human scores are of texts that the judge has no score for (first: z of 'full')."
    )
    with pytest.raises(ValueError, match="must be from") as error:
        calibrated_mean(judged, scores([0.5, 88]))
    assert str(error.value) == "The human score of 1 (88) must be from 0 to 1."
    with pytest.raises(ValueError, match=r"The human score of 0 \(nan\) must be from 0 to 1\."):
        calibrated_mean(judged, scores([math.nan, 0.5]))


def test_means_have_normal_intervals():
    values = [0.1, 0.4, 0.4, 0.9]
    half = 1.959963984540054 * np.std(values, ddof=1) / 2
    found = mean_of(values)
    assert (found.value, found.low, found.high) == pytest.approx((0.45, 0.45 - half, 0.45 + half))
    assert str(mean_of([0.5])) == "0.50 (0.50 to 0.50, n = 1)"


def test_a_larger_draw_adds_to_a_smaller_one():
    keys = [("full", str(number)) for number in range(100)]
    small, large = draw_for_humans(keys, 10), draw_for_humans(keys, 30)
    assert large[:10] == small
    assert len(set(large)) == 30
    assert draw_for_humans(keys[::-1], 10) == small
    assert draw_for_humans(keys, 10, seed=1) != small


def test_human_scores_are_read_and_averaged(tmp_path):
    path = tmp_path / "human.jsonl"
    path.write_text(
        '{"condition": "full", "id": "a", "score": 1}\n\n'
        '{"condition": "full", "id": "a", "score": 0.5, "who": "x"}\n'
        '{"condition": "least", "id": "a", "score": 0}\n'
    )
    assert load_human_scores(path) == {("full", "a"): 0.75, ("least", "a"): 0.0}


@pytest.mark.parametrize(
    "line",
    [
        "full,a,1",
        "[1]",
        '{"condition": "full", "id": "a"}',
        '{"condition": "full", "id": 3, "score": 1}',
        '{"condition": "full", "id": "a", "score": "1"}',
        '{"condition": "full", "id": "a", "score": true}',
        '{"condition": "full", "id": "a", "score": 88}',
        '{"condition": "full", "id": "a", "score": NaN}',
    ],
)
def test_damaged_human_scores_are_named(tmp_path, line):
    path = tmp_path / "human.jsonl"
    path.write_text(f'{{"condition": "full", "id": "a", "score": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="must be a JSON object") as error:
        load_human_scores(path)
    assert str(error.value) == (
        f"Human scores {path}, line 2, must be a JSON object with condition (text), id (text) and "
        f"score (a number from 0 to 1); got {line!r}."
    )


def test_missing_human_scores(tmp_path):
    with pytest.raises(ValueError, match="cannot be read") as error:
        load_human_scores(tmp_path / "none.jsonl")
    assert str(error.value) == (
        f"Human scores {tmp_path / 'none.jsonl'} cannot be read: No such file or directory."
    )
