"""Accuracy and F1 per class; an answer without a class word counts as wrong.

A class without scored clips has no F1, and the macro F1 is the mean over the others. With
scikit-learn: `f1_score(labels, predictions, labels=unique(labels), average="macro")`. The mean over
all classes would count it as 0: 66.67 for three classes of which two have clips, all correct.
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.utilities import dim_zero_cat

from rbft.analysis.multilabel import HALF, multilabel_scores
from rbft.inference.ordered import LevelMetric
from rbft.runtime.console import width
from rbft.runtime.fonts import drawable_classes, families

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_COUNTED = -1


def unparsed(classes: Sized) -> int:
    """The index that stands for an answer that is no class: it follows those of the classes."""
    return len(classes)


class ClassificationMetrics(nn.Module):
    """Metrics of a generative classifier, exact for any number of processes.

    "Unparsed" is a further class after the K real ones: torchmetrics would silently count a
    prediction of -1 in a wrong cell of the confusion matrix.

    Args:
        classes: Class names in order.
        levels: The value of each class where they are levels of a scale; empty where not.
    """

    def __init__(self, classes: Sequence[str], levels: Sequence[float] = ()) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.levels = LevelMetric(levels) if levels else None
        size = len(classes) + 1
        # Without compute groups, which would depend on the clips of each process.
        self.metrics = MetricCollection(
            {
                # The paper's Acc is over clips; torchmetrics' default averages over classes.
                "accuracy": MulticlassAccuracy(size, average="micro", ignore_index=NOT_COUNTED),
                "f1": MulticlassF1Score(size, average=None, ignore_index=NOT_COUNTED),
                "confusion": MulticlassConfusionMatrix(size, ignore_index=NOT_COUNTED),
            },
            compute_groups=False,
        )

    def update(
        self,
        predictions: Int[Tensor, " clips"],
        labels: Int[Tensor, " clips"],
        counted: Bool[Tensor, " clips"],
        probabilities: Float[Tensor, "clips classes"] | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            predictions: Class index; K stands for unparsed.
            labels: Class index.
            counted: False for clips that are repeated to give all processes as many.
            probabilities: Of each class, for the expected value on a scale; None where the answer
                was written.

        Raises:
            ValueError: If a counted clip has no label, or an index is out of range.
        """
        last = unparsed(self.classes)
        wrong = counted & (
            (labels < 0) | (labels >= last) | (predictions < 0) | (predictions > last)
        )
        if wrong.any():
            raise ValueError(
                f"Cannot score label {int(labels[wrong][0])} against prediction "
                f"{int(predictions[wrong][0])}: labels must be 0 to {last - 1} (a scored clip "
                f"needs a known class), predictions 0 to {last} ({last} = unparsed). Use predict "
                "for clips without a label."
            )
        self.metrics.update(predictions, labels.where(counted, NOT_COUNTED))
        if self.levels is not None:
            self.levels.update(predictions, labels, counted, probabilities)

    def compute(self) -> dict[str, float]:
        """Figures by name, shares from 0 to 1; collective over processes.

        Returns:
            `accuracy` over clips; `f1/<class>`, NaN for a class without clips; `f1/macro`, the mean
            over the other classes; `unparsed`, the share of clips whose answer has no class word;
            `majority`, the accuracy of always answering with the most frequent class; `n`, the
            number of clips. On a scale also `mae`, `mae/answer` and `spearman`, in the scale's unit
            and from -1 to 1, see `rbft.analysis.levels.level_scores`.
        """
        values = self.metrics.compute()
        confusion = values["confusion"]
        clips = int(confusion.sum())
        # torchmetrics returns 0 for a class without clips.
        f1 = {
            name: value if count else math.nan
            for name, value, count in zip(
                self.classes,
                values["f1"][:-1].tolist(),
                confusion[:-1].sum(dim=1).tolist(),
                strict=True,
            )
        }
        return {
            "accuracy": float(values["accuracy"]),
            **{f"f1/{name}": value for name, value in f1.items()},
            # Not torchmetrics' macro average, which would include "unparsed".
            "f1/macro": macro_f1(f1.values()),
            "unparsed": int(confusion[:, -1].sum()) / max(1, clips),
            "majority": int(confusion.sum(dim=1).max()) / max(1, clips),
            "n": float(clips),
            **({} if self.levels is None else self.levels.compute()),
        }

    def confusion(self) -> Int[Tensor, "classes predictions"]:
        """Clips by label (K rows) and prediction (K + 1 columns, the last one unparsed).

        Collective over processes.
        """
        return self.metrics.compute()["confusion"][:-1]

    def reset(self) -> None:
        """Forgets all clips."""
        self.metrics.reset()
        if self.levels is not None:
            self.levels.reset()


