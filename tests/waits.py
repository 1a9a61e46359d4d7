"""Operations that on a GPU make the host wait for the device: they must know values to go on."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def reads_values(func: Any, args: Any) -> bool:
    """Whether the result of an operation, or its shape, depends on values of its inputs."""
    operation, aten = func.overloadpacket, torch.ops.aten
    known = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    # The last selects by a mask within its kernel, which its tags do not tell.
    reads = bool(known & {*func.tags}) or operation is aten.masked_scatter_backward
    if reads and operation in (aten.index, aten.index_put):
        # Only where they are given a mask.
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return reads


class Waits(TorchDispatchMode):
    """Refuses such operations, or notes them in a list that it is given."""

    def __init__(self, seen: list[str] | None = None) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reads_values(func, args):
            if self.seen is None:
                raise RuntimeError(f"waits in {func}")
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))
