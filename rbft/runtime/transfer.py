"""Small tensors that the host makes go to the device without a wait for it."""

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device) -> Tensor:
    """A tensor on the device; the host goes on before it is there.

    `torch.tensor(values, device=...)` waits, on a GPU, for all that is queued.

    Args:
        values: A tensor in the processor's memory, or (lists of) numbers.
        device: The device.
    """
    made = values if isinstance(values, Tensor) else torch.tensor(values)
    if device.type == "cuda":
        return made.pin_memory().to(device, non_blocking=True)
    return made.to(device)
