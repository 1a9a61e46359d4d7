"""Parameter groups and the schedule, as transformers' Trainer makes them."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(
    parts: dict[str, list[tuple[str, nn.Parameter]]],
    learning_rates: dict[str, float],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """AdamW's groups: each part with and without decay.

    Biases and the weights of norms are not decayed; in these architectures they are the
    parameters with one axis. A part with learning rate 0 is frozen and left out.

    Args:
        parts: Named parameters by part.
        learning_rates: Learning rate by part.
        weight_decay: Decay of all other parameters.
    """
    groups = []
    for part, named in parts.items():
        if learning_rates[part] == 0:
            for _, parameter in named:
                parameter.requires_grad_(False)
            continue
        trainable = [parameter for _, parameter in named if parameter.requires_grad]
        for label, decay, members in (
            (part, weight_decay, [p for p in trainable if p.ndim > 1]),
            (f"{part} (biases, norms)", 0.0, [p for p in trainable if p.ndim <= 1]),
        ):
            if members:
                groups.append(
                    {
                        "params": members,
                        "lr": learning_rates[part],
                        "weight_decay": decay,
                        "name": label,
                    }
                )
    return groups


def cosine_schedule(optimizer: Optimizer, total_steps: int, warmup_ratio: float) -> LambdaLR:
    """Linear warm-up, then half a cosine down to zero, per optimiser step.

    Args:
        optimizer: The optimiser.
        total_steps: Optimiser steps in all.
        warmup_ratio: Share of them that warms up, rounded up to whole steps.
    """
    warmup = math.ceil(total_steps * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        progress = (step - warmup) / max(1, total_steps - warmup)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor)


def parameter_table(groups: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of what trains: part, tensors, parameters, learning rate, decay."""
    headers = ["trained part", "tensors", "parameters", "learning rate", "decay"]
    rows = [
        [
            group["name"],
            str(len(group["params"])),
            f"{sum(p.numel() for p in group['params']):,}",
            f"{group.get('initial_lr', group['lr']):g}",
            f"{group['weight_decay']:g}",
        ]
        for group in groups
    ]
    return headers, rows
