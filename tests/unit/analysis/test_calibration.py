import re
from typing import Any

import numpy as np
import pytest

from rbft.analysis.calibration import (
    COLDEST,
    HOTTEST,
    calibration,
    fit_temperature,
    reliability_figure,
    with_temperature,
)
from rbft.analysis.intervals import wilson
from rbft.analysis.scored import ScoredClips


def scored(shares, labels, split="val"):
    """Clips by the probability of the second of two classes."""
    rows = [
        {
            "id": str(place),
            "label": "ab"[label],
            "prediction": "ab"[share > 0.5] if share is not None else None,
            **({} if share is None else {"probabilities": {"a": 1 - share, "b": share}}),
        }
        for place, (share, label) in enumerate(zip(shares, labels, strict=True))
    ]
    return ScoredClips.from_rows(rows, ["a", "b"], split, "house/label")


def test_by_hand():
    # Likeliest: 0.9 right, 0.9 wrong, 0.8 right, 0.6 right.
    found = calibration(scored([0.9, 0.9, 0.2, 0.6], [1, 0, 0, 1]), bins=5)
    assert [(one.low, one.high, one.n) for one in found.bins] == [
        (0.4, 0.6, 1), (0.6, 0.8, 1), (0.8, 1.0, 2),
    ]  # fmt: skip
    assert found.bins[2].confidence == pytest.approx(0.9)
    assert found.bins[2].accuracy == wilson(1, 2)
    assert found.ece == pytest.approx((0.4 + 0.2 + 2 * 0.4) / 4)
    assert found.brier == pytest.approx(2 * (0.01 + 0.81 + 0.04 + 0.16) / 4)
    assert found.nll == pytest.approx(-np.log([0.9, 0.1, 0.8, 0.6]).mean())


def test_clips_without_probabilities_are_left_out():
    found = calibration(scored([0.9, None], [1, 0]))
    assert found.n == 1
    assert found.as_dict()["n"] == 1
    assert found.ece == pytest.approx(0.1)


def test_a_probability_of_nought_has_a_finite_penalty():
    assert calibration(scored([0.0, 1.0], [1, 1])).nll == pytest.approx(87.33 / 2, abs=0.01)


def test_in_json_with_interval():
    (one,) = calibration(scored([1.0, 1.0], [1, 1])).as_dict()["bins"]
    assert (one["n"], one["confidence"], one["accuracy"]) == (2, 1.0, 1.0)
    assert one["interval"] == wilson(2, 2).as_dict()


def test_the_reliability_diagram():
    found = calibration(scored([0.9, 0.9, 0.2, 0.6], [1, 0, 0, 1]), bins=5)
    upper, lower = reliability_figure(found.as_dict()).axes
    points = upper.lines[1].get_xydata()
    assert np.asarray(points).tolist() == [
        [one.confidence, one.accuracy.value] for one in found.bins
    ]
    bars: Any = upper.collections[0]  # the intervals
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends[2] == pytest.approx([wilson(1, 2).low, wilson(1, 2).high])
    shapes: Any = lower.patches
    heights = [(bar.get_x(), bar.get_height()) for bar in shapes]
    assert heights == [(0.4, 1), (0.6, 1), (0.8, 2)]
    assert upper.get_title() == "ECE 0.350, Brier 0.510, n = 4"


def test_a_temperature_of_clips_that_were_sharpened():
    """Probabilities to the power 3 are mended by a temperature three times as high."""
    drawer = np.random.default_rng(0)
    shares = drawer.uniform(0.05, 0.95, 300)
    labels = (drawer.random(300) < shares).astype(int).tolist()
    sharper = shares**3 / (shares**3 + (1 - shares) ** 3)
    plain = fit_temperature(scored(shares.tolist(), labels))
    assert fit_temperature(scored(sharper.tolist(), labels)) == pytest.approx(3 * plain, rel=1e-6)
    both = np.column_stack([1 - sharper, sharper])
    assert with_temperature(both, 3.0)[:, 1] == pytest.approx(shares)


def test_the_ends_of_the_temperature():
    assert fit_temperature(scored([0.6, 0.4], [1, 0])) == COLDEST  # nothing wrong
    assert fit_temperature(scored([0.9, 0.1], [0, 1])) == HOTTEST  # nothing right


def test_no_temperature_from_the_test_split():
    message = (
        "A temperature is never chosen on the test split, whose scores would then be too good, but "
        "house/label is of it. Score a validation split (python -m rbft validate; "
        "data.val_fraction carves one) and choose it there."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit_temperature(scored([0.9, 0.1], [1, 1], split="test"))


def test_bins_out_of_range():
    with pytest.raises(ValueError, match=re.escape("The number of bins (0) must be 1 or more.")):
        calibration(scored([0.9], [1]), bins=0)
