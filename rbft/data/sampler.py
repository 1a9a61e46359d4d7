"""Which clips stand in which batch: a pure function of (seed, epoch), so that a run can resume.

One optimiser step sees one global batch. It is cut into micro-batches over accumulation steps and
processes here, so that every micro-batch knows the answer tokens of its whole global batch and
the loss can be normalised exactly.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler


@dataclass(frozen=True)
class SampleSlot:
    """One place in a batch.

    Attributes:
        index: Index of the clip in its split.
        weight: Its weight in the loss and in metrics; 0 marks a clip repeated to even out ranks.
        total: Weighted answer tokens of the global batch, the loss's denominator.
        turn: Which of the stage's turns the global batch is, see `rbft.stages.Stage.turns`.
    """

    index: int
    weight: float = 1.0
    total: float = 1.0
    turn: int = 0


class TrainSampler(Sampler[list[SampleSlot]]):
    """Shuffled micro-batches of one process.

    Args:
        answer_tokens: Answer tokens of each clip, as the loss counts them.
        weights: Loss weight of each clip.
        batch_size: Clips per micro-batch and process.
        accumulate: Micro-batches per optimiser step.
        rank: This process.
        world: Number of processes.
        seed: Seed of the order.
        groups: Class of each clip for balanced sampling: every class is drawn equally often, the
            epoch's length stays. None draws each clip once.
        second_tokens: The same for the second turn of a stage that has two; None for others.
        second_share: Share of the global batches that are of the second turn, evenly spread.
    """

    def __init__(
        self,
        answer_tokens: Sequence[int | float],
        weights: Sequence[float],
        *,
        batch_size: int,
        accumulate: int,
        rank: int,
        world: int,
        seed: int,
        groups: Sequence[int] | None = None,
        second_tokens: Sequence[int | float] | None = None,
        second_share: float = 0.5,
    ) -> None:
        self.answer_tokens, self.weights, self.groups = answer_tokens, weights, groups
        self.second_tokens, self.second_share = second_tokens, second_share
        self.batch_size, self.accumulate = batch_size, accumulate
        self.rank, self.world, self.seed = rank, world, seed
        self.epoch = 0
        self.start = 0  # micro-batches that a resumed epoch has already seen
        # Lightning announces each epoch to the `sampler` of a batch sampler.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches per epoch and process, the skipped ones of a resumed epoch included."""
        return math.ceil(len(self.weights) / (self.batch_size * self.world))

    def turn(self, step: int) -> int:
        """Which turn a global batch is.

        Args:
            step: Its number, counted from 0 through all epochs.
        """
        if self.second_tokens is None:
            return 0
        share = self.second_share
        return int(math.floor((step + 1) * share) > math.floor(step * share))

    def order(self) -> list[int]:
        """Clip indices of this epoch in training order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.groups is None:
            return torch.randperm(len(self.weights), generator=generator).tolist()
        by_class: dict[int, list[int]] = {}
        for index, group in enumerate(self.groups):
            by_class.setdefault(group, []).append(index)
        drawn: list[int] = []
        for position, members in enumerate(by_class.values()):
            share = [len(self.groups) * k // len(by_class) for k in (position, position + 1)]
            while share[1] - share[0] > 0:
                shuffled = torch.randperm(len(members), generator=generator).tolist()
                taken = shuffled[: share[1] - share[0]]
                drawn += [members[i] for i in taken]
                share[0] += len(taken)
        return [drawn[i] for i in torch.randperm(len(drawn), generator=generator).tolist()]

    def __iter__(self) -> Iterator[list[SampleSlot]]:
        order = self.order()
        per_step = self.batch_size * self.world
        batches: list[list[SampleSlot]] = []
        firsts = range(0, len(order), per_step * self.accumulate)
        for step, first in enumerate(firsts, start=self.epoch * len(firsts)):
            indices = order[first : first + per_step * self.accumulate]
            turn = self.turn(step)
            tokens = self.second_tokens if turn and self.second_tokens else self.answer_tokens
            total = sum(self.weights[i] * tokens[i] for i in indices)
            draws = [SampleSlot(i, self.weights[i], total, turn) for i in indices]
            # All processes take the same number of steps; the repeated clips weigh nothing.
            draws += [SampleSlot(indices[0], 0.0, total, turn)] * (-len(draws) % per_step)
            for micro in range(0, len(draws), per_step):
                mine = draws[micro + self.rank : micro + per_step : self.world]
                batches.append(mine)
        start, self.start = self.start, 0
        yield from batches[start:]


class EvalSampler(Sampler[list[SampleSlot]]):
    """Batches of one process, each clip once over all processes.

    Args:
        size: Number of clips.
        batch_size: Clips per batch and process.
        rank: This process.
        world: Number of processes.
        lengths: Length of each clip. Batches then are of clips of about one length, the longest
            first: little is padded, and what does not fit into memory fails at once. None keeps
            the order.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        rank: int,
        world: int,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.size, self.batch_size, self.rank, self.world = size, batch_size, rank, world
        self.order = list(range(size))
        if lengths is not None:
            self.order.sort(key=lambda index: -lengths[index])

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.size / self.world) / self.batch_size)

    def __iter__(self) -> Iterator[list[SampleSlot]]:
        draws = [SampleSlot(index) for index in self.order]
        # All processes take the same number of steps; the repeated clip counts for nothing.
        draws += [SampleSlot(index, 0.0) for index in self.order[-1:]] * (-self.size % self.world)
        mine = draws[self.rank :: self.world]
        for first in range(0, len(mine), self.batch_size):
            yield mine[first : first + self.batch_size]
