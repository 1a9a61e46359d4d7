"""Neither the way from a batch to its loss nor the optimiser's step waits for the device.

Tensors without data stand for those of a GPU: whatever asks one for its values, which on a GPU
would wait for all that is queued, is an error. So is a mix of devices.
The backward pass cannot be run on them, and some kernels read values where those without data do
not: these show on tensors with data, where an operation whose result depends on values is an error.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rbft.backbone.attention as attention
from rbft.backbone.adapters import LoRA
from rbft.backbone.loading import parameter_parts
from rbft.batch import HOST, Batch, CachedFeatures, Transferable
from rbft.inference.classifier import Classified
from rbft.inference.generation import (
    decode,
    extend,
    greedy_decode,
    prefill,
    score_candidates,
)
from rbft.inference.sampling import Draw, RationaleSampling
from rbft.module import RBFTModule
from rbft.runtime.transfer import to_device
from rbft.stages import STAGES
from rbft.training.optim import freeze
from rbft.video.feature_cache import FeatureCache
from tests.examples import CARD, answer_of, batch_of, collator, examples, module, writing
from tests.flash import with_flash_attention
from tests.waits import Waits


class HostBounds(Tensor):
    """Stands for bounds in the processor's memory, whose values may be read."""

    def __new__(cls, values: list[int]) -> "HostBounds":
        made = Tensor._make_subclass(cls, torch.tensor(values, dtype=torch.int32))
        made.known = values
        return made

    known: list[int]

    def diff(self) -> "HostGrids":  # type: ignore[override]
        return HostGrids([end - start for start, end in pairwise(self.known)])

    def __getitem__(self, part: slice) -> "HostBounds":  # type: ignore[override]
        return HostBounds(self.known[part])

    def __sub__(self, other: "HostBounds") -> "HostGrids":  # type: ignore[override]
        return HostGrids([one - two for one, two in zip(self.known, other.known, strict=True)])


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
    assert there.video["video_grid_thw"] is batch.video["video_grid_thw"]  # it stays
    return on_host(there)


def on_host(batch: Batch) -> Batch:
    """The batch with stand-ins for what stays in the processor's memory."""
    grids = HostGrids(batch.video["video_grid_thw"].tolist())
    bounds = {name: held for name, held in batch.tower.items() if name in HOST}
    assert bounds or not batch.tower
    tower = {name: HostBounds(held.tolist()) for name, held in bounds.items()}
    return replace(
        batch, video={**batch.video, "video_grid_thw": grids}, tower={**batch.tower, **tower}
    )


def loaded(backbone: Path, stage: str = "label") -> RBFTModule:
    """A module with what it does on a GPU alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return module(backbone, stage=stage).train()


class Copies(TorchDispatchMode):
    """Refuses copies from the processor's memory to the device that the host would wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = torch.device(kwargs.get("device") or "cpu").type
        moves = func is torch.ops.aten._to_copy.default and there == "cuda" != args[0].device.type
        if moves and args[0].numel():  # of nothing there is no copy
            assert kwargs.get("non_blocking"), "a copy is waited for"
        return func(*args, **kwargs)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("stage", ["rationale", "label"])
def test_a_step_forward(backbone: Path, gpu: FakeTensorMode, stage: str, packing: bool) -> None:
    make = replace(collator(backbone, target_stage=stage), packing=packing)
    made = loaded(backbone, stage)
    batch = moved(made, batch_of(make, examples(3)), gpu)
    with gpu, Copies():
        loss = made.loss(batch)
    assert loss.device == torch.device("cuda", 0)
    assert loss.requires_grad


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("stage", ["label", "rationale_class"])
@torch.no_grad()
def test_scoring(backbone: Path, gpu: FakeTensorMode, stage: str, packing: bool) -> None:
    """From the prompts to the scores, behind a text of the model's own; one prompt and two."""
    make = collator(backbone, prompt_stage=stage, packing=packing)
    make = replace(make, extra_prompts=((STAGES["rationale"], CARD),))
    made = loaded(backbone, stage).eval()
    batch = moved(made, make(examples(3)), gpu)
    assert batch.prompt is not None
    answers = [[64, 292, 376], [269, 376], [376]]
    with gpu, Copies():
        for prompts in ([batch.prompt], [batch.prompt, *batch.extra_prompts]):
            shared = batch.shared if len(prompts) > 1 else ()
            for read in prefill(made.backbone, prompts, made.vision(batch), shared):
                behind = extend(made.backbone, read.copy(), [[64, 71, 198], [75], []])
                for one in (read, behind):
                    scores = score_candidates(made.backbone, one, answers)
                    assert scores.device == torch.device("cuda", 0)
                    assert Classified.by_scores(scores, [""] * 3).prediction.shape == (3,)


