from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, f1_score

from rbft.inference.metrics import ClassificationMetrics, MultiLabelMetrics, for_json, percent


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


@st.composite
def answered_each(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Which classes clips have, probabilities with ties among them, and which were decoded."""
    clips, classes = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    cells = st.lists(st.integers(0, 4), min_size=clips * classes, max_size=clips * classes)
    has = np.array(draw(cells)).reshape(clips, classes) > 2
    shares = np.array(draw(cells)).reshape(clips, classes) / 4
    return has, shares, draw(st.lists(st.booleans(), min_size=clips, max_size=clips))


@settings(max_examples=60)
@given(case=answered_each(), batch=st.integers(1, 7), all_decoded=st.booleans())
def test_figures_of_several_classes(
    case: tuple[np.ndarray, np.ndarray, list[bool]], batch: int, all_decoded: bool
) -> None:
    has, shares, decoded = case
    answered = np.array(decoded) | all_decoded
    names = [f"class {index}" for index in range(has.shape[1])]
    metrics = MultiLabelMetrics(names)
    for first in range(0, len(has), batch):
        part = slice(first, first + batch)
        metrics.update(
            torch.tensor(shares[part], dtype=torch.float32),
            torch.tensor(answered[part]),
            torch.tensor(has[part]).long(),
            torch.ones(len(has[part]), dtype=torch.bool),
        )
    values = metrics.compute()

    said = (shares >= 0.5) & answered[:, None]
    ranked = np.where(answered[:, None], shares, -1.0)
    reference: Any = f1_score  # its stubs know only strings
    there = np.flatnonzero(has.any(axis=0))
    f1 = [reference(*pair, zero_division=0) for pair in zip(has.T, said.T, strict=True)]
    for index, name in enumerate(names):
        if index not in there:
            assert np.isnan(values[f"f1/{name}"])
            assert np.isnan(values[f"ap/{name}"])
            continue
        assert values[f"f1/{name}"] == pytest.approx(f1[index])
        precision = average_precision_score(has[:, index], ranked[:, index])
        assert values[f"ap/{name}"] == pytest.approx(precision)
    if len(there):
        macro = np.mean([f1[index] for index in there])
        assert values["f1/macro"] == pytest.approx(macro)
        precision = average_precision_score(has[:, there], ranked[:, there], average="macro")
        assert values["ap/macro"] == pytest.approx(precision)
        micro = reference(has.ravel(), said.ravel(), zero_division=0)
        assert values["f1/micro"] == pytest.approx(micro)
    # A set that is never right stands for that of a clip that was not decoded.
    theirs = np.column_stack([said, ~answered])
    ours = np.column_stack([has, np.zeros(len(has), dtype=bool)])
    assert values["accuracy"] == pytest.approx(accuracy_score(ours, theirs))
    assert values["unparsed"] == pytest.approx(np.mean(~answered))
    assert values["n"] == len(has)
