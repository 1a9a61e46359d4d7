from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from rbft.inference.metrics import ClassificationMetrics, for_json, percent


@st.composite
def scored(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Number of classes, and (prediction, label) of each clip; the last prediction is unparsed."""
    classes = draw(st.integers(2, 5))
    pair = st.tuples(st.integers(0, classes), st.integers(0, classes - 1))
    return classes, draw(st.lists(pair, min_size=1, max_size=40))


@given(case=scored(), batch=st.integers(1, 7))
def test_figures(case: tuple[int, list[tuple[int, int]]], batch: int) -> None:
    classes, pairs = case
    predictions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    names = [f"class {index}" for index in range(classes)]
    metrics = ClassificationMetrics(names)
    for first in range(0, len(pairs), batch):
        part = slice(first, first + batch)
        predicted, labelled = torch.tensor(predictions[part]), torch.tensor(labels[part])
        metrics.update(predicted, labelled, torch.ones_like(labelled, dtype=torch.bool))
    values = metrics.compute()

    real = list(range(classes))
    reference: Any = f1_score  # its stubs know only strings
    f1 = reference(labels, predictions, labels=real, average=None, zero_division=0)
    f1 = [value if index in labels else None for index, value in enumerate(f1)]
    present = np.unique(labels)
    macro = reference(labels, predictions, labels=present, average="macro", zero_division=0)
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert [for_json(values)[f"f1/{name}"] for name in names] == pytest.approx(f1)
    assert values["f1/macro"] == pytest.approx(macro)
    theirs = confusion_matrix(labels, predictions, labels=list(range(classes + 1)))
    assert np.array_equal(metrics.confusion().numpy(), theirs[:-1])
    assert values["unparsed"] == pytest.approx(np.mean(predictions == classes))
    assert values["majority"] == pytest.approx(np.bincount(labels).max() / len(labels))
    assert values["n"] == len(labels)


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([0, 0, 0, 0, 1], [0, 0, 1, 1, 1]),  # nobody says "c"
        ([0, 0, 0, 1], [0, 1, 2, 1]),
    ],
)
def test_two_classes_of_three_have_clips(labels: list[int], predictions: list[int]) -> None:
    metrics = ClassificationMetrics(("a", "b", "c"))
    metrics.update(
        torch.tensor(predictions), torch.tensor(labels), torch.ones(len(labels), dtype=torch.bool)
    )
    values = metrics.compute()
    reference: Any = f1_score
    how = {"average": "macro", "zero_division": 0}
    with_clips, all_three = (
        reference(labels, predictions, labels=range(size), **how) for size in (2, 3)
    )
    assert values["f1/macro"] == pytest.approx(with_clips)
    assert (percent(with_clips), percent(all_three)) == ("58.3", "38.9")
    assert percent(values["f1/c"]) == "-"
