import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.data.sampler import EvalSampler, SampleSlot, TrainSampler

SIZES = st.integers(1, 40)
FEW = st.integers(1, 4)


def train_samplers(
    tokens: list[int],
    weights: list[float],
    batch_size: int,
    accumulate: int,
    world: int,
    groups: list[int] | None = None,
    seed: int = 0,
) -> list[TrainSampler]:
    """One sampler per process."""
    return [
        TrainSampler(
            tokens,
            weights,
            batch_size=batch_size,
            accumulate=accumulate,
            rank=rank,
            world=world,
            seed=seed,
            groups=groups,
        )
        for rank in range(world)
    ]


@given(SIZES, FEW, FEW, FEW, st.integers(0, 3), st.data())
def test_an_epoch_of_all_processes(
    size: int, batch_size: int, accumulate: int, world: int, epoch: int, data: st.DataObject
) -> None:
    tokens = data.draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    weights = data.draw(st.lists(st.floats(0.1, 4), min_size=size, max_size=size))
    samplers = train_samplers(tokens, weights, batch_size, accumulate, world)
    for sampler in samplers:
        sampler.set_epoch(epoch)
    ranks = [list(sampler) for sampler in samplers]

    # All processes take the same number of micro-batches of the same size, as announced.
    assert {len(batches) for batches in ranks} == {len(samplers[0])}
    assert {len(batch) for batches in ranks for batch in batches} == {batch_size}
    # Each clip counts once, with its weight; what was added to even out weighs nothing.
    draws = [draw for batches in ranks for batch in batches for draw in batch]
    counted = [draw for draw in draws if draw.weight]
    assert sorted(draw.index for draw in counted) == list(range(size))
    assert all(draw.weight == weights[draw.index] for draw in counted)
    assert len(draws) - len(counted) < batch_size * world
    # Every global batch knows its weighted tokens.
    for first in range(0, len(samplers[0]), accumulate):
        step = [d for batches in ranks for b in batches[first : first + accumulate] for d in b]
        total = math.fsum(draw.weight * tokens[draw.index] for draw in step)
        assert {round(draw.total, 6) for draw in step} == {round(step[0].total, 6)}
        assert step[0].total == pytest.approx(total)


@given(SIZES, FEW, FEW, st.integers(0, 3))
def test_what_a_step_sees_does_not_depend_on_how_it_is_shared_out(
    size: int, batch_size: int, accumulate: int, epoch: int
) -> None:
    def steps(batch_size: int, accumulate: int, world: int) -> list[Counter[int]]:
        samplers = train_samplers([1] * size, [1.0] * size, batch_size, accumulate, world)
        for sampler in samplers:
            sampler.set_epoch(epoch)
        ranks = [list(sampler) for sampler in samplers]
        return [
            Counter(
                draw.index
                for batches in ranks
                for batch in batches[first : first + accumulate]
                for draw in batch
                if draw.weight
            )
            for first in range(0, len(samplers[0]), accumulate)
        ]

    alone = steps(batch_size * accumulate, 1, 1)
    assert steps(batch_size, accumulate, 1) == alone
    assert steps(1, 1, batch_size * accumulate) == alone


@given(SIZES, FEW, FEW, FEW, st.data())
def test_a_resumed_epoch_goes_on_where_it_stopped(
    size: int, batch_size: int, accumulate: int, world: int, data: st.DataObject
) -> None:
    (sampler, *_) = train_samplers([1] * size, [1.0] * size, batch_size, accumulate, world)
    whole = list(sampler)
    start = data.draw(st.integers(0, len(whole) - 1))
    sampler.start = start
    assert len(sampler) == len(whole)
    assert list(sampler) == whole[start:]
    assert list(sampler) == whole, "the next epoch is cut too"


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    (first,) = train_samplers([1] * 30, [1.0] * 30, 4, 1, 1)
    (second,) = train_samplers([1] * 30, [1.0] * 30, 4, 1, 1)
    (other,) = train_samplers([1] * 30, [1.0] * 30, 4, 1, 1, seed=1)
    assert first.order() == second.order()
    assert sorted(first.order()) == list(range(30))
    assert first.order() != list(range(30))
    assert first.order() != other.order()
    before = first.order()
    first.set_epoch(1)
    assert first.order() != before
    assert first.order() != other.order()


def test_lightning_can_announce_the_epoch() -> None:
    # It looks for `batch_sampler.sampler.set_epoch`.
    (sampler,) = train_samplers([1], [1.0], 1, 1, 1)
    sampler.sampler.set_epoch(3)
    assert sampler.epoch == 3


def test_fewer_clips_than_processes() -> None:
    ranks = [list(sampler) for sampler in train_samplers([5, 7], [1.0, 1.0], 2, 2, 3)]
    assert [len(batches) for batches in ranks] == [1, 1, 1]
    draws = [draw for batches in ranks for batch in batches for draw in batch]
    assert sorted(draw.index for draw in draws if draw.weight) == [0, 1]
    assert {draw.total for draw in draws} == {12.0}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5))