def test_what_copies_would_be_waited_for(gpu: FakeTensorMode) -> None:
    cuda = torch.device("cuda", 0)
    with gpu, Copies():
        assert to_device([1, 2], cuda).device == cuda
        with pytest.raises(AssertionError, match="a copy is waited for"):
            torch.tensor([1, 2], device=cuda)
        with pytest.raises(AssertionError, match="a copy is waited for"):
            torch.zeros(2).to(cuda)


@pytest.mark.parametrize("waits", ["tower", "check"])
def test_what_would_wait(
    backbone: Path, gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    """What transformers does of itself, so that the test above is not empty."""
    make = replace(collator(backbone, target_stage="label"), packing=True)
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
    with gpu, pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        made.loss(batch)


def without_places(batch: Batch) -> Batch:
    return replace(batch, answer=replace(answer_of(batch), video_indices=None))


class Reads(TorchFunctionMode):
    """Counts what hands values to Python without an operation: lists and arrays of them."""

    def __init__(self, allowed: int = 0) -> None:
        super().__init__()
        self.left = allowed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError(f"waits in Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waits(reads: int = 0) -> Iterator[Reads]:
    """Refuses to wait on tensors with data, but for so many lists of values."""
    with Waits(), Reads(reads) as counted:
        yield counted


SETTINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "checkpointed": {"gradient_checkpointing": True},
    "merger": {"vision_learning_rate": 0.0},
    "language": {"vision_learning_rate": 0.0, "merger_learning_rate": 0.0},
    "adapters": {"lora": LoRA(rank=4), "vision_learning_rate": 0.0},
}


@pytest.mark.parametrize("stage", ["rationale", "label"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_whole_step_on_tensors_with_data(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, name: str, packing: bool, stage: str
) -> None:
    """Forward, backward, clipping, and the optimiser's step."""
    made = module(backbone, stage, **SETTINGS[name]).train()
    whole_step(made, backbone, monkeypatch, packing, stage)


def whole_step(
    made: RBFTModule, folder: Path, monkeypatch: pytest.MonkeyPatch, packing: bool, stage: str
) -> None:
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    batch = on_host(batch_of(collator(folder, target_stage=stage, packing=packing), examples(3)))
    in_training(made, monkeypatch)
    freeze(parameter_parts(made.backbone, made.family), made.learning_rates)
    optimizer: Any = made.configure_optimizers()["optimizer"]  # type: ignore[index]
    trained = {n: p for n, p in made.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    attention._groups.cache_clear()
    with no_waits():
        made.training_step(batch).backward()
        made.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()
    assert trained
    assert all((parameter != before[name]).any() for name, parameter in trained.items())


class Count(TorchDispatchMode):
    """Counts the single values that are read."""

    read = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read += func.overloadpacket is torch.ops.aten._local_scalar_dense
        return func(*args, **(kwargs or {}))


def test_the_gradient_scaler_reads_once_a_step(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`16-mixed` is the exception: torch's scaler asks whether gradients have overflowed."""
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    made = module(qwen).train()
    batch = on_host(batch_of(collator(qwen, target_stage="label", packing=True), examples(3)))
    in_training(made, monkeypatch, precision="16-mixed")
    optimizer: Any = made.configure_optimizers()["optimizer"]  # type: ignore[index]
    steps: list[int] = []
    monkeypatch.setattr(optimizer, "step", lambda: steps.append(1))
    scaler = torch.amp.GradScaler("cpu")
    with Count() as count:
        scaler.scale(made.training_step(batch)).backward()
        scaler.unscale_(optimizer)
        made.configure_gradient_clipping(optimizer, 1.0)
        assert count.read == 0
        scaler.step(optimizer)
        scaler.update()
    assert count.read == len(steps) == 1


@pytest.mark.parametrize("stage", ["rationale", "label"])
def test_a_whole_step_of_eager_attention(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    made = module(backbone, stage, attention="eager").train()
    whole_step(made, backbone, monkeypatch, False, stage)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_a_whole_step_of_flash_attention_2(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    made, varlen = with_flash_attention(backbone, monkeypatch, reads=False)
    calls = varlen.calls
    whole_step(made.train(), backbone, monkeypatch, packing, "label")
    assert varlen.calls - calls == made.config.vision_config.depth + (
        made.config.text_config.num_hidden_layers if packing else 0
    )


@pytest.mark.parametrize("stage", ["label", "rationale_class"])
@pytest.mark.parametrize("attended", ["packed", "padded", "eager", "flash"])
@torch.no_grad()
def test_scoring_on_tensors_with_data(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, stage: str, attended: str
) -> None:
    """From the prompts to the scores, with a text of the model's own between them; two prompts."""
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    if attended == "flash":
        made, _ = with_flash_attention(backbone, monkeypatch, reads=False)
    else:
        made = module(backbone, attention="eager" if attended == "eager" else "sdpa")
    make = collator(backbone, prompt_stage=stage, packing=attended in ("packed", "flash"))
    make = replace(make, extra_prompts=((STAGES["rationale"], CARD),))
    # Padded rows of flash-attention 2 are packed by transformers, in every block.
    clips = examples(1) * 3 if attended == "flash" else examples(3)
    batch = on_host(make(clips))
    assert batch.prompt is not None
    written = [[64, 71]] * 3 if attended == "flash" else [[64, 71, 198], [75], []]
    attention._groups.cache_clear()
    found = None
    with no_waits():
        for prompts in ([batch.prompt], [batch.prompt, *batch.extra_prompts]):
            shared = batch.shared if len(prompts) > 1 else ()
            for read in prefill(made.backbone, prompts, made.vision(batch), shared):
                read = extend(made.backbone, read, written)
                scores = score_candidates(made.backbone, read, [[64, 292, 376], [269, 376], [376]])
                found = Classified.by_scores(scores, [""] * 3)
    assert found is not None
    assert found.prediction.shape == (3,)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_writing_reads_once_a_token(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, packing: bool, drawn: bool
) -> None:
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    made = module(backbone)
    batch = on_host(collator(backbone, prompt_stage="rationale", packing=packing)(examples(4)))
    assert batch.prompt is not None
    settings = writing(backbone, 5, eos_token_id=[-1])
    with no_waits(reads=5) as counted:
        (read,) = prefill(made.backbone, [batch.prompt], made.vision(batch))
        if drawn:
            draw = Draw(
                RationaleSampling(top_p=0.9, top_k=20), [bytes([clip]) for clip in range(4)]
            )
            decode(made.backbone, read, settings, draw)
        else:
            greedy_decode(made.backbone, read, settings)
    assert counted.left == 0


def test_a_step_from_kept_features(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = replace(collator(backbone, target_stage="label"), packing=True)
    batch, made = batch_of(make, examples(3)), module(backbone, vision_learning_rate=0.0).train()
    expected = made.loss(batch).detach()
    cache = FeatureCache(tmp_path, 1 << 30)
    monkeypatch.setattr(RBFTModule, "data", SimpleNamespace(feature_cache=cache))
    batch = replace(batch, cached=CachedFeatures([None] * 3, ["a", "b", "c"], [1.0] * 3), tower={})
    made.vision(batch)  # fills the batch; the host writes the features to disk
    with no_waits():
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
    batch = batch_of(replace(collator(backbone, target_stage="label"), packing=True), examples(3))
    batch = without_places(batch)
    if waits == "forward":  # it prints a number into a message that nobody sees
        with Waits(), pytest.raises(RuntimeError, match=r"^waits in aten\._local_scalar_dense"):
            made.loss(batch)
        return
    loss = made.loss(batch)
    with Waits(), pytest.raises(RuntimeError, match=r"^waits in aten\.masked_scatter_backward"):
        loss.backward()


def test_batches_move_to_a_gpu_without_waiting(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = replace(collator(qwen, target_stage="label", prompt_stage="label"), packing=True)
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


def in_training(
    made: RBFTModule, monkeypatch: pytest.MonkeyPatch, precision: str = "bf16-mixed"
) -> dict[str, Tensor]:
    """Gives the module what it asks of a Trainer when it steps; returns what it logs."""
    logged: dict[str, Tensor] = {}
    facts = {"world_size": 1, "accumulate_grad_batches": 1, "global_step": 4, "max_epochs": 1}
    run = Mock(spec=Trainer, precision=precision, strategy=None, **facts)
    monkeypatch.setattr(torch, "Event", Moment)
    monkeypatch.setattr(RBFTModule, "trainer", run)
    monkeypatch.setattr(RBFTModule, "data", SimpleNamespace(steps=lambda *_: 8))
    monkeypatch.setattr(made, "log_dict", lambda figures: logged.update(figures))
    return logged


def test_a_step_of_the_optimiser(
    backbone: Path, gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = replace(collator(backbone, target_stage="label"), packing=True)
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
    last = made.monitor._closed
    assert last is not None
    assert isinstance(last.ready, Moment)
    assert last.ready.calls == ["record"]
    with gpu, pytest.raises(DataDependentOutputException):
        last.read()
    assert last.ready.calls == ["record", "synchronize"]
