import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rbft.inference.metrics import (
    ClassificationMetrics,
    MultiLabelMetrics,
    confusion_figure,
    for_json,
    macro_classes,
    macro_f1,
    percent,
)

CLASSES = ("normal", "abnormal")


def score(
    predictions: list[int],
    labels: list[int],
    counted: list[bool] | None = None,
    classes: tuple[str, ...] = CLASSES,
) -> ClassificationMetrics:
    metrics = ClassificationMetrics(classes)
    mask = [True] * len(labels) if counted is None else counted
    metrics.update(torch.tensor(predictions), torch.tensor(labels), torch.tensor(mask))
    return metrics


def test_names_and_values() -> None:
    values = score([0, 0, 1, 1, 2], [0, 1, 1, 1, 1]).compute()

    assert list(values) == [
        "accuracy", "f1/normal", "f1/abnormal", "f1/macro", "unparsed", "majority", "n",
    ]  # fmt: skip
    assert values == pytest.approx(
        {
            "accuracy": 3 / 5,
            "f1/normal": 2 / 3,
            "f1/abnormal": 2 / 3,
            "f1/macro": 2 / 3,
            "unparsed": 1 / 5,
            "majority": 4 / 5,
            "n": 5,
        }
    )
    assert all(type(value) is float for value in values.values())


# Rows of the paper's Tables 1 and 5, as (TN, TP, FP, FN) with "abnormal" positive, and the
# published accuracy, F1 normal and F1 abnormal in per cent.
@pytest.mark.parametrize(
    ("counts", "accuracy", "f1_normal", "f1_abnormal"),
    [
        ((60, 53, 8, 75), 57.65, 59.11, 56.08),
        ((17, 119, 51, 9), 69.39, 36.17, 79.87),
        ((56, 102, 12, 26), 80.61, 74.67, 84.30),
        ((67, 41, 1, 87), 55.10, 60.36, 48.24),
        ((25, 124, 43, 4), 76.02, 51.55, 84.07),
        ((54, 108, 14, 20), 82.65, 76.06, 86.40),
    ],
)
def test_figures_of_the_paper(
    counts: tuple[int, int, int, int], accuracy: float, f1_normal: float, f1_abnormal: float
) -> None:
    cells = zip(counts, ((0, 0), (1, 1), (0, 1), (1, 0)), strict=True)
    pairs = [pair for count, pair in cells for _ in range(count)]
    values = score([p for _, p in pairs], [label for label, _ in pairs]).compute()

    assert values["accuracy"] * 100 == pytest.approx(accuracy, abs=0.005)
    assert values["f1/normal"] * 100 == pytest.approx(f1_normal, abs=0.005)
    assert values["f1/abnormal"] * 100 == pytest.approx(f1_abnormal, abs=0.005)
    assert values["majority"] * 100 == pytest.approx(65.31, abs=0.005)


def test_unparsed_is_wrong_and_has_its_own_column() -> None:
    metrics = score([2, 2, 1], [0, 1, 1])

    assert metrics.confusion().tolist() == [[0, 0, 1], [0, 1, 1]]
    assert metrics.compute()["accuracy"] == pytest.approx(1 / 3)


def test_repeated_clips_do_not_count() -> None:
    plain = score([0, 1, 2], [0, 0, 1])
    padded = score([0, 1, 2, 0, 2], [0, 0, 1, 0, 0], [True, True, True, False, False])

    assert padded.compute() == plain.compute()
    assert torch.equal(padded.confusion(), plain.confusion())


