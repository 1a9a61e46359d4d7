import json
import re

import numpy as np
import pytest

from rbft.analysis.scored import ScoredClips
from rbft.analysis.thresholds import (
    Wanted,
    at_threshold,
    choose_threshold,
    cross_fit,
    decide,
    evaluate,
    of_answers,
)

SHARES = [0.05, 0.2, 0.3, 0.45, 0.6, 0.9]
LABELS = [0, 0, 1, 0, 1, 1]


def scored(shares, labels, split="val"):
    rows = [
        {
            "id": str(place),
            "label": ["quiet", "alarm"][label],
            "prediction": "quiet",
            **({} if share is None else {"probabilities": {"quiet": 1 - share, "alarm": share}}),
        }
        for place, (share, label) in enumerate(zip(shares, labels, strict=True))
    ]
    return ScoredClips.from_rows(rows, ["quiet", "alarm"], split, "house/label")


def every_cost(miss, false_alarm):
    """The cost at each threshold, one by one."""
    return {
        threshold: sum(
            miss if label and share < threshold else false_alarm if not label else 0
            for share, label in zip(SHARES, LABELS, strict=True)
            if (share >= threshold) != bool(label)
        )
        for threshold in np.linspace(0, 1.01, 102).round(2).tolist()
    }


@pytest.mark.parametrize(
    ("miss", "false_alarm", "threshold"),
    [(10.0, 1.0, 0.25), (1.0, 10.0, 0.525), (1.0, 1.5, 0.525)],
)
def test_the_least_cost(miss, false_alarm, threshold):
    wanted = Wanted("alarm", miss, false_alarm)
    found = choose_threshold(scored(SHARES, LABELS), wanted)
    assert found.decided.cost == pytest.approx(min(every_cost(miss, false_alarm).values()) / 6)
    assert found.threshold == pytest.approx(threshold)


@pytest.mark.parametrize(("factor", "threshold"), [(1.0, 0.525), (0.25, 0.525), (4.0, 0.25)])
def test_of_thresholds_that_cost_the_same_the_one_of_calibrated_probabilities(factor, threshold):
    """At 0.25 the false alarms cost what the misses at 0.525 do."""
    shares = [0.2, *[0.3] * 4, *[0.45] * int(4 * factor), 0.6]
    labels = [0, *[1] * 4, *[0] * int(4 * factor), 1]
    found = choose_threshold(scored(shares, labels), Wanted("alarm", factor, 1.0))
    assert found.threshold == pytest.approx(threshold)


@pytest.mark.parametrize(
    ("recall", "threshold", "misses", "false_alarms"),
    [(1.0, 0.25, 0, 1), (0.67, 0.25, 0, 1), (0.66, 0.525, 1, 0), (0.1, 0.75, 2, 0)],
)
def test_a_wanted_recall_with_the_fewest_false_alarms(recall, threshold, misses, false_alarms):
    found = choose_threshold(scored(SHARES, LABELS), Wanted("alarm", recall=recall))
    assert found.threshold == pytest.approx(threshold)
    assert (found.decided.misses, found.decided.false_alarms) == (misses, false_alarms)
    assert found.decided.recall.value == pytest.approx((3 - misses) / 3)
    assert found.decided.cost is None


def test_nothing_and_everything_is_positive():
    noise = scored([0.9, 0.8, 0.1], [0, 0, 1])
    never = choose_threshold(noise, Wanted("alarm", 1.0, 100.0))
    assert never.threshold > 1
    assert (never.decided.misses, never.decided.false_alarms) == (1, 0)
    assert never.as_dict()["decided"]["precision"]["value"] is None
    json.dumps(never.as_dict(), allow_nan=False)
    always = choose_threshold(noise, Wanted("alarm", 100.0, 1.0))
    assert (always.decided.misses, always.decided.false_alarms) == (0, 2)


def test_what_it_was_chosen_from_is_noted():
    clips = scored(SHARES, LABELS)
    found = choose_threshold(clips, Wanted("alarm", recall=1.0))
    assert (found.split, found.chosen_on, found.digest) == ("val", "house/label", clips.digest)
    assert (found.decided.n, found.decided.positives) == (6, 3)


def test_on_other_clips():
    chosen = choose_threshold(scored(SHARES, LABELS), Wanted("alarm", 5.0, 1.0))
    found = evaluate(scored([0.2, 0.5, 0.7], [1, 1, 0], split="test"), chosen)
    assert (found.n, found.misses, found.false_alarms, found.cost) == (3, 1, 1, 2)


def test_a_clip_at_the_threshold_is_positive():
    chosen = choose_threshold(scored([0.0, 0.5, 1.0, 1.0], [0, 0, 1, 1]), Wanted("alarm", 1.0, 1.0))
    assert chosen.threshold == 0.75
    tested = scored([0.75, 0.5], [1, 0], split="test")
    assert evaluate(tested, chosen) == of_answers(
        at_threshold(tested, "alarm", 0.75), chosen.wanted
    )
    assert evaluate(tested, chosen).misses == 0


def test_clips_without_probabilities():
    """Nothing is chosen on them; where decisions are counted, they are no alarms."""
    wanted = Wanted("alarm", 5.0, 1.0)
    found = choose_threshold(scored([*SHARES, None], [*LABELS, 1]), wanted)
    assert found.threshold == choose_threshold(scored(SHARES, LABELS), wanted).threshold
    assert (found.decided.n, found.decided.positives) == (6, 3)
    tested = scored([None, None, 0.7], [1, 0, 1], split="test")
    assert evaluate(tested, found) == of_answers(at_threshold(tested, "alarm", 0.25), wanted)
    assert (evaluate(tested, found).misses, evaluate(tested, found).false_alarms) == (1, 0)
    assert cross_fit(scored([*SHARES, None], [*LABELS, 1]), wanted, 3).n == 6


