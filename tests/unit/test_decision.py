import json
import re

import numpy as np
import pytest

from rbft.analysis.multilabel import MultiLabelClips, choose_thresholds
from rbft.analysis.multilabel import cross_fit as cross_fit_each
from rbft.analysis.scored import ScoredClips
from rbft.analysis.thresholds import Wanted, choose_threshold, cross_fit, evaluate
from rbft.decision import (
    ClassThresholds,
    check_decision,
    describe,
    find_decision,
    write_decision,
    write_thresholds,
)
from rbft.runs.folder import read_json
from rbft.runtime.files import write_json, write_text
from tests.examples import Yard
from tests.several import Pets

WANTED = Wanted("alarm", 5.0, 1.0)


def results(folder, split, shares, labels):
    """Results as a stage leaves them; a share of None is a clip that cannot be decoded."""
    rows = []
    for place, (share, label) in enumerate(zip(shares, labels, strict=True)):
        row = {"id": f"{split}_{place}", "label": ["quiet", "alarm"][label], "prediction": None}
        if share is not None:
            row |= {"probabilities": {"quiet": 1 - share, "alarm": share}}
            row |= {"prediction": ["quiet", "alarm"][share > 0.5]}
        rows.append(json.dumps(row) + "\n")
    write_text(folder / f"{split}_predictions.jsonl", "".join(rows))
    file, counts = folder / f"{split}.json", {"quiet": 1, "alarm": 1}
    write_json(file, {"run": "yard", "stage": "label", "split": split, "classes": counts})
    return file


@pytest.fixture
def scored(tmp_path):
    val = results(tmp_path, "val", [0.05, 0.2, 0.3, 0.35, 0.6, 0.9], [0, 0, 1, 0, 1, 1])
    test = results(tmp_path, "test", [0.1, 0.3, 0.4, 0.8, None], [0, 0, 1, 1, 1])
    return val, test


def test_what_is_noted(tmp_path, scored):
    val, test = scored
    file = tmp_path / "decision.json"
    said = write_decision(file, WANTED, val, test, "abc")
    found = read_json(file)
    chosen = choose_threshold(ScoredClips.from_file(val), WANTED)
    assert chosen.as_dict().items() <= found.items()
    assert (found["weights"], found["split"]) == ("abc", "val")
    assert found["threshold"] == pytest.approx(0.25)
    assert found["cross_fitted"] == cross_fit(ScoredClips.from_file(val), WANTED, 3).as_dict()
    # On test: the likeliest class misses 0.4 and the broken clip; the threshold misses that alone.
    assert found["test"]["threshold"] == evaluate(ScoredClips.from_file(test), chosen).as_dict()
    counts = ("misses", "false_alarms", "cost")
    assert [found["test"]["likeliest"][name] for name in counts] == [2, 0, 2.0]
    assert [found["test"]["threshold"][name] for name in counts] == [1, 1, 1.2]
    assert found["test"]["confusion"] == [[1, 1, 0], [0, 2, 1]]
    scores = found["test"]["metrics"]
    assert scores["accuracy"]["value"] == pytest.approx(0.6)
    assert scores["f1/alarm"]["value"] == pytest.approx(2 * 2 / (3 + 3))
    assert scores["accuracy"]["low"] < 0.6 < scores["accuracy"]["high"]
    lines = said.splitlines()
    assert lines[:2] == [
        "'alarm' from a probability of 0.25 on (a miss costs 5, a false alarm 1),",
        "chosen on 6 val clips:",
    ]
    assert "test, likeliest class             2/3           0/2     33 [6, 79]          2" in lines
    assert "test, threshold                   1/3           1/2    67 [21, 94]        1.2" in lines
    assert lines[-1] == f"The threshold and its figures: {file}"
    assert max(map(len, lines[:-1])) <= 80


def test_five_folds_where_there_are_clips_for_them(tmp_path, scored):
    shares = [n / 20 for n in range(16)]
    val = results(tmp_path, "val", shares, [0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1])
    write_decision(tmp_path / "decision.json", WANTED, val, scored[1], "abc")
    folds = [cross_fit(ScoredClips.from_file(val), WANTED, n).as_dict() for n in (5, 6)]
    assert folds[0] != folds[1]
    assert read_json(tmp_path / "decision.json")["cross_fitted"] == folds[0]


