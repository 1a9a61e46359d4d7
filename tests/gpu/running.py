"""Checks of runs: what waits, what must not step, resuming, sharding, 4 bits and the true size."""

import shutil
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from benchmarks.cases import Findings, LeftOutError
from benchmarks.gpu_report import Training, release, train
from rbft.backbone.adapters import LoRA, base_note
from rbft.callbacks.handoff import StageHandoff
from rbft.module import RBFTModule
from rbft.training.checkpoints import StepCheckpoint
from rbft.training.fsdp2 import full_state
from tests.examples import CARD, MODULE_SETTINGS, module
from tests.gpu.world import (
    HALF,
    apart,
    ask,
    base,
    distance,
    fit,
    flags_kept,
    peak_gib,
    scores_of,
)
from tests.waits import Waits


class WatchSteps(Callback):
    """Notes what waits for the device, from the end of the first step to the end of training.

    On a GPU torch tells of itself, whoever waits: Lightning, transformers or rbft. On a processor
    operations that need values are seen, within the steps.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seen: list[str] = []
        self.steps = 0
        self._mode: Waits | None = None
        self._caught: warnings.catch_warnings | None = None

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.on_gpu and self.steps:
            self._mode = Waits(self.seen)
            self._mode.__enter__()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._leave()
        if self.on_gpu and not self.steps:
            self._caught = warnings.catch_warnings()
            self._caught.__enter__()
            warnings.simplefilter("always")
            warnings.showwarning = self._note
            torch.cuda.set_sync_debug_mode("warn")
        self.steps += 1

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.end()

    def end(self) -> None:
        """Stops watching."""
        self._leave()
        if self._caught is not None:
            torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            self._caught = None

    def _leave(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None

    def _note(self, message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" not in str(message):
            return
        frames = [
            f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"
            for frame in traceback.extract_stack()[:-2]
        ]
        self.seen.append(" < ".join(reversed(frames[-6:])))


def waits(found: Findings, device: torch.device, folder: Path) -> None:
    """Nothing on the way through real steps of `fit` waits for the device."""
    ways: dict[str, dict[str, Any]] = {
        "all weights": {},
        "checkpointing": {"gradient_checkpointing": True},
        "adapters and merger": {"lora": LoRA(rank=4, alpha=8), "vision_learning_rate": 0.0},
    }
    for name, settings in ways.items():
        watch = WatchSteps(device)
        try:
            fit(folder, device, watch, precision="bf16-mixed", **settings)
        finally:
            watch.end()
        found.note(f"{name}: micro-batches watched", watch.steps - 1)
        found.same(f"{name}: what waits", sorted(set(watch.seen)), [])


class Lost(Callback):
    """Makes the loss of the second step no number, and notes the weights before and at the end."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        self.message = "no error"

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1 and not self.before:
            self.before = weights_of(pl_module)
            losses = pl_module.losses
            pl_module.losses = lambda batch: (losses(batch)[0] * float("nan"), None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.after, self.message = weights_of(pl_module), str(exception)


def weights_of(made: Any) -> dict[str, Tensor]:
    """Copies of a module's parameters, on the processor."""
    return {name: p.detach().cpu().clone() for name, p in made.backbone.named_parameters()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether they are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def found_inf(found: Findings, device: torch.device, folder: Path) -> None:
    """A gradient that is not finite changes neither weights nor the optimiser's count of steps."""
    for dtype in (torch.float32, HALF):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(64, 64, device=device, dtype=dtype))
        optimizer: Any = torch.optim.AdamW([weight], lr=0.1, fused=True)
        weight.grad = torch.randn_like(weight)
        optimizer.found_inf = torch.zeros((), device=device)
        optimizer.step()
        before, count = weight.detach().clone(), float(optimizer.state[weight]["step"])
        weight.grad = torch.full_like(weight, float("nan"))
        optimizer.found_inf = torch.ones((), device=device)
        optimizer.step()
        name = str(dtype).removeprefix("torch.")
        found.same(f"{name}: weights are as they were", torch.equal(weight, before), True)
        found.same(f"{name}: steps counted", float(optimizer.state[weight]["step"]), count)
        moments = [optimizer.state[weight][key] for key in ("exp_avg", "exp_avg_sq")]
        finite = all(bool(moment.isfinite().all()) for moment in moments)
        found.same(f"{name}: moments are finite", finite, True)
    for precision in ("bf16-mixed", "bf16-true"):
        lost = Lost()
        with suppress(ValueError):
            fit(folder, device, lost, precision=precision)
        named = "of step 2 is not finite" in lost.message
        found.same(f"{precision}: the run ends and names the step", named, True)
        same = bool(lost.before) and equal(lost.after, lost.before)
        found.same(f"{precision}: weights are those before the step", same, True)


def deterministic(found: Findings, device: torch.device, folder: Path) -> None:
    """trainer.deterministic: two runs end with the same bits; without it that is only noted."""
    start = _start(folder)
    # With it first: what it asks of cuBLAS must be known before that is used.
    for mode, precision in product((True, False), ("32-true", "bf16-mixed")):
        how: dict[str, Any] = {"precision": precision, "run": {"deterministic": mode}}
        with flags_kept():
            ends = [weights_of(fit(folder, device, **how)[0]) for _ in range(2)]
        name = f"{precision}, deterministic {str(mode).lower()}"
        if mode:
            found.same(f"{name}: two runs are the same to the bit", equal(*ends), True)
        else:
            found.note(f"{name}: two runs are the same to the bit", equal(*ends))
        far = _way(ends[1], ends[0], start)
        found.note(f"{name}: two runs apart, as a share of their way", far)


def _start(folder: Path) -> dict[str, Tensor]:
    """The weights that training starts from."""
    return weights_of(module(base(folder)))


def _way(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Any) -> float:
    """How far two results are apart, as a share of how far training went."""
    way = {name: own.float() - start[name].float() for name, own in expected.items()}
    other = {name: found[name].float() - start[name].float() for name in expected}
    return distance(other, way)


def qlora(found: Findings, device: torch.device, folder: Path) -> None:
    """Adapters on weights in 4 bits: two steps, saved, opened again, the same scores."""
    if find_spec("bitsandbytes") is None:
        raise LeftOutError("bitsandbytes is not installed")
    precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    settings: dict[str, Any] = {"lora": LoRA(rank=4, alpha=8), "quantize": "4bit"}
    settings["vision_learning_rate"] = 0.0
    target = folder / "label/weights"
    made_from = {"base": base_note(str(base(folder))), "stages": ["label"]}
    made, _ = fit(
        folder,
        device,
        StageHandoff(target, made_from),
        precision=precision,
        clips={"train": 8},
        **settings,
    )
    kinds = [f"{type(part).__module__}.{type(part).__name__}" for part in made.backbone.modules()]
    stored = sum(kind.startswith("bitsandbytes") and "Linear4bit" in kind for kind in kinds)
    found.same("layers in 4 bits", stored, 7 * made.config.text_config.num_hidden_layers)
    found.note("peak GiB of training", peak_gib(device))
    how: dict[str, Any] = {"precision": precision, "batch": 4}
    before = scores_of(ask(folder, device, made, **how))
    settings = {**MODULE_SETTINGS, **settings}
    opened = RBFTModule(str(base(folder)), CARD, stage="label", weights=target, **settings)
    after = scores_of(ask(folder, device, opened, **how))
    limit = 1e-4 if precision == "32-true" else 2e-3
    found.at_most("scores of what was opened, apart", apart(after, before), limit)
    untrained = RBFTModule(str(base(folder)), CARD, stage="label", **settings)
    moved = apart(scores_of(ask(folder, device, untrained, **how)), before)
    found.note("scores of the base, apart", moved)
    found.same("training changed them", moved > 1e-3, True)


class KeepOne(Callback):
    """Copies the checkpoint of a step away before the next one takes its place."""

    def __init__(self, folder: Path, step: int) -> None:
        self.saved, self.kept = folder / f"step={step}.ckpt", folder.parent / "kept.ckpt"

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.saved.exists() and not self.kept.exists():
            shutil.copytree(self.saved, self.kept)


class WholeState(Callback):
    """Gathers all weights when training has ended, as the hand-off does."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.state = full_state(trainer.strategy) or {}


def fsdp2(found: Findings, device: torch.device, folder: Path) -> None:
    """FSDP2 in a group of one process (NCCL; gloo on a processor): train, score, save, resume."""
    found.same("needs a process of its own", torch.distributed.is_initialized(), False)
    start = _start(folder)
    clips = {"train": 12, "val": 2}
    # On a processor the recipes train so in 32 bits.
    for precision in ("32-true", "bf16-mixed") if device.type == "cuda" else ("bf16-mixed",):
        how: dict[str, Any] = {"precision": precision, "clips": clips}
        single = weights_of(fit(folder, device, **how)[0])
        ends, scores = [], []
        checkpoint = None
        for name in ("whole", "resumed"):
            saved = folder / precision / name / "checkpoints"
            keep, whole = KeepOne(saved, 1), WholeState()
            _, runner = fit(
                folder,
                device,
                StepCheckpoint(saved, 1),
                keep,
                whole,
                run={"strategy": "fsdp2", "enable_checkpointing": True},
                ckpt_path=checkpoint,
                **how,
            )
            found.same(f"{precision}, {name}: steps", runner.global_step, 3)
            ends.append({key: whole.state[key].cpu() for key in single})
            scores.append(runner.callback_metrics["val/loss"].float().cpu())
            checkpoint = keep.kept
        found.note(f"{precision}: backend", torch.distributed.get_backend())
        # AdamW makes steps of noise too, where a gradient is nothing else; and in half precision
        # FSDP2 rounds weights, one process what enters each product.
        limit = 0.15 if precision != "32-true" else 0.05
        far = _way(ends[0], single, start)
        found.at_most(f"{precision}: apart from one device, as a share of the way", far, limit)
        far = _way(ends[1], ends[0], start)
        found.at_most(f"{precision}: resumed, apart from the whole run", far, limit)
        found.at_most(
            f"{precision}: validation's loss, resumed", apart(scores[1], scores[0]), limit
        )
        kinds = {tensor.dtype for tensor in ends[0].values()}
        found.same(f"{precision}: kept in", sorted(map(str, kinds)), ["torch.float32"])
    torch.distributed.destroy_process_group()


def true_size(found: Findings, device: torch.device, folder: Path) -> None:
    """Adapters on 7B random weights, 2 x 60 frames, with and without checkpointing."""
    size, free = "tiny", float("inf")
    if device.type == "cuda":
        size, free = "7b", torch.cuda.mem_get_info()[0] / 2**30
    for checkpointing, needed in ((True, 40), (False, 90)):
        name = "checkpointing" if checkpointing else "no checkpointing"
        if free < needed:
            found.note(name, f"left out: it takes {needed} GiB of memory, and {free:.0f} are free")
            continue
        setting = Training(adapters=True, checkpointing=checkpointing, size=size, steps=3)
        own = Findings()
        train(own, device, folder / str(checkpointing), setting)
        for key in ("seconds a step", "peak GiB", "estimate GiB", "loss", "operators"):
            found.note(f"{name}: {key}", own.figures.get(key))
        found.wrong += [f"{name}: {wrong}" for wrong in own.wrong]
        release()
        if own.figures["peak GiB"] is not None:
            ratio = own.figures["peak GiB"] / own.figures["estimate GiB"]
            found.at_most(f"{name}: peak, as a share of the estimate", ratio, 1.15)
