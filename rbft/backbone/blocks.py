"""Compilation and gradient checkpointing of the blocks of decoder and vision tower."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class OpaqueIntegers:
    """Integers that torch.compile does not guard on; it would compile again for other values.

    Args:
        numbers: The integers; iterate to get them.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers = tuple(numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


class TrainingForward:
    """Replaces the `forward` of a block to compile or checkpoint it in training.

    Without gradients it calls the block's own forward. Cached outputs of a frozen tower must not
    depend on whether the model was training, and a KV cache grows by one token at a time, which is
    not worth compiling and cannot be recomputed.

    Attributes:
        plain: The block's own forward.
        compiled: The same, compiled; None if it is not compiled.
        recompute: Use gradient checkpointing: save the inputs only, and recompute the rest.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block, self.plain = block, block.forward
        self.compiled: Any = None
        self.recompute = False

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """The block's output."""
        trains = self.block.training and torch.is_grad_enabled()
        if not trains or settings.get("past_key_values") is not None:
            return self.plain(*args, **settings)
        run = self.plain
        if self.compiled is not None:
            run = self.compiled
            if "segments" in settings:
                settings["segments"] = OpaqueIntegers(settings["segments"])
            if args[0]._base is not None:  # the first block's input; a view would be a second graph
                args = (args[0].clone(), *args[1:])
        if not self.recompute:
            return run(*args, **settings)
        # Checkpointing encloses the compiled code: inside, the compiler would trace attention.
        return checkpoint(partial(run, **settings), *args, use_reentrant=False)


def stacks(model: Any) -> tuple[list[Any], list[Any]]:
    """The blocks of decoder and vision tower, in order; all families use the same names."""
    return list(model.model.language_model.layers), list(model.model.visual.blocks)


def recomputed(blocks: int, share: bool | float) -> list[bool]:
    """Which blocks of a stack are recomputed in the backward pass, evenly spaced.

    The last block is recomputed only if all are. Its activations are freed before the first block
    is recomputed and leave room for those of that block.

    Args:
        blocks: Number of blocks in the stack.
        share: Share of them that is recomputed, rounded to whole blocks.
    """
    number = round(share * blocks)
    bounds = [-(-place * number // blocks) for place in range(blocks + 1)]
    return [start < end for start, end in pairwise(bounds)]


def recompute_blocks(model: Any, share: bool | float) -> None:
    """Applies gradient checkpointing to a share of the blocks of decoder and tower, in place.

    Args:
        model: The backbone.
        share: 1 recomputes every block, 0.5 every other one, 0 none.
    """
    for stack in stacks(model):
        for block, again in zip(stack, recomputed(len(stack), share), strict=True):
            if again:
                _training_forward(block).recompute = True


def compile_blocks(blocks: Sequence[nn.Module], backend: Any = "inductor") -> None:
    """Compiles blocks with torch.compile in place, except their attention.

    Args:
        blocks: The blocks.
        backend: Backend of torch.compile.
    """
    for block in blocks:
        own = _training_forward(block)
        # Clips differ in length: one graph for all lengths.
        own.compiled = torch.compile(own.plain, dynamic=True, backend=backend)


def _training_forward(block: nn.Module) -> TrainingForward:
    """The block's `TrainingForward`, which replaces its forward if it does not yet."""
    found = block.forward
    if not isinstance(found, TrainingForward):
        found = TrainingForward(block)
        block.forward = found  # type: ignore[method-assign]
    return found