def test_what_the_answers_come_to():
    clips = scored([0.9, 0.6, 0.3], [1, 0, 1])  # all answered quiet
    found = of_answers(clips, Wanted("alarm", 3.0, 1.0))
    assert (found.misses, found.false_alarms, found.cost) == (2, 0, 2)
    decided = at_threshold(clips, "alarm", 0.5)
    assert decided.predictions.tolist() == [1, 1, 0]
    assert (decided.ids, decided.labels.tolist()) == (clips.ids, clips.labels.tolist())


def test_decisions_of_several_classes():
    shares = np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.4, 0.25, 0.35]])
    classes = ("a", "b", "c")
    assert decide(shares, classes, "b", 0.3).tolist() == [1, 1, 0]
    assert decide(shares, classes, "a", 0.6).tolist() == [1, 2, 2]  # the likeliest of the others


def test_the_positive_class_is_one_of_several():
    classes = ["a", "b", "c"]
    rows = [
        {"id": f"{place}{name}", "label": label, "prediction": "a", "probabilities": shares}
        for place, label in enumerate(classes)
        for name, shares in (
            ("low", {"a": 0.8, "b": 0.1, "c": 0.1}),
            ("high", {"a": 0.2, "b": 0.6, "c": 0.2}),
        )
    ]
    found = choose_threshold(
        ScoredClips.from_rows(rows, classes, "val", "x"), Wanted("b", recall=1.0)
    )
    assert (found.decided.positives, found.decided.n) == (2, 6)


def test_folds_are_decided_by_the_others():
    """Each side's own best threshold would be right everywhere here; that of the others is not."""
    drawer = np.random.default_rng(0)
    shares, labels = drawer.random(60).tolist(), ([0, 1] * 30)
    clips, wanted = scored(shares, labels), Wanted("alarm", 1.0, 1.0)
    found = cross_fit(clips, wanted)
    fitted = choose_threshold(clips, wanted).decided
    assert (found.n, found.positives) == (60, 30)
    assert found.cost is not None
    assert fitted.cost is not None
    assert found.cost > fitted.cost + 0.03
    assert found == cross_fit(clips, wanted)
    assert found != cross_fit(clips, wanted, seed=1)


@pytest.mark.parametrize("folds", [1, 4])
def test_folds_out_of_range(folds):
    message = (
        f"The number of folds ({folds}) must be from 2 to 3, as many clips as there are of the "
        "rarer of 'alarm' and the rest."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cross_fit(scored(SHARES, LABELS), Wanted("alarm", recall=0.5), folds)


def test_never_on_the_test_split_nor_on_clips_trained_on():
    wanted = Wanted("alarm", recall=0.5)
    test = scored(SHARES, LABELS, split="test")
    for choose in (choose_threshold, cross_fit):
        for held_out in (False, True):
            with pytest.raises(ValueError, match=r"^A threshold is never chosen on the test"):
                choose(test, wanted, held_out=held_out)
    train = scored(SHARES, LABELS, split="train")
    message = (
        "A threshold cannot be chosen on clips that the weights were trained on, but house/label "
        "is of the training split. Choose it on a validation split (data.val_fraction carves one), "
        "or on answers by weights of other folds."
    )
    for choose in (choose_threshold, cross_fit):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            choose(train, wanted)
    assert choose_threshold(train, wanted, held_out=True).split == "train"
    assert cross_fit(train, wanted, 3, held_out=True).n == 6


@pytest.mark.parametrize(
    ("clips", "positive", "message"),
    [
        (
            (SHARES, LABELS), "loud",
            "The positive class 'loud' is none of quiet, alarm, the classes of house/label.",
        ),
        (
            ([0.5, 0.6], [1, 1]), "alarm",
            "house/label has 2 clips of 'alarm' among 2: no threshold follows from one side alone.",
        ),
        (
            ([None, None], [1, 0]), "alarm",
            "house/label has no class probabilities: the answers were written, not scored. Set "
            "model.answer to score.",
        ),
    ],
)  # fmt: skip
def test_clips_that_no_threshold_follows_from(clips, positive, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        choose_threshold(scored(*clips), Wanted(positive, recall=0.5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            "A threshold follows either from miss and false_alarm, what the two errors cost, or "
            "from recall; got miss None, false_alarm None, recall None.",
        ),
        (
            {"miss": 1.0},
            "A threshold follows either from miss and false_alarm, what the two errors cost, or "
            "from recall; got miss 1.0, false_alarm None, recall None.",
        ),
        (
            {"miss": 1.0, "false_alarm": 1.0, "recall": 0.5},
            "A threshold follows either from miss and false_alarm, what the two errors cost, or "
            "from recall; got miss 1.0, false_alarm 1.0, recall 0.5.",
        ),
        (
            {"miss": 0.0, "false_alarm": 1.0},
            "decision.miss (0) must be above 0; only its ratio to decision.false_alarm counts.",
        ),
        (
            {"recall": 1.5},
            "decision.recall (1.5) must be above 0 and at most 1; 1 finds all, whatever the false "
            "alarms.",
        ),
    ],
)
def test_what_cannot_be_wanted(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Wanted("alarm", **given)


def test_a_class_must_be_named():
    message = (
        "decision.positive is not set: name the class that must not be missed, such as "
        "--decision.positive abnormal."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Wanted(recall=0.5)