class MultiLabelMetrics(Metric):
    """Metrics of clips that may have several classes, exact for any number of processes.

    Args:
        classes: Class names in order.
    """

    full_state_update = False
    probabilities: list[Tensor]
    labels: list[Tensor]
    counted: list[Tensor]

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        for name in ("probabilities", "labels", "counted"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        probabilities: Float[Tensor, "clips classes"],
        answered: Bool[Tensor, " clips"],
        labels: Int[Tensor, "clips classes"],
        counted: Bool[Tensor, " clips"],
    ) -> None:
        """Adds a batch.

        Args:
            probabilities: Of each class by itself.
            answered: False for clips that could not be decoded.
            labels: 1 for the classes of a clip, 0 for the others, -1 where they are unknown.
            counted: False for clips that are repeated to give all processes as many.

        Raises:
            ValueError: If the classes of a counted clip are unknown.
        """
        if (counted & (labels < 0).any(-1)).any():
            raise ValueError(
                "Cannot score a clip without labels: a scored clip needs a list of its classes, "
                "which may be empty. Use predict for clips without labels."
            )
        self.probabilities.append(probabilities.masked_fill(~answered[:, None], math.nan))
        self.labels.append(labels)
        self.counted.append(counted.long())  # not every backend gathers truth values

    def compute(self) -> dict[str, float]:
        """Figures by name, see `rbft.analysis.multilabel.multilabel_scores`; collective."""
        if not len(self.labels):
            nothing = np.zeros((0, len(self.classes)))
            return multilabel_scores(nothing > 0, nothing > 0, nothing, self.classes)
        kept = dim_zero_cat(self.counted).bool()
        has = (dim_zero_cat(self.labels)[kept] == 1).cpu().numpy()
        shares = dim_zero_cat(self.probabilities)[kept].double().cpu().numpy()
        said = np.nan_to_num(shares, nan=-1.0) >= HALF
        return multilabel_scores(has, said, shares, self.classes)


def macro_f1(f1: Iterable[float | None]) -> float:
    """Mean F1 of the classes that have one; NaN if none has.

    Args:
        f1: F1 of each class; None or NaN for a class without scored clips.
    """
    defined = [value for value in f1 if value is not None and not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def macro_classes(counts: Mapping[str, int]) -> list[str]:
    """Names of the classes that the macro F1 averages over.

    Args:
        counts: Scored clips of each class.
    """
    return [name for name, count in counts.items() if count]


def for_json(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Figures for JSON, with null instead of NaN."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def percent(value: float | None) -> str:
    """A figure from 0 to 1 in per cent for a table, with a dash for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def confusion_figure(
    matrix: Int[Tensor, "classes predictions"], classes: Sequence[str]
) -> "Figure":
    """The confusion matrix as a picture: counts, and the share of each row.

    Args:
        matrix: As from `ClassificationMetrics.confusion`; the column of unparsed answers is shown
            where there are any.
        classes: Class names in order, of any script; see `rbft.runtime.fonts`.
    """
    from matplotlib.figure import Figure

    matrix = matrix.cpu()
    names = drawable_classes(classes)
    columns = [*names, "unparsed"]
    if int(matrix[:, -1].sum()) == 0:
        matrix, columns = matrix[:, :-1], columns[:-1]
    share = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    wide, high = 1.2 * len(columns), 0.9 * len(classes)
    # Figure, not pyplot: nothing global, no display.
    figure = Figure(figsize=(wide + 1.8, high + 1.0), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    slanted = max(map(width, columns)) > 12
    # A dollar sign in a name begins no formula.
    style = {"fontfamily": families(columns), "parse_math": False}
    axes.set_xticks(
        range(len(columns)),
        columns,
        rotation=30 if slanted else 0,
        ha="right" if slanted else "center",
        **style,
    )
    axes.set_yticks(range(len(classes)), names, **style)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    for row in range(len(classes)):
        for column in range(len(columns)):
            part = float(share[row, column])
            axes.text(
                column,
                row,
                f"{int(matrix[row, column])}\n{part:.1%}",
                ha="center",
                va="center",
                color="white" if part > 0.5 else "black",
            )
    return figure
