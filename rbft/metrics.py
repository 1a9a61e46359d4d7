"""Accuracy and F1 per class, on torchmetrics; an answer that is no class word counts as wrong."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)


class ClassificationMetrics(MetricCollection):
    """Metrics of a generative classifier, exact for any number of processes.

    "Unparsed" is a class of its own behind the real ones: torchmetrics would put a prediction of
    -1 into a wrong cell of the confusion matrix without a word.

    Args:
        classes: Class names in order.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        size = len(classes) + 1
        super().__init__(
            {
                # The paper's Acc is over clips; torchmetrics' default averages over classes.
                "accuracy": MulticlassAccuracy(size, average="micro"),
                "f1": MulticlassF1Score(size, average=None),
                "matrix": MulticlassConfusionMatrix(size),
            }
        )
        self.classes = classes

    def update(
        self,
        predictions: Int[Tensor, " clips"],
        labels: Int[Tensor, " clips"],
        counted: Bool[Tensor, " clips"],
    ) -> None:
        """Adds a batch.

        Args:
            predictions: Class index; the number of classes stands for unparsed.
            labels: Class index.
            counted: False for clips repeated to even out processes.
        """
        if counted.any():
            super().update(predictions[counted], labels[counted])

    def compute(self) -> dict[str, Any]:
        """Figures by name: accuracy, f1/<class>, f1/macro, unparsed, majority, n."""
        values = super().compute()
        confusion = values["matrix"]
        f1 = values["f1"][: len(self.classes)]
        clips = confusion.sum()
        return {
            "accuracy": values["accuracy"],
            **{f"f1/{name}": value for name, value in zip(self.classes, f1, strict=True)},
            "f1/macro": f1.mean(),
            "unparsed": confusion[:, -1].sum() / clips,
            "majority": confusion.sum(1).max() / clips,
            "n": clips.float(),
        }

    def confusion(self) -> Int[Tensor, "classes predictions"]:
        """Clips by label (rows) and prediction (columns, the last one unparsed)."""
        return super().compute()["matrix"][:-1].long()


def confusion_figure(matrix: Int[Tensor, "classes predictions"], classes: tuple[str, ...]) -> Any:
    """The confusion matrix as a matplotlib figure: counts, and shares of each row.

    Args:
        matrix: As from `ClassificationMetrics.confusion`.
        classes: Class names in order.
    """
    from matplotlib.figure import Figure

    columns = [*classes, "unparsed"]
    if int(matrix[:, -1].sum()) == 0:
        matrix, columns = matrix[:, :-1], columns[:-1]
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(1.6 + 1.3 * len(columns), 1.4 + 1.0 * len(classes)), dpi=120)
    axes = figure.subplots()
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(classes)), list(classes))
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    for row in range(len(classes)):
        for column in range(len(columns)):
            value = float(share[row, column])
            text = f"{int(matrix[row, column])}\n{value:.0%}"
            color = "white" if value > 0.55 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color)
    figure.tight_layout()
    return figure
