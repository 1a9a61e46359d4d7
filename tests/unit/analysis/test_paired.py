import json
import re

import numpy as np
import pytest

from rbft.analysis.paired import (
    check_same_clips,
    clips_needed,
    compare_pair,
    mcnemar,
    mcnemar_power,
)
from rbft.analysis.scored import ScoredClips

CLASSES = ["quiet", "alarm"]
LABELS = {"a": "quiet", "b": "alarm", "c": "alarm", "d": "quiet", "e": "alarm"}


def answers(name, labels, wrong=(), classes=CLASSES):
    rows = [
        {"id": clip, "label": label, "prediction": None if clip in wrong else label}
        for clip, label in labels.items()
    ]
    return ScoredClips.from_rows(rows, classes, "test", name)


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"a": "quiet", "b": "alarm"}, "3 clips (c, d, e) only in A"),
        ({**LABELS, "x": "quiet"}, "1 clip (x) only in B"),
        ({**LABELS, "d": "alarm"}, "1 clip (d) with other labels (d: quiet and alarm)"),
        (
            {"v": "quiet", "w": "quiet", "x": "quiet", "y": "quiet", "a": "alarm"},
            "4 clips (b, c, d, ...) only in A; 4 clips (v, w, x, ...) only in B; 1 clip (a) with "
            "other labels (a: quiet and alarm)",
        ),
    ],
)
def test_other_clips_are_refused_by_name(other, differs):
    message = (
        f"A and B were not scored on the same clips: {differs}. Score both on the same split of "
        "the same annotations."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compare_pair(answers("A", LABELS), answers("B", other))


def test_other_classes_are_refused():
    message = "A and B cannot be compared: the classes are quiet, alarm and quiet, loud, alarm."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_same_clips(
            answers("A", LABELS), answers("B", LABELS, classes=["quiet", "loud", "alarm"])
        )


def test_clips_and_classes_in_another_order_are_the_same():
    a = answers("A", LABELS, wrong="ab")
    turned = dict(reversed(LABELS.items()))
    found = compare_pair(a, answers("B", turned, wrong="bc", classes=CLASSES[::-1]))
    assert (found.n, found.only_a, found.only_b, found.discordant) == (5, 1, 1, 0.4)
    assert (found.a, found.b, found.digest) == ("A", "B", a.digest)
    assert found.accuracy.value == 0
    same = compare_pair(a, answers("B", turned, wrong="ab", classes=CLASSES[::-1]))
    assert (same.only_a, same.only_b, same.p) == (0, 0, 1)
    assert (same.accuracy.low, same.accuracy.high) == (0, 0)
    assert (same.macro_f1.low, same.macro_f1.high) == (0, 0)


def test_the_difference_is_a_minus_b():
    found = compare_pair(answers("A", LABELS), answers("B", LABELS, wrong="abc"))
    assert found.accuracy.value == pytest.approx(0.6)
    assert found.macro_f1.value == pytest.approx(1 - (2 / 3 + 2 / 4) / 2)
    assert (found.only_a, found.only_b, found.p, found.mid_p) == (3, 0, 0.25, 0.125)
    assert 0 <= found.accuracy.low < 0.6 < found.accuracy.high <= 1
    assert json.loads(json.dumps(found.as_dict()))["accuracy"]["value"] == pytest.approx(0.6)


def test_seeded():
    a, b = answers("A", LABELS, wrong="a"), answers("B", LABELS, wrong="bc")
    assert compare_pair(a, b) == compare_pair(a, b)


def test_mcnemar_has_level_and_counts_in_range():
    assert mcnemar(0, 0) == mcnemar(0, 0, mid_p=True) == 1
    assert mcnemar(3000, 0) == 0  # below what floating point holds, not an error
    with pytest.raises(ValueError, match=re.escape("Numbers of clips (3, -1) must be 0 or more.")):
        mcnemar(3, -1)


def test_clips_needed_are_the_first_with_the_power():
    needed = clips_needed(0.1, 0.2)
    assert mcnemar_power(needed - 1, 0.1, 0.2) < 0.8 <= mcnemar_power(needed, 0.1, 0.2)
    # Connor's formula (1987) for the test without continuity correction asks for somewhat fewer.
    connor = (1.959964 * np.sqrt(0.2) + 0.841621 * np.sqrt(0.2 - 0.1**2)) ** 2 / 0.1**2
    assert connor < needed < 1.2 * connor
    assert clips_needed(-0.1, 0.2) == needed
    assert clips_needed(0.1, 0.2, mid_p=True) < needed
    assert clips_needed(0.1, 0.2, power=0.9) > needed
    assert clips_needed(0.1, 0.2, alpha=0.01) > needed
    # Every discordant clip on one side: 6 of them are significant, 2 / 2**6.
    assert clips_needed(1.0, 1.0) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: clips_needed(0.3, 0.2),
            "The difference (0.3) must not be 0 nor, in size, above the share of clips that one "
            "run alone has right (0.2), which must be at most 1.",
        ),
        (
            lambda: mcnemar_power(9, 0.0, 0.2),
            "The difference (0) must not be 0 nor, in size, above the share of clips that one "
            "run alone has right (0.2), which must be at most 1.",
        ),
        (lambda: mcnemar_power(0, 0.1, 0.2), "The number of clips (0) must be 1 or more."),
        (
            lambda: clips_needed(0.1, 0.2, alpha=0.0),
            "The level of the test (0) must be above 0 and below 1.",
        ),
        (
            lambda: clips_needed(0.1, 0.2, power=1.0),
            "The power (1) must be above 0 and below 1.",
        ),
        (
            lambda: clips_needed(0.0001, 0.2),
            "A difference of 0.0001 takes more than 50000 clips. Ask for a larger one.",
        ),
    ],
)
def test_power_out_of_range(call, message, monkeypatch):
    monkeypatch.setattr("rbft.analysis.paired.mcnemar_power", limited)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def limited(clips, difference, *arguments, **options):
    """The power, but none of a tiny difference, which takes seconds to compute."""
    return 0.0 if difference == 0.0001 else mcnemar_power(clips, difference, *arguments, **options)