def test_a_single_clip_of_a_side_cannot_be_folded(tmp_path, scored):
    val = results(tmp_path, "val", [0.1, 0.2, 0.6], [0, 0, 1])
    said = write_decision(tmp_path / "decision.json", WANTED, val, scored[1], "abc")
    assert read_json(tmp_path / "decision.json")["cross_fitted"] is None
    assert "other folds" not in said


def test_results_of_the_test_split_choose_nothing(tmp_path, scored):
    _, test = scored
    with pytest.raises(ValueError, match=r"^A threshold is never chosen on the test split"):
        write_decision(tmp_path / "decision.json", WANTED, test, test, "abc")
    assert not (tmp_path / "decision.json").exists()


def test_a_threshold_is_found_with_its_weights(tmp_path, scored):
    weights = tmp_path / "weights"
    weights.mkdir()
    assert find_decision(weights, "abc") is None
    val, test = scored
    write_decision(tmp_path / "decision.json", WANTED, val, test, "abc")
    found = find_decision(weights, "abc")
    assert found is not None
    assert found.determining == {"positive": "alarm", "threshold": pytest.approx(0.25)}
    assert found.file == tmp_path / "decision.json"
    message = (
        f"The threshold in {found.file} was chosen for other weights than {weights}. Choose it "
        "anew with python -m rbft test and the same decision, or remove the file."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        find_decision(weights, "others")
    # An export has it inside.
    write_decision(weights / "decision.json", Wanted("alarm", recall=1.0), val, test, "others")
    inside = find_decision(weights, "others")
    assert inside is not None
    assert inside.file == weights / "decision.json"
    with pytest.raises(ValueError, match=r"decision\.json was chosen for other weights"):
        find_decision(weights, "abc")


def test_in_words():
    found = {"wanted": vars(Wanted("alarm", recall=0.9)), "threshold": np.float64(0.123456)}
    assert describe(found) == "'alarm' from a probability of 0.1235 on (recall 0.9)"


@pytest.mark.parametrize(
    ("wanted", "val", "answer", "message"),
    [
        (
            "loud", 4, "score",
            "decision.positive is 'loud', but the card's classes are quiet, alarm.",
        ),
        (
            "alarm", 4, "generate",
            "decision needs the probabilities of the classes, but model.answer is generate. Set "
            "it to score, or add --decision null.",
        ),
        (
            "alarm", 1, "score",
            "decision needs a validation split with clips of both sides, to choose the threshold "
            "on, but in that of Yard 0 of 1 clips are of 'alarm'. Set data.val_fraction to carve "
            "one from the training clips; the test split is never used for it.",
        ),
        (
            "quiet", 0, "score",
            "decision needs a validation split with clips of both sides, to choose the threshold "
            "on, but in that of Yard there are no clips. Set data.val_fraction to carve one from "
            "the training clips; the test split is never used for it.",
        ),
    ],
)  # fmt: skip
def test_what_no_threshold_could_be_chosen_with(tmp_path, wanted, val, answer, message):
    yard = Yard(tmp_path / "card.yaml", {"val": val})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_decision(Wanted(wanted, recall=0.5), yard, answer)


def test_a_split_of_both_sides_will_do(tmp_path):
    check_decision(WANTED, Yard(tmp_path / "card.yaml", {"val": 2}), "score")


EACH = Wanted(f1=True)


def several(folder, split, shares, labels):
    """Results of clips that may have several classes; a share of None cannot be decoded."""
    rows = []
    for place, (own, has) in enumerate(zip(shares, labels, strict=True)):
        row = {"id": f"{split}_{place}", "labels": has}
        if own is not None:
            row["probabilities"] = dict(zip(("cat", "dog"), own, strict=True))
        rows.append(json.dumps(row) + "\n")
    write_text(folder / f"{split}_predictions.jsonl", "".join(rows))
    file = folder / f"{split}.json"
    facts = {"run": "pets", "stage": "label", "split": split, "several": True}
    write_json(file, {**facts, "classes": {"cat": 1, "dog": 1}})
    return file


def test_a_threshold_for_each_class(tmp_path):
    shares = [[0.1, 0.3], [0.3, 0.2], [0.4, 0.1], [0.2, 0.4], None]
    val = several(tmp_path, "val", shares, [[], ["cat"], ["cat"], [], ["cat"]])
    test = several(tmp_path, "test", [[0.3, 0.6], [0.1, 0.1]], [["cat"], ["dog"]])
    weights = tmp_path / "weights"
    weights.mkdir()
    said = write_thresholds(tmp_path / "decision.json", EACH, val, test, "abc")
    found = read_json(tmp_path / "decision.json")
    known, others = MultiLabelClips.from_file(val), MultiLabelClips.from_file(test)
    chosen = choose_thresholds(known)
    assert found["thresholds"] == chosen == {"cat": pytest.approx(0.25), "dog": 0.5}
    assert (found["weights"], found["split"], found["n"]) == ("abc", "val", 5)
    assert (found["digest"], found["wanted"]) == (known.digest, {"f1": True})
    assert found["val"]["thresholds"]["f1/cat"] == pytest.approx(2 * 2 / (3 + 2))
    assert found["val"]["half"]["f1/cat"] == 0
    assert found["val"]["thresholds"]["f1/dog"] is None
    assert found["val"]["cross_fitted"]["accuracy"] == cross_fit_each(known, 5)["accuracy"]
    assert found["test"]["thresholds"]["f1/cat"] == others.scores(chosen)["f1/cat"] == 1
    lines = said.splitlines()
    assert lines[0] == (
        "Thresholds with the greatest F1 on 5 val clips: cat 0.25, dog 0.5. No val clip has dog: "
        "one half stays the threshold of that."
    )
    assert "test, one half                       0.0       0.0       0.0" in lines
    assert "test, thresholds                     0.0      50.0      50.0" in lines
    assert lines[-1] == f"The thresholds and their figures: {tmp_path / 'decision.json'}"
    decided = find_decision(weights, "abc")
    assert isinstance(decided, ClassThresholds)
    assert decided.determining == {"thresholds": chosen}
    assert decided.chosen == chosen
    assert decided.said == "A video has a class from these probabilities on: cat 0.25, dog 0.5"
    with pytest.raises(ValueError, match="chosen for other weights"):
        find_decision(weights, "others")


def test_one_threshold_in_words(tmp_path, scored):
    (tmp_path / "weights").mkdir()
    val, test = scored
    write_decision(tmp_path / "decision.json", WANTED, val, test, "abc")
    decided = find_decision(tmp_path / "weights", "abc")
    assert decided is not None
    assert decided.said == "A video is 'alarm' from a probability of 0.25 on"
    assert decided.chosen == ("alarm", pytest.approx(0.25))
    assert read_json(tmp_path / "decision.json")["wanted"].keys() == {
        "positive", "miss", "false_alarm", "recall",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("made", "wanted", "message"),
    [
        (
            Yard, EACH,
            "decision.f1 chooses a threshold for each class of a card with the key several, but "
            "with card 'yard' a clip has one class. Set decision.positive and what its errors "
            "cost, or the recall that is wanted.",
        ),
        (
            Pets, Wanted("cat", recall=0.5),
            "decision.positive is 'cat', but card 'pets' has the key several: a clip may have "
            "several classes, each with a threshold of its own. Set decision.f1 to true in its "
            "place.",
        ),
        (
            Pets, EACH,
            "decision needs a validation split to choose the thresholds on, but Pets has none. Set "
            "data.val_fraction to carve one from the training clips; the test split is never used "
            "for it.",
        ),
    ],
)  # fmt: skip
def test_thresholds_are_for_the_card_s_kind_of_clips(tmp_path, made, wanted, message):
    path = tmp_path if made is Pets else tmp_path / "card.yaml"
    with pytest.raises(ValueError, match="decision") as error:
        check_decision(wanted, made(path, {"val": 0}), "score")
    assert str(error.value) == message
    check_decision(EACH, Pets(tmp_path, {"val": 1}), "score")


def test_f1_stands_alone():
    with pytest.raises(ValueError, match="or f1") as error:
        Wanted("cat", f1=True)
    assert str(error.value) == (
        "decision.f1 chooses a threshold for each class by its F1. Leave positive, miss, "
        "false_alarm and recall out, or f1."
    )
