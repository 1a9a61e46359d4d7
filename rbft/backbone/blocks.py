"""How the blocks of decoder and vision tower run in training: compiled, or computed twice."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Unseen:
    """Numbers that torch.compile does not look into: it would compile anew for each of them.

    Args:
        numbers: The numbers, to be had again by iterating.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers = tuple(numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


class TrainingForward:
    """Stands for a block's `forward`: another way to compute the same while the block trains.

    Without gradients it is the block's own: what is kept of a frozen tower must not depend on
    whether it was training at the time, and a cache of keys and values grows by a token at a time,
    which is no work for a compiler and cannot be computed twice.

    Attributes:
        plain: The block's own forward.
        compiled: The same, compiled; None where it is not.
        recompute: Keep the block's inputs only, and compute the rest again in the backward pass.
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
                settings["segments"] = Unseen(settings["segments"])
            if args[0]._base is not None:  # the first block's input; another graph for a view
                args = (args[0].clone(), *args[1:])
        if not self.recompute:
            return run(*args, **settings)
        # Around what is compiled, not within: the compiler would have to see through attention.
        return checkpoint(partial(run, **settings), *args, use_reentrant=False)


def stacks(model: Any) -> tuple[list[Any], list[Any]]:
    """The decoder's blocks and the vision tower's, in order; all families name them alike."""
    return list(model.model.language_model.layers), list(model.model.visual.blocks)


def recomputed(blocks: int, share: bool | float) -> list[bool]:
    """Which blocks of a stack are computed again in the backward pass, spread evenly.

    The last block is the first to be kept: when the backward pass comes to one that it must
    compute again, it has given back at least as much.

    Args:
        blocks: Blocks of the stack.
        share: Share of them, rounded to whole blocks.
    """
    number = round(share * blocks)
    bounds = [-(-place * number // blocks) for place in range(blocks + 1)]
    return [start < end for start, end in pairwise(bounds)]


def recompute_blocks(model: Any, share: bool | float) -> None:
    """Has a share of the blocks, in decoder and tower alike, keep their inputs only, in place.

    Args:
        model: The backbone.
        share: 1 computes every block a second time, 0.5 every other one, 0 none.
    """
    for stack in stacks(model):
        for block, again in zip(stack, recomputed(len(stack), share), strict=True):
            if again:
                _forward_of(block).recompute = True


def compile_blocks(blocks: Sequence[nn.Module], backend: Any = "inductor") -> None:
    """Has torch.compile make kernels of all that blocks compute but attention, in place.

    Args:
        blocks: The blocks.
        backend: What makes kernels of a graph.
    """
    for block in blocks:
        own = _forward_of(block)
        # Clips differ in length: one graph for all lengths.
        own.compiled = torch.compile(own.plain, dynamic=True, backend=backend)


def _forward_of(block: nn.Module) -> TrainingForward:
    """What stands for the block's forward, put there if it does not yet."""
    found = block.forward
    if not isinstance(found, TrainingForward):
        found = TrainingForward(block)
        block.forward = found  # type: ignore[method-assign]
    return found
