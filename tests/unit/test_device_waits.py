"""Neither the way from a batch to its loss nor the optimiser's step waits for the device.

Tensors without data stand for those of a GPU: whatever asks one for its values, which on a GPU
would wait for all that is queued, is an error. So is a mix of devices.
The backward pass alone cannot be run on them.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import rbft.attention as attention
from rbft.collator import Batch, Transferable
from rbft.module import RBFTModule
from tests.examples import batch_of, collator, examples, module


class HostGrids:
    """Stands for grids in the processor's memory, whose values may be read."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def prod(self, axis: int) -> "HostGrids":
        return HostGrids([math.prod(row) for row in self.rows])

    def __floordiv__(self, number: int) -> "HostGrids":
        return HostGrids([row // number for row in self.rows])

    def tolist(self) -> list[Any]:
        return self.rows


def kernel(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stands for the kernel that takes all segments at once: the right shapes and inputs."""
    return query + key.sum() + value.sum()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    monkeypatch.setattr(attention, "_kernel_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(attention, "_varlen_attn", lambda: kernel)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # not known without data
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")  # as the command line does
    attention._bounds.cache_clear()
    yield FakeTensorMode()
    attention._bounds.cache_clear()


def on_gpu(item: Any, mode: FakeTensorMode) -> Any:
    if isinstance(item, Transferable):
        return item._map(lambda value: on_gpu(value, mode))
    with mode:
        return torch.empty(item.shape, dtype=item.dtype, device="cuda")


def moved(made: RBFTModule, batch: Batch, mode: FakeTensorMode) -> Batch:
    """Module and batch on the GPU, the module changed in place."""
    for whole in (made.backbone.named_parameters, made.backbone.named_buffers):
        for name, tensor in list(whole(remove_duplicate=False)):
            owner, _, attribute = name.rpartition(".")
            there = on_gpu(tensor.detach(), mode)
            if isinstance(tensor, nn.Parameter):
                there = nn.Parameter(there)
            setattr(made.backbone.get_submodule(owner), attribute, there)
    there = on_gpu(batch, mode)
    grids = batch.video["video_grid_thw"]
    assert there.video["video_grid_thw"] is grids  # it stays
    there.video["video_grid_thw"] = HostGrids(grids.tolist())
    return there


def loaded(backbone: Path, stage: str = "label") -> RBFTModule:
    """A module with what it does on a GPU alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return module(backbone, stage=stage).train()


@pytest.mark.parametrize("stage", ["rationale", "label"])
def test_a_step_forward(backbone: Path, gpu: FakeTensorMode, stage: str) -> None:
    make = replace(collator(backbone, learn=stage), packing=True)
    made = loaded(backbone, stage)
    batch = moved(made, batch_of(make, examples(3)), gpu)
    with gpu:
        loss = made.loss(batch)
    assert loss.device == torch.device("cuda", 0)
    assert loss.requires_grad


@pytest.mark.parametrize("waits", ["tower", "check"])
def test_what_would_wait(
    backbone: Path, gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    """What transformers does of itself, so that the test above is not empty."""
    make = replace(collator(backbone, learn="label"), packing=True)
    made = loaded(backbone)
    batch = moved(made, batch_of(make, examples(3)), gpu)
    if waits == "check":
        monkeypatch.delenv("TRANSFORMERS_DISABLE_TORCH_CHECK")
    else:
        grids = batch.video["video_grid_thw"].tolist()
        with gpu:
            batch.video["video_grid_thw"] = torch.tensor(grids, device="cuda")
        batch = replace(batch, tower={})
    with gpu, pytest.raises(DataDependentOutputException):
        made.loss(batch)


class Moment:
    """Stands for an event of the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.calls = device, []

    def record(self) -> None:
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("synchronize")


def in_training(made: RBFTModule, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Gives the module what it asks of a Trainer when it steps; returns what it logs."""
    logged: dict[str, Tensor] = {}
    facts = {"world_size": 1, "accumulate_grad_batches": 1, "global_step": 4, "max_epochs": 1}
    run = SimpleNamespace(precision="bf16-mixed", strategy=None, **facts)
    monkeypatch.setattr(torch, "Event", Moment)
    monkeypatch.setattr(RBFTModule, "trainer", run)
    monkeypatch.setattr(RBFTModule, "data", SimpleNamespace(steps=lambda *_: 8))
    monkeypatch.setattr(made, "log_dict", lambda figures: logged.update(figures))
    return logged


def test_a_step_of_the_optimiser(
    backbone: Path, gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = replace(collator(backbone, learn="label"), packing=True)
    made = loaded(backbone)
    batch = moved(made, batch_of(make, examples(3)), gpu)
    logged = in_training(made, monkeypatch)
    with gpu:
        optimizer: Any = made.configure_optimizers()["optimizer"]  # type: ignore[index]
        made.training_step(batch)
        for parameter in made.parameters():
            parameter.grad = torch.empty_like(parameter)
        made.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()
    assert {value.device for value in logged.values()} == {torch.device("cuda", 0)}
    assert optimizer.found_inf.device == torch.device("cuda", 0)
    last = made.watch.last()
    assert last is not None
    assert isinstance(last.ready, Moment)
    assert last.ready.calls == ["record"]
    with gpu, pytest.raises(DataDependentOutputException):
        last.read()
    assert last.ready.calls == ["record", "synchronize"]
