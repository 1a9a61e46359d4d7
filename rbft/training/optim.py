"""Parameter groups and the schedule of the learning rate."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Parts = dict[str, list[tuple[str, nn.Parameter]]]


def freeze(parts: Parts, learning_rates: dict[str, float]) -> None:
    """Freezes the parts whose learning rate is not above 0, in place.

    Args:
        parts: Named parameters by part.
        learning_rates: Learning rate by part.
    """
    for part, named in parts.items():
        if learning_rates[part] <= 0:
            for _, parameter in named:
                parameter.requires_grad_(False)


def parameter_groups(
    parts: Parts,
    learning_rates: dict[str, float],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """AdamW's parameter groups: one with and one without weight decay for each part.

    Biases and norms are not decayed; in Qwen-VL they are exactly the parameters with one dimension,
    the norms of weights that train with DoRA among them.
    transformers' Trainer goes by names and so decays the norms of Qwen2.5-VL's vision tower and
    merger (`norm1`, `norm2`, `ln_q`); rbft decays no norm.

    Args:
        parts: Named parameters by part.
        learning_rates: Learning rate by part. A part at 0 is frozen and left out.
        weight_decay: Weight decay of all other parameters.

    Returns:
        Groups with a `name`, `<part>` or `<part>_no_decay`; empty groups are left out.

    Raises:
        ValueError: If a learning rate is negative, or no parameter is trainable.
    """
    freeze(parts, learning_rates)
    groups = []
    for part, named in parts.items():
        rate = learning_rates[part]
        if rate < 0:
            raise ValueError(
                f"The learning rate of the {part} part is {rate:g}. It must be positive, or 0 to "
                "freeze the part."
            )
        with_decay, without_decay = [], []
        for _, parameter in named:
            if parameter.requires_grad:
                (with_decay if parameter.ndim > 1 else without_decay).append(parameter)
        for name, decay, members in (
            (part, weight_decay, with_decay),
            (f"{part}_no_decay", 0.0, without_decay),
        ):
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": decay, "name": name})
    if not groups:
        raise ValueError(
            f"Nothing would train: {', '.join(parts)} are all frozen. Set model.learning_rate "
            "above 0."
        )
    return groups


def cosine_schedule(optimizer: Optimizer, total_steps: int, warmup_ratio: float) -> LambdaLR:
    """Linear warm-up from 0, then half a cosine down to 0, per optimiser step.

    As in transformers, the first step of a warm-up has learning rate 0, so a run of one step with a
    warm-up changes nothing.

    Args:
        optimizer: The optimizer.
        total_steps: Number of optimiser steps.
        warmup_ratio: Share of them in the warm-up, rounded up to whole steps.
    """
    warmup = math.ceil(total_steps * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor)


def parameter_table(
    groups: Sequence[dict[str, Any]], parts: Parts
) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of a table of the parameter groups and of frozen parameters.

    Args:
        groups: From `parameter_groups`, or an optimizer's.
        parts: Named parameters by part.
    """
    headers = ["part", "tensors", "parameters", "learning rate", "decay"]
    named = [pair for part in parts.values() for pair in part]
    adapters = {id(parameter) for name, parameter in named if ".lora_" in name}
    rows = []
    for group in groups:
        name = group["name"] + (" adapters" if id(group["params"][0]) in adapters else "")
        # A resumed schedule has already changed "lr".
        rate = group.get("initial_lr", group["lr"])
        rows.append(_row(name, group["params"], f"{rate:g}", f"{group['weight_decay']:g}"))
    for part, named in parts.items():
        frozen = [parameter for _, parameter in named if not parameter.requires_grad]
        if frozen:
            rows.append(_row(part, frozen, "frozen", "-"))
    return headers, rows


def _row(name: str, parameters: list[nn.Parameter], rate: str, decay: str) -> list[str]:
    count = sum(map(_count, parameters))
    return [name, str(len(parameters)), f"{count:,}", rate, decay]


def _count(parameter: nn.Parameter) -> int:
    """Number of elements, also of a parameter in 4 bits, which stores two in a byte."""
    stored = getattr(parameter, "quant_state", None)
    return parameter.numel() if stored is None else stored.shape.numel()
