"""Counts the bytes of all tensors that are there at a time, operation by operation."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Peak(TorchDispatchMode):
    """Notes the most bytes that the tensors made in this context, and those given, take together.

    torch's MemTracker does the same, but for a single forward pass of a module.

    Args:
        tensors: What is there already.
    """

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0
        self._add(tensors)

    def _add(self, made: Any) -> None:
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: own for key, own in self.held.items() if not own[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.held.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._add(made)
        return made