def test_a_batch_of_only_repeated_clips() -> None:
    metrics = score([0, 1], [0, 0], [False, False])

    assert for_json(metrics.compute()) == {
        "accuracy": 0, "f1/normal": None, "f1/abnormal": None, "f1/macro": None,
        "unparsed": 0, "majority": 0, "n": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("predictions", "labels", "f1_a", "f1_b", "macro"),
    [
        ([0, 0, 1, 1], [0, 0, 0, 1], 0.8, 2 / 3, 11 / 15),
        # As "c" it is wrong, which costs "a" its recall and no F1 of "c".
        ([0, 0, 2, 1], [0, 0, 0, 1], 0.8, 1.0, 0.9),
        ([3, 3, 3, 3], [0, 0, 0, 1], 0.0, 0.0, 0.0),
        ([0, 0, 1, 1], [0, 0, 0, 0], 2 / 3, None, 2 / 3),
    ],
)
def test_a_class_without_clips_has_no_f1(
    predictions: list[int], labels: list[int], f1_a: float, f1_b: float | None, macro: float
) -> None:
    values = for_json(score(predictions, labels, classes=("a", "b", "c")).compute())

    assert values["f1/c"] is None
    assert (values["f1/a"], values["f1/b"]) == pytest.approx((f1_a, f1_b))
    assert values["f1/macro"] == pytest.approx(macro)


def test_the_macro_f1_of_figures() -> None:
    assert macro_f1([0.5, None, 0.25]) == macro_f1([0.5, math.nan, 0.25]) == 0.375
    assert math.isnan(macro_f1([None]))
    assert macro_classes({"a": 3, "b": 0, "c": 1}) == ["a", "c"]


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (math.nan, "-"), (0.0, "0.0"), (0.583333, "58.3")]
)
def test_figures_in_tables(value: float | None, shown: str) -> None:
    assert percent(value) == shown


