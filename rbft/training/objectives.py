"""Losses beyond the paper's: the parts of an answer apart, and the expected cost of answers."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PARTS = ("rationale", "class")  # in the order of `part_losses`


def part_losses(
    nll: Float[Tensor, " answer"],
    of_class: Bool[Tensor, " answer"],
    weights: Float[Tensor, " answer"],
) -> Float[Tensor, "2 2"]:
    """The loss of the rationale's tokens and that of the class's, to be watched apart.

    Args:
        nll: Negative log-likelihood of each answer token.
        of_class: Whether it belongs to the class.
        weights: Weight of its clip.

    Returns:
        For rationale and class: sum over the tokens, and how many there are, both weighted.
    """
    masks = torch.stack([~of_class, of_class]) * weights
    return torch.stack([(masks * nll).sum(1), masks.sum(1)], dim=1)


def expected_cost(
    nll: Float[Tensor, " answer"],
    rows: Int[Tensor, " answer"],
    costs: Float[Tensor, "clips classes"],
    weights: Float[Tensor, " clips"],
    total: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """What answering costs on average, drawn from the class probabilities P(c | video, prompt).

    The probabilities are those by which clips are classified: the answers' likelihoods, normalised
    over the classes. With a cost of 1 for every wrong class it is 1 - accuracy in expectation.
    Every class is scored, so the gradient is exact; nothing is drawn.

    Args:
        nll: Negative log-likelihood of each token of each class's answer.
        rows: The answer that it belongs to: clip after clip, class after class.
        costs: What each class costs as an answer about each clip.
        weights: Weight of each clip.
        total: Weighted clips in the global batch.

    Returns:
        The batch's share of the global batch's mean, in float32.
    """
    answers = nll.new_zeros(costs.numel()).index_add(0, rows, nll).view_as(costs)
    probabilities = (-answers).softmax(-1)
    return ((probabilities * costs).sum(-1) * weights).sum() / total


def cost_matrix(
    costs: Mapping[str, Mapping[str, float]] | None, classes: Sequence[str]
) -> Float[Tensor, "classes classes"]:
    """What it costs to answer with each class (column) about a clip of each class (row).

    Args:
        costs: `model.costs`: by class and answered class; what is not named costs 1, a right
            answer nothing.
        classes: Names of the classes.

    Raises:
        ValueError: If a name is no class, a cost is negative or not finite, or a right answer is
            said to cost something.
    """
    made = 1.0 - torch.eye(len(classes))
    for true, row in (costs or {}).items():
        for answered, cost in row.items():
            where = f"model.costs.{true}.{answered}"
            if strange := [name for name in (true, answered) if name not in classes]:
                raise ValueError(
                    f"{where}: '{strange[0]}' is no class of the card; its classes are "
                    f"{', '.join(classes)}."
                )
            if true == answered or not 0 <= cost < float("inf"):
                raise ValueError(
                    f"{where} is {cost:g}: a cost must be 0 or more, and a right answer has none."
                )
            made[classes.index(true), classes.index(answered)] = cost
    return made
