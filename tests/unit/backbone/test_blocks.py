"""Blocks that are recomputed or compiled do what they do otherwise."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from rbft.backbone.adapters import LoRA
from rbft.backbone.blocks import (
    TrainingForward,
    compile_blocks,
    recompute_blocks,
    recomputed,
    stacks,
)
from rbft.data.sampler import SampleSlot
from rbft.module import RBFTModule
from tests.examples import batch_of, collator, examples, module
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("blocks", "share", "again"),
    [
        (4, 1.0, "xxxx"),
        (4, True, "xxxx"),
        (4, 0.0, "----"),
        (4, False, "----"),
        (4, 0.5, "x-x-"),
        (5, 0.4, "x-x--"),
        (4, 0.75, "xxx-"),
        (3, 0.1, "---"),  # rounded to whole blocks
        (3, 0.9, "xxx"),
    ],
)
def test_a_share_is_spread_evenly(blocks: int, share: float, again: str) -> None:
    assert recomputed(blocks, share) == [mark == "x" for mark in again]


@pytest.mark.parametrize("blocks", [1, 2, 7, 28, 32])
def test_the_last_block_is_kept_if_any_is(blocks: int) -> None:
    """The memory estimate counts on it."""
    for number in range(blocks + 1):
        again = recomputed(blocks, number / blocks)
        assert sum(again) == number
        assert again[-1] == (number == blocks)


def note(passed: list[tuple[int, int]], place: tuple[int, int], *_: Any) -> None:
    passed.append(place)


def gradients(made: RBFTModule, folder: Path, count: int = 3) -> tuple[Tensor, list[Tensor]]:
    make = replace(collator(folder, target_stage="rationale"), packing=True)
    made.zero_grad()
    loss = made.loss(batch_of(make, examples(count)))
    loss.backward()
    found = [p.grad for p in made.parameters() if p.grad is not None]
    return loss.detach(), found


@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(rank=4), "vision_learning_rate": 0.0}])
def test_a_share_recomputes_so_many_blocks_and_changes_no_bit(
    backbone: Path, settings: dict[str, Any]
) -> None:
    results, calls = [], []
    for share in (False, 0.5, True):
        torch.manual_seed(0)  # of the adapters that begin
        made = module(backbone, gradient_checkpointing=share, **settings).train()
        passed: list[tuple[int, int]] = []
        for stack, blocks in enumerate(stacks(made.backbone)):
            for number, block in enumerate(blocks):
                first = next(block.children())
                first.register_forward_hook(partial(note, passed, (stack, number)))
        results.append(gradients(made, backbone))
        calls.append(passed)
    for loss, found in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert found
        for ours, theirs in zip(found, results[0][1], strict=True):
            assert torch.equal(ours, theirs)
    once = [(stack, number) for stack in (1, 0) for number in (0, 1)]
    assert calls[0] == once
    # From the last to the first: only those blocks through which a gradient comes.
    half, whole = ([(0, 0)], [(0, 1), (0, 0)])
    if not settings:
        half, whole = [*half, (1, 0)], [*whole, (1, 1), (1, 0)]
    assert calls[1] == [*once, *half]
    assert calls[2] == [*once, *whole]


def test_nothing_is_recomputed_or_compiled_where_nothing_trains() -> None:
    ran: list[str] = []
    (block, *_), _ = stacks(model := tiny_model("qwen2_5_vl"))
    recompute_blocks(model, 1.0)
    own: Any = block.forward
    assert isinstance(own, TrainingForward)
    own.plain = lambda hidden, **_: ran.append("plain") or hidden.sin()
    own.compiled = lambda hidden, **_: ran.append("compiled") or hidden.sin()
    hidden = torch.ones(2, requires_grad=True)
    block.train()
    block(hidden).sum().backward()
    assert ran == ["compiled", "compiled"]
    ran.clear()
    block(hidden, past_key_values=object())
    with torch.no_grad():
        block(hidden)
    block.eval()
    block(hidden).sum().backward()
    assert ran == ["plain"] * 3


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def as_on_a_gpu(folder: Path, **settings: Any) -> RBFTModule:
    """With the vision tower's attention in one call, and patches as a matrix product."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return module(folder, **settings).train()


def compiled(made: RBFTModule) -> CompileCounterWithBackend:
    counter = CompileCounterWithBackend("aot_eager")
    for stack in stacks(made.backbone):
        compile_blocks(stack, counter)
    return counter


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "half": {"gradient_checkpointing": 0.5},
    "adapters": {"lora": LoRA(rank=4), "vision_learning_rate": 0.0},
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor is being accessed.*")  # torch's own
@pytest.mark.parametrize("name", SETTINGS)
def test_compiled_blocks_have_the_same_gradients(backbone: Path, name: str) -> None:
    results, graphs = [], []
    for compile in (False, True):
        torch.manual_seed(0)
        made = as_on_a_gpu(backbone, **SETTINGS[name])
        counter = compiled(made) if compile else None
        results.append(gradients(made, backbone))
        graphs.append(counter and counter.frame_count)
    assert graphs[1]
    torch.testing.assert_close(results[1][0], results[0][0])
    for ours, theirs in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor is being accessed.*")
def test_batches_of_other_lengths_are_not_compiled_anew(backbone: Path) -> None:
    made = as_on_a_gpu(backbone, gradient_checkpointing=0.5)
    counter, counts = compiled(made), []
    make = replace(collator(backbone, target_stage="rationale"), packing=True)
    # Other lengths, other numbers of clips, several of one length; single clips after the others.
    for places in ((0, 1), (2, 3, 4), (3, 3), (0, 1, 2, 3, 4), (4, 0), (1,), (2,), (0,), (1, 4)):
        batch = batch_of(make, examples(len(places), [SampleSlot(place) for place in places]))
        made.loss(batch).backward()
        counts.append(counter.frame_count)
    # Norm; queries, keys and rotation; the projection behind attention; what follows: in the
    # decoder and in the tower. The checks of shapes in tests cut up to twice more in each. A single
    # clip's attention comes in another layout: one more.
    assert counts[0] <= 2 * (4 + 2)
    assert counts[1:5] == counts[:1] * 4
    assert counts[5] <= counts[0] + 1
    assert counts[6:] == counts[5:6] * 3
