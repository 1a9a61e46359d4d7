"""Answers on a scale: their expected values, and a metric of them, exact over processes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from rbft.analysis.levels import level_scores
from rbft.runtime.transfer import to_device


def expected_values(
    predictions: Int[Tensor, " clips"],
    probabilities: Float[Tensor, "clips classes"] | None,
    levels: Sequence[float],
) -> Float[Tensor, " clips"]:
    """The mean of the levels' values, weighted by their probabilities.

    Args:
        predictions: Class index; K stands for no answer, whose value is NaN.
        probabilities: Of each class; None where the answer was written, whose value is that of its
            level.
        levels: The value of each class.
    """
    values = to_device([*levels, math.nan], predictions.device).float()
    answered = values[predictions]
    if probabilities is None:
        return answered
    expected = probabilities.float() @ values[:-1]
    return expected.where(~answered.isnan(), math.nan)


class LevelMetric(Metric):
    """Mean absolute errors and rank correlation of answers on a scale.

    Keeps the values of every clip: ranks are over all clips of all processes.

    Args:
        levels: The value of each class.
    """

    full_state_update = False
    expected: list[Tensor]
    answered: list[Tensor]
    true: list[Tensor]

    def __init__(self, levels: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.levels = tuple(levels)
        for name in ("expected", "answered", "true"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Int[Tensor, " clips"],
        labels: Int[Tensor, " clips"],
        counted: Bool[Tensor, " clips"],
        probabilities: Float[Tensor, "clips classes"] | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            predictions: Class index; K stands for no answer.
            labels: Class index.
            counted: False for clips that are repeated to give all processes as many.
            probabilities: Of each class; None where the answer was written.
        """
        values = to_device([*self.levels, math.nan], predictions.device).float()
        expected = expected_values(predictions, probabilities, self.levels)
        self.expected.append(expected.where(counted, math.nan))
        self.answered.append(values[predictions])
        self.true.append(values[labels.where(counted, 0)])

    def compute(self) -> dict[str, float]:
        """The figures by name, see `rbft.analysis.levels.level_scores`."""
        states = (self.expected, self.answered, self.true)
        columns = [
            dim_zero_cat(state) if len(state) else torch.zeros(0)  # no batch yet
            for state in states
        ]
        return level_scores(*(column.double().cpu().numpy() for column in columns))
