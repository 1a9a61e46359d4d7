"""What the checks share: a tiny backbone, steps and runs on a device, how far results differ."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from rbft.backbone_module import BackboneModule
from rbft.batch import Batch
from rbft.inference.classifier import Classified
from rbft.module import RBFTModule
from rbft.rationale_module import RationaleModule
from rbft.runtime.fault_tolerance import take_signals
from tests.examples import (
    CARD,
    MODULE_SETTINGS,
    Yard,
    batch_of,
    collator,
    examples,
    fed,
    module,
    trainer,
)
from tests.tiny import tiny_backbone

Numbers = dict[str, Tensor]
HALF = torch.bfloat16


def base(folder: Path) -> Path:
    """The tiny Qwen2.5-VL in a folder, made once."""
    made = folder / "base"
    return made if made.exists() else tiny_backbone(made)


def half(device: torch.device, wanted: bool = True) -> AbstractContextManager[Any]:
    """Products in bfloat16 and weights as they are, as in bf16-mixed."""
    return torch.autocast(device.type, HALF) if wanted else nullcontext()


@contextmanager
def flags_kept() -> Iterator[None]:
    """Leaves torch's choice of kernels as it was."""
    cudnn, mode = torch.backends.cuda.cudnn_sdp_enabled(), torch.get_deterministic_debug_mode()
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        torch.set_deterministic_debug_mode(mode)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> float | None:
    """Highest memory that tensors took, since it was last reset."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def make_batch(folder: Path, device: torch.device, clips: int, *, packing: bool) -> Batch:
    """Clips of different lengths, their class words as answers, and what asks for the class."""
    make = replace(
        collator(base(folder), target_stage="label", prompt_stage="label"), packing=packing
    )
    return batch_of(make, examples(clips)).to(device)


def step(made: RBFTModule, batch: Batch, *, bf16: bool = False) -> tuple[Tensor, Numbers, Tensor]:
    """Loss and gradients of a training step, and the class scores, all on the processor."""
    made.zero_grad()
    made.train()
    with half(batch.label.device, bf16):
        loss = made.loss(batch)
    loss.backward()
    named = made.backbone.named_parameters()
    gradients = {name: p.grad.float().cpu() for name, p in named if p.grad is not None}
    made.eval()
    with half(batch.label.device, bf16):
        scores = made.classify(batch).scores
    assert scores is not None
    return loss.detach().float().cpu(), gradients, scores.float().cpu()


def fresh(folder: Path, device: torch.device, **settings: Any) -> RBFTModule:
    """A module of the label stage with its weights on the device."""
    made = module(base(folder), **settings)
    made.to(device)
    return made


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Norm of the difference over all tensors, as a share of the norm of what is expected."""
    assert found.keys() == expected.keys()
    squares = [
        torch.stack(
            [(found[name].double() - own.double()).square().sum(), own.double().square().sum()]
        )
        for name, own in expected.items()
    ]
    apart, whole = torch.stack(squares).sum(0).sqrt().tolist()
    return apart / whole


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest of what is expected."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def make_trainer(
    folder: Path, device: torch.device, *callbacks: Callback, **settings: Any
) -> Trainer:
    """Lightning's Trainer on the device, with signals handled as in a run."""
    kind = "gpu" if device.type == "cuda" else "cpu"
    made = trainer(folder, accelerator=kind, callbacks=list(callbacks), **settings)
    take_signals(made)
    return made


def fit(
    folder: Path,
    device: torch.device,
    *callbacks: Callback,
    precision: str = "32-true",
    clips: Mapping[str, int] | None = None,
    ckpt_path: Any = None,
    run: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[RBFTModule, Trainer]:
    """Trains the label stage on random clips.

    Args:
        folder: Holds the backbone.
        device: The device.
        *callbacks: The Trainer's.
        precision: The Trainer's.
        clips: Number of clips of each split; 12 to train on, which are three steps, by default.
        ckpt_path: Checkpoint to resume from.
        run: Further settings of the Trainer.
        **settings: Of the module.
    """
    data = Yard(folder / "card.yaml", dict(clips or {"train": 12}), batch_size=2)
    made = RBFTModule(str(base(folder)), CARD, stage="label", **{**MODULE_SETTINGS, **settings})
    how = {"accumulate_grad_batches": data.accumulation(1), **(run or {})}
    runner = make_trainer(folder, device, *callbacks, precision=precision, **how)
    with warnings.catch_warnings():
        # Lightning's advice on loaders and checkpoints, which concerns no one here.
        warnings.simplefilter("ignore")
        runner.fit(made, fed(data, made), ckpt_path=ckpt_path)
    return made, runner


def predict(
    folder: Path,
    device: torch.device,
    stage: str,
    *,
    precision: str,
    batch: int,
    clips: int = 4,
    **settings: Any,
) -> tuple[BackboneModule, list[Any]]:
    """What the backbone says about random clips, asked as in a run: padded batches of `batch`.

    Returns:
        The module, and what `predict_step` returned for each batch, longest clips first.
    """
    model = RBFTModule(str(base(folder)), CARD, stage=stage, **{**MODULE_SETTINGS, **settings})
    made: BackboneModule = model
    if stage == "rationale":
        longest = model.max_new_tokens
        made = RationaleModule(model.loader, [CARD], longest, packing=model.packing)
    return made, ask(folder, device, made, precision=precision, batch=batch, clips=clips)


def ask(
    folder: Path,
    device: torch.device,
    made: BackboneModule,
    *,
    precision: str,
    batch: int,
    clips: int = 4,
) -> list[Any]:
    """See `predict`; of a module that may have its weights already."""
    data = Yard(folder / "card.yaml", {"test": clips}, eval_batch_size=batch)
    data.feed = replace(data.feed, predict_clips=data.clips("test"))
    runner = make_trainer(folder, device, precision=precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runner.predict(made, fed(data, made)) or []


def scores_of(said: list[Classified]) -> Tensor:
    """The scores of all clips."""
    return torch.cat([own.scores.float().cpu() for own in said if own.scores is not None])


def texts_of(said: list[Any]) -> list[list[int]]:
    """Token ids of all clips' first text."""
    return [ids for prompts in said for ids in prompts[0].ids]


def share_same(found: list[list[int]], expected: list[list[int]]) -> float:
    """Share of the tokens that are the same at the same place."""
    pairs = [
        one == other
        for mine, theirs in zip(found, expected, strict=True)
        for one, other in zip(mine, theirs, strict=False)
    ]
    longest = sum(max(len(a), len(b)) for a, b in zip(found, expected, strict=True))
    return sum(pairs) / longest