def test_reset() -> None:
    metrics = score([0, 0], [0, 1])
    metrics.reset()
    metrics.update(torch.tensor([1]), torch.tensor([1]), torch.tensor([True]))

    assert metrics.compute()["n"] == 1


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (
            0,
            -1,
            "Cannot score label -1 against prediction 0: labels must be 0 to 1 (a scored clip "
            "needs a known class), predictions 0 to 2 (2 = unparsed). Use predict for clips "
            "without a label.",
        ),
        (-1, 0, "Cannot score label 0 against prediction -1: labels must be 0 to 1 (a scored clip"),
        (3, 0, "Cannot score label 0 against prediction 3: labels must be 0 to 1 (a scored clip"),
        (0, 2, "Cannot score label 2 against prediction 0: labels must be 0 to 1 (a scored clip"),
    ],
)
def test_what_cannot_be_scored(prediction: int, label: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        score([0, prediction], [0, label])


def test_an_uncounted_clip_needs_no_label() -> None:
    assert score([0, 0], [0, -1], [True, False]).compute()["n"] == 1


TWO_PROCESSES = """
import json, os, sys
import torch
import torch.distributed as dist
from rbft.inference.metrics import ClassificationMetrics, MultiLabelMetrics

dist.init_process_group("gloo")
rank = dist.get_rank()
metrics = ClassificationMetrics(("normal", "abnormal"), (1.0, 4.0))
shares = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.1, 0.9], [0.4, 0.6]])
# The second process has one clip and one that is repeated, then nothing but a repeated one.
batches = [
    [([0, 2], [0, 1], [True, True]), ([1], [1], [True])],
    [([1, 0], [0, 0], [True, False]), ([1], [1], [False])],
][rank]
for place, batch in enumerate(batches):
    probabilities = shares[2 * rank + place][None].repeat(len(batch[0]), 1)
    metrics.update(*map(torch.tensor, batch), probabilities)
result = {"values": metrics.compute(), "confusion": metrics.confusion().tolist()}
several = MultiLabelMetrics(("cat", "dog"))
batches = [
    [([[0.9, 0.1], [0.4, 0.8]], [True, True], [[1, 0], [1, 1]], [True, True]),
     ([[0.6, 0.3]], [False], [[0, 1]], [True])],
    [([[0.7, 0.2], [0.9, 0.9]], [True, True], [[0, 0], [1, 0]], [True, False]),
     ([[0.9, 0.9]], [True], [[-1, -1]], [False])],
][rank]
for batch in batches:
    several.update(*map(torch.tensor, batch))
result["several"] = several.compute()
with open(os.path.join(sys.argv[1], f"{rank}.json"), "w") as file:
    json.dump(result, file)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20000 + os.getpid() % 20000),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)],
            env=environment | {"RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for process in processes:
        process.wait(timeout=120)

    # Ranks are over all clips of both; the second clip has no answer.
    one = ClassificationMetrics(CLASSES, (1.0, 4.0))
    chances = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5], [0.1, 0.9]])
    everything = torch.ones(4, dtype=torch.bool)
    one.update(torch.tensor([0, 2, 1, 1]), torch.tensor([0, 1, 1, 0]), everything, chances)
    several = MultiLabelMetrics(("cat", "dog"))
    shares = torch.tensor([[0.9, 0.1], [0.4, 0.8], [0.6, 0.3], [0.7, 0.2]])
    has = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])
    several.update(shares, torch.tensor([True, True, False, True]), has, has[:, 0] > -1)
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["values"] == one.compute()
        assert result["values"]["mae"] == pytest.approx((0.75 + 1.5 + 2.7) / 3)
        assert result["confusion"] == one.confusion().tolist()
        assert result["several"] == several.compute()
        assert result["several"]["n"] == 4


def test_figure() -> None:
    figure = confusion_figure(torch.tensor([[54, 14, 0], [20, 108, 0]]), CLASSES)
    (axes,) = figure.axes

    assert [text.get_text() for text in axes.texts] == [
        "54\n79.4%", "14\n20.6%", "20\n15.6%", "108\n84.4%",
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["normal", "abnormal"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["normal", "abnormal"]
    assert [axes.get_xlabel(), axes.get_ylabel()] == ["prediction", "label"]


def test_figure_with_unparsed_answers_and_an_empty_row(tmp_path: Path) -> None:
    matrix = torch.tensor([[1, 0, 0, 3], [0, 2, 0, 0], [0, 0, 0, 0]])
    names = ("normal", "offensive but not hateful", "hateful")
    figure = confusion_figure(matrix, names)
    figure.savefig(tmp_path / "confusion.png")
    (axes,) = figure.axes

    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert columns == [*names, "unparsed"]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:4] == ["1\n25.0%", "0\n0.0%", "0\n0.0%", "3\n75.0%"]
    assert texts[8:] == ["0\n0.0%"] * 4
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_several_classes_a_clip() -> None:
    metrics, yes = MultiLabelMetrics(("cat", "dog")), torch.tensor([True, True])
    metrics.update(torch.tensor([[0.5, 0.4], [0.6, 0.9]]), yes, torch.tensor([[1, 0], [1, 1]]), yes)
    found = metrics.compute()
    assert (found["accuracy"], found["n"], found["unparsed"]) == (1, 2, 0)
    assert all(type(value) is float for value in found.values())
    # A clip that cannot be decoded: none of its classes is found, and no other is said of it.
    metrics.update(torch.tensor([[0.9, 0.9]]), yes[:1] < 0, torch.tensor([[1, 0]]), yes[:1])
    found = metrics.compute()
    assert found["f1/cat"] == pytest.approx(2 * 2 / (3 + 2))
    assert found["f1/dog"] == 1
    assert found["accuracy"] == pytest.approx(2 / 3)
    metrics.reset()
    metrics.update(torch.zeros(1, 2), yes[:1], torch.tensor([[-1, 0]]), ~yes[:1])
    assert metrics.compute()["n"] == 0
    with pytest.raises(ValueError, match="without labels") as error:
        metrics.update(torch.tensor([[0.9, 0.9]]), yes[:1], torch.tensor([[-1, -1]]), yes[:1])
    assert str(error.value) == (
        "Cannot score a clip without labels: a scored clip needs a list of its classes, which may "
        "be empty. Use predict for clips without labels."
    )
