import re

import numpy as np
import pytest

from rbft.analysis.scored import ScoredClips
from rbft.runtime.files import write_json, write_text

CLASSES = ["quiet", "alarm"]


def row(clip, label: str | None = "quiet", prediction: str | None = "quiet", **more):
    return {"id": clip, "label": label, "prediction": prediction, **more}


def scored(*rows, classes=CLASSES):
    return ScoredClips.from_rows(rows, classes, "test", "run/label")


def test_rows_become_arrays():
    found = scored(row("a"), row("b", "alarm", None), row("c", "alarm", "quiet"), row("d", "alarm"))
    assert found.ids == ("a", "b", "c", "d")
    assert found.labels.tolist() == [0, 1, 1, 1]
    assert found.predictions.tolist() == [0, 2, 0, 0]
    assert found.right.tolist() == [True, False, False, False]
    # Rows are labels; the last column is no class.
    assert found.confusion.tolist() == [[1, 0, 0], [2, 0, 1]]
    assert found.probabilities is None


def test_probabilities_stand_in_the_order_of_the_classes():
    found = scored(
        row("a", probabilities={"alarm": 0.25, "quiet": 0.75}), row("b", error="cannot be decoded")
    )
    assert found.probabilities is not None
    assert found.probabilities[0].tolist() == [0.75, 0.25]
    assert np.isnan(found.probabilities[1]).all()
    assert found.with_probabilities().ids == ("a",)


def test_the_digest_knows_ids_and_labels_and_no_order():
    one = scored(row("a"), row("b", "alarm"))
    assert one.digest == scored(row("b", "alarm", "quiet"), row("a")).digest
    assert one.digest == scored(row("a"), row("b", "alarm"), classes=CLASSES[::-1]).digest
    assert one.digest != scored(row("a"), row("b")).digest
    assert one.digest != scored(row("a"), row("c", "alarm")).digest


def test_another_order():
    found = scored(row("a"), row("b", "alarm", probabilities={"quiet": 0.2, "alarm": 0.8}))
    turned = found.in_order_of(["b", "a"])
    assert (turned.ids, turned.labels.tolist()) == (("b", "a"), [1, 0])
    assert turned.probabilities is not None
    assert turned.probabilities[0].tolist() == [0.2, 0.8]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "run/label has no scored clips."),
        (
            [row("a"), row("b"), row("a")],
            "run/label has several rows of 1 clip (a). Leave one of each.",
        ),
        (
            [row("a", label=None)],
            "run/label: the label of clip a is None, but the classes are quiet, alarm.",
        ),
        (
            [row("a", prediction="loud")],
            "run/label: the prediction of clip a is 'loud', but the classes are quiet, alarm.",
        ),
        (
            [row("a", probabilities={"quiet": 1.0})],
            "run/label: clip a has probabilities of quiet, but the classes are quiet, alarm.",
        ),
        (
            [row("a", probabilities={"quiet": 0.5, "alarm": 0.6})],
            "run/label: the probabilities of clip a must be from 0 to 1 with a sum of 1; got 0.5, "
            "0.6.",
        ),
        (
            [row("a", probabilities={"quiet": 1.5, "alarm": -0.5})],
            "run/label: the probabilities of clip a must be from 0 to 1 with a sum of 1; got 1.5, "
            "-0.5.",
        ),
    ],
)
def test_rows_that_cannot_be_scored(rows, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        scored(*rows)


def test_written_answers_have_no_probabilities():
    message = "run/label has no class probabilities: the answers were written, not scored."
    with pytest.raises(ValueError, match=re.escape(message)):
        scored(row("a")).with_probabilities()


def test_results_of_a_stage(tmp_path):
    file = tmp_path / "test.json"
    with pytest.raises(ValueError, match=re.escape(f"{file} is missing: results are a .json file")):
        ScoredClips.from_file(file)
    counts = {"quiet": 1, "alarm": 0}
    write_json(file, {"run": "house", "stage": "label", "split": "test", "classes": counts})
    lines = tmp_path / "test_predictions.jsonl"
    with pytest.raises(ValueError, match=re.escape(f"{lines} is missing: results are a .json")):
        ScoredClips.from_file(file)
    write_text(lines, '{"id": "a", "label": "quiet", "prediction": "alarm"}\n')
    found = ScoredClips.from_file(file)
    assert (found.name, found.split, found.classes) == ("house/label", "test", ("quiet", "alarm"))
    assert found.predictions.tolist() == [1]
    assert ScoredClips.from_file(file, "mine").name == "mine"
