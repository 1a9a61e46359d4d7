"""Neither the way from a batch to its loss nor the optimiser's step waits for the device.

Tensors without data stand for those of a GPU: whatever asks one for its values, which on a GPU
would wait for all that is queued, is an error. So is a mix of devices.
The backward pass cannot be run on them, and some kernels read values where those without data do
not: these show on tensors with data, where an operation whose result depends on values is an error.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import rbft.backbone.attention as attention
from rbft.backbone.adapters import LoRA
from rbft.collator import Batch, Kept, Transferable
from rbft.module import RBFTModule
from rbft.video.feature_cache import FeatureCache
from tests.examples import answer_of, batch_of, collator, examples, module
from tests.waits import Waits


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
        batch = without_places(batch)
    else:
        grids = batch.video["video_grid_thw"].tolist()
        with gpu:
            batch.video["video_grid_thw"] = torch.tensor(grids, device="cuda")
        batch = replace(batch, tower={})
    with gpu, pytest.raises(DataDependentOutputException):
        made.loss(batch)


def without_places(batch: Batch) -> Batch:
    return replace(batch, answer=replace(answer_of(batch), places=None))


SETTINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "checkpointed": {"gradient_checkpointing": True},
    "merger": {"vision_learning_rate": 0.0},
    "language": {"vision_learning_rate": 0.0, "merger_learning_rate": 0.0},
    "adapters": {"lora": LoRA(rank=4), "vision_learning_rate": 0.0},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_forward_and_backward_on_tensors_with_data(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    made = module(backbone, **SETTINGS[name]).train()
    batch = batch_of(replace(collator(backbone, learn="label"), packing=True), examples(3))
    with Waits():
        made.loss(batch).backward()
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)


def test_a_step_from_kept_features(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = replace(collator(backbone, learn="label"), packing=True)
    batch, made = batch_of(make, examples(3)), module(backbone, vision_learning_rate=0.0).train()
    expected = made.loss(batch).detach()
    cache = FeatureCache(tmp_path, 1 << 30)
    monkeypatch.setattr(RBFTModule, "data", SimpleNamespace(feature_cache=cache))
    batch = replace(batch, kept=Kept([None] * 3, ["a", "b", "c"], [1.0] * 3), tower={})
    made.vision(batch)  # fills the batch; the host writes the features to disk
    with Waits():
        loss = made.loss(batch)
        loss.backward()
    torch.testing.assert_close(loss.detach(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("waits", ["forward", "backward"])
def test_what_would_wait_on_tensors_with_data(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    """What transformers does with video tokens whose places it is not told."""
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    made = module(backbone).train()
    batch = batch_of(replace(collator(backbone, learn="label"), packing=True), examples(3))
    batch = without_places(batch)
    if waits == "forward":  # it prints a number into a message that nobody sees
        with Waits(), pytest.raises(RuntimeError, match=r"^waits in aten\._local_scalar_dense"):
            made.loss(batch)
        return
    loss = made.loss(batch)
    with Waits(), pytest.raises(RuntimeError, match=r"^waits in aten\.masked_scatter_backward"):
        loss.backward()


def test_batches_move_to_a_gpu_without_waiting(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = replace(collator(qwen, learn="label", ask="label"), packing=True)
    batch, moves = batch_of(make, examples(2)), []

    def move(tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        moves.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "to", move)
    for kind in ("cuda", "cpu"):
        moves.clear()
        move_data_to_device(batch, torch.device(kind))  # as Lightning does it
        assert moves == [(kind, kind == "cuda")] * len(moves)
        assert len(moves) > 16
    moves.clear()
    batch.to(torch.device("cuda"), non_blocking=False)
    assert {non_blocking for _, non_blocking in moves} == {False}


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