def test_balanced_draws(groups: list[int], epoch: int) -> None:
    size, classes = len(groups), len(set(groups))
    (sampler,) = train_samplers([1] * size, [1.0] * size, 2, 1, 1, groups)
    sampler.set_epoch(epoch)
    order = sampler.order()
    assert len(order) == size
    drawn = Counter(groups[index] for index in order)
    assert all(drawn[group] in (size // classes, -(-size // classes)) for group in set(groups))
    # Within a class no clip is drawn again before all others were.
    for group in set(groups):
        times = Counter(index for index in order if groups[index] == group)
        members = [index for index in range(size) if groups[index] == group]
        assert max(times.values(), default=0) - min(times[m] for m in members) <= 1


def test_balanced_draws_change_from_epoch_to_epoch() -> None:
    (sampler,) = train_samplers([1] * 20, [1.0] * 20, 2, 1, 1, [0] * 18 + [1] * 2)
    first = sampler.order()
    sampler.set_epoch(1)
    assert sorted(first) != sorted(sampler.order())


@given(st.integers(0, 50), FEW, st.integers(1, 6))
def test_scoring_counts_each_clip_once(size: int, batch_size: int, world: int) -> None:
    ranks = [
        EvalSampler(size, batch_size=batch_size, rank=rank, world=world) for rank in range(world)
    ]
    batches = [list(sampler) for sampler in ranks]
    # Sharded models need the same number of forwards everywhere.
    assert {len(b) for b in batches} == {len(ranks[0])}
    assert len({tuple(map(len, b)) for b in batches}) == 1
    draws = [draw for b in batches for batch in b for draw in batch]
    assert sorted(draw.index for draw in draws if draw.weight) == list(range(size))
    assert all(draw.weight in (0.0, 1.0) for draw in draws)
    assert len(draws) - size < world or size == 0


def test_scoring_in_order() -> None:
    sampler = EvalSampler(5, batch_size=2, rank=1, world=2)
    assert list(sampler) == [[SampleSlot(1), SampleSlot(3)], [SampleSlot(4, 0.0)]]
    assert list(EvalSampler(3, batch_size=2, rank=0, world=1)) == [
        [SampleSlot(0), SampleSlot(1)],
        [SampleSlot(2)],
    ]


def test_scoring_the_longest_first() -> None:
    lengths, alone = [4, 9, 2, 9, 7], {"batch_size": 2, "lengths": [4, 9, 2, 9, 7]}
    one = EvalSampler(5, rank=0, world=1, **alone)
    assert list(one) == [
        [SampleSlot(1), SampleSlot(3)],
        [SampleSlot(4), SampleSlot(0)],
        [SampleSlot(2)],
    ]
    # What an interrupted run has left falls into the same batches.
    left = EvalSampler(3, batch_size=2, rank=0, world=1, lengths=[lengths[i] for i in (0, 2, 4)])
    assert list(left) == [[SampleSlot(2), SampleSlot(0)], [SampleSlot(1)]]
    first, second = (list(EvalSampler(5, rank=rank, world=2, **alone)) for rank in range(2))
    assert first == [[SampleSlot(1), SampleSlot(4)], [SampleSlot(2)]]
    assert second == [[SampleSlot(3), SampleSlot(0)], [SampleSlot(2, 0.0)]]


def with_turns(share: float, clips: int = 10, **settings: int) -> TrainSampler:
    one, other = [3] * clips, [1] * clips
    sizes: dict[str, Any] = {
        "batch_size": 2,
        "accumulate": 1,
        "rank": 0,
        "world": 1,
        "seed": 0,
        **settings,
    }
    return TrainSampler(one, [1.0] * clips, second_tokens=other, second_share=share, **sizes)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 2 / 3, 1.0])
def test_turns_are_evenly_spread_over_all_epochs(share: float) -> None:
    sampler, turns = with_turns(share, clips=14), []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        for batch in sampler:
            (turn,) = {draw.turn for draw in batch}
            turns.append(turn)
            # The loss of a step is that of one question alone, by its own tokens.
            assert {draw.total for draw in batch} == {(3, 1)[turn] * 2}
    assert len(turns) == 42
    for steps in range(1, 43):
        assert abs(sum(turns[:steps]) - share * steps) < 1 + 1e-9


def test_every_clip_gets_either_turn() -> None:
    sampler, seen = with_turns(0.5), Counter[tuple[int, int]]()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        seen.update((draw.index, draw.turn) for batch in sampler for draw in batch)
    assert min(seen[clip, turn] for clip in range(10) for turn in (0, 1)) > 8


@given(FEW, FEW, FEW, st.integers(0, 3))
def test_processes_and_micro_batches_take_the_same_turn(
    batch_size: int, accumulate: int, world: int, epoch: int
) -> None:
    ranks = []
    for rank in range(world):
        sampler = with_turns(
            0.5, batch_size=batch_size, accumulate=accumulate, rank=rank, world=world
        )
        sampler.set_epoch(epoch)
        ranks.append([{draw.turn for draw in batch} for batch in sampler])
    assert all(turns == ranks[0] for turns in ranks)
    for first in range(0, len(ranks[0]), accumulate):
        assert len(set.union(*ranks[0][first : first + accumulate])) == 1


def test_a_resumed_epoch_takes_the_turns_that_were_left() -> None:
    sampler = with_turns(0.5)
    sampler.set_epoch(1)
    whole = list(sampler)
    sampler.start = 2
    assert list(sampler) == whole[2:]
    assert len({draw.turn for batch in whole for draw in batch}) == 2
