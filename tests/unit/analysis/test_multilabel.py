import json
import math

import numpy as np
import pytest

from rbft.analysis.multilabel import (
    MultiLabelClips,
    average_precision,
    best_threshold,
    choose_thresholds,
    cross_fit,
    multilabel_intervals,
    multilabel_scores,
)

CLASSES = ("cat", "dog")
ROWS = [
    {"id": "a", "labels": ["cat"], "probabilities": {"cat": 0.9, "dog": 0.2}},
    {"id": "b", "labels": ["cat", "dog"], "probabilities": {"dog": 0.7, "cat": 0.4}},
    {"id": "c", "labels": [], "probabilities": {"cat": 0.5, "dog": 0.1}},
    {"id": "d", "labels": [], "predicted": None, "error": "is damaged."},
]


def clips(split="val", rows=ROWS):
    return MultiLabelClips.from_rows(rows, CLASSES, split, "pets/label")


def test_figures_by_hand():
    """A clip without an answer misses its classes, is no false alarm, and its set is not right."""
    found = clips().scores()
    assert found == pytest.approx(
        {
            "accuracy": 1 / 4,
            "f1/cat": 2 * 1 / (2 + 2),
            "f1/dog": 1.0,
            "f1/macro": 0.75,
            "f1/micro": 2 * 2 / (3 + 3),
            "ap/cat": (1 + 2 / 3) / 2,
            "ap/dog": 1.0,
            "ap/macro": (5 / 6 + 1) / 2,
            "unparsed": 1 / 4,
            "majority": 2 / 4,
            "n": 4,
        }
    )
    assert clips().scores({"cat": 0.4, "dog": 0.71})["f1/cat"] == pytest.approx(4 / 5)
    assert clips().predicted({"cat": 0.0, "dog": 0.7}).tolist() == [
        [True, False],
        [True, True],
        [True, False],
        [False, False],
    ]


def test_a_class_that_no_clip_has():
    has = np.array([[True, False], [True, False]])
    shares = np.array([[0.9, 0.8], [0.3, 0.2]])
    found = multilabel_scores(has, shares >= 0.5, shares, CLASSES)
    assert math.isnan(found["f1/dog"])
    assert math.isnan(found["ap/dog"])
    assert found["f1/macro"] == found["f1/cat"] == pytest.approx(2 / 3)
    assert found["f1/micro"] == pytest.approx(2 / 4)  # the false alarm counts
    assert math.isnan(average_precision(shares[:, 1], has[:, 1]))
    nothing = np.zeros((0, 2))
    none = multilabel_scores(nothing > 0, nothing > 0, nothing, CLASSES)
    assert none.pop("n") == 0
    assert all(map(math.isnan, none.values()))


@pytest.mark.parametrize(
    ("shares", "positive", "expected"),
    [
        ([0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1], 0.4),
        ([0.1, 0.3, 0.35, 0.9], [1, 1, 0, 1], 0.0),  # all: 6/7; from 0.625 on: 1/2
        ([0.1, 0.3, 0.7, 0.9], [0, 1, 0, 1], 0.2),  # 4/5; from 0.8 on 2/3
        ([0.6, 0.6, 0.8], [0, 0, 1], 0.7),
        ([0.2, 0.4], [0, 0], 0.5),  # nothing to choose by
        ([0.3, 0.3], [1, 0], 0.0),
        ([0.2, 0.4, 0.6, 0.8], [1, 0, 0, 1], 0.7),  # all and the last are as good: 2/3
    ],
)
def test_the_threshold_with_the_greatest_f1(shares, positive, expected):
    found = best_threshold(np.array(shares), np.array(positive) > 0)
    assert found == pytest.approx(expected)


def test_no_other_threshold_has_a_greater_f1():
    drawer = np.random.default_rng(0)
    for _ in range(200):
        shares, has = drawer.random(9).round(1), drawer.random(9) > 0.5
        if not has.any():
            continue

        def f1(threshold, shares=shares, has=has):
            said = shares >= threshold
            return 2 * (said & has).sum() / (said.sum() + has.sum())

        best = f1(best_threshold(shares, has))
        assert best == pytest.approx(max(f1(one) for one in np.linspace(0, 1.1, 221)))


def test_thresholds_are_chosen_on_the_validation_split():
    assert choose_thresholds(clips()) == pytest.approx({"cat": 0.0, "dog": 0.45})
    with pytest.raises(ValueError, match="validation split") as error:
        choose_thresholds(clips("test"))
    assert str(error.value) == (
        "Thresholds are chosen on the validation split, but pets/label is of test. Carve one from "
        "the training clips: data.val_fraction."
    )
    with pytest.raises(ValueError, match="answer") as error:
        choose_thresholds(clips(rows=ROWS[3:]))
    assert str(error.value) == "pets/label has no clip with an answer to choose thresholds on."


def test_thresholds_of_other_folds():
    """Of as many folds as clips, each is decided by the thresholds of all others."""
    found = cross_fit(clips(), 4)
    rows = []
    for place in range(4):
        others = clips(rows=[row for number, row in enumerate(ROWS) if number != place])
        rows.append(clips().predicted(choose_thresholds(others))[place])
    own = clips()
    expected = multilabel_scores(own.labels, np.array(rows), own.probabilities, CLASSES)
    assert found == pytest.approx(expected)
    with pytest.raises(ValueError, match="folds") as error:
        cross_fit(clips(), 5)
    assert str(error.value) == "The number of folds (5) must be from 2 to 4, as many clips."


def test_intervals():
    """The bootstrap's ends against one that draws clip by clip."""
    drawer = np.random.default_rng(1)
    has, said = drawer.random((60, 2)) > 0.6, drawer.random((60, 2)) > 0.5
    answered = np.ones(60, dtype=bool)
    found = multilabel_intervals(has, said, answered, CLASSES)
    draws = []
    for _ in range(4000):
        places = drawer.integers(0, 60, 60)
        one, other = has[places], said[places]
        hits, total = (one & other).sum(axis=0), one.sum(axis=0) + other.sum(axis=0)
        f1 = 2 * hits / total
        draws.append([*f1, f1.mean(), 2 * hits.sum() / total.sum()])
    names = ["f1/cat", "f1/dog", "f1/macro", "f1/micro"]
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    scores = multilabel_scores(has, said, said.astype(float), CLASSES)
    for place, name in enumerate(names):
        assert found[name].value == pytest.approx(scores[name])
        assert found[name].low == pytest.approx(low[place], abs=0.015)
        assert found[name].high == pytest.approx(high[place], abs=0.015)
    assert found["accuracy"].value == pytest.approx(scores["accuracy"])
    lost = multilabel_intervals(has, has, ~answered, CLASSES)
    assert lost["accuracy"].value == 0


def test_rows_as_they_stand_in_files(tmp_path):
    file = tmp_path / "val.json"
    facts = {"run": "pets", "stage": "label", "split": "val", "classes": {"cat": 2, "dog": 1}}
    file.write_text(json.dumps(facts))
    lines = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    (tmp_path / "val_predictions.jsonl").write_text(lines)
    found = MultiLabelClips.from_file(file)
    assert (found.name, found.split, found.classes) == ("pets/label", "val", CLASSES)
    assert found.labels.tolist() == [[True, False], [True, True], [False, False], [False, False]]
    assert found.probabilities[1].tolist() == [0.4, 0.7]
    assert found.answered.tolist() == [True, True, True, False]
    backwards = clips(rows=ROWS[::-1])
    assert backwards.digest == found.digest
    assert clips(rows=[{**ROWS[0], "labels": []}, *ROWS[1:]]).digest != found.digest


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "pets/label has no scored clips."),
        ([ROWS[0], ROWS[0]], "pets/label has several rows of clip a. Leave one of them."),
        (
            [{"id": "a", "label": "cat"}],
            "pets/label: the labels of clip a are None; they must be a list of classes, which are "
            "cat, dog.",
        ),
        (
            [{"id": "a", "labels": ["cow"]}],
            "pets/label: the labels of clip a are ['cow']; they must be a list of classes, which "
            "are cat, dog.",
        ),
        (
            [{"id": "a", "labels": [], "probabilities": {"cat": 0.5}}],
            "pets/label: the probabilities of clip a are {'cat': 0.5}; they must be a number from "
            "0 to 1 for each of cat, dog.",
        ),
        (
            [{"id": "a", "labels": [], "probabilities": {"cat": 0.5, "dog": 1.5}}],
            "pets/label: the probabilities of clip a are {'cat': 0.5, 'dog': 1.5}; they must be a "
            "number from 0 to 1 for each of cat, dog.",
        ),
    ],
)
def test_rows_that_are_none(rows, message):
    with pytest.raises(ValueError, match="pets/label") as error:
        clips(rows=rows)
    assert str(error.value) == message
