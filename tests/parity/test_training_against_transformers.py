"""A whole training run takes the steps that transformers' Trainer would, given its gradients."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup

from tests.examples import MODULE_SETTINGS, module
from tests.unit.test_module import fit

EPOCHS, STEPS, WARMUP = 3, 9, 0.3  # ten clips in global batches of four: three steps an epoch
LIMIT = 5.0  # of the gradient norm: some steps are clipped and some are not


class Steps(Callback):
    """Keeps each step's gradients, before clipping."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.backbone.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named})


def theirs(folder: Path, arguments: TrainingArguments) -> tuple[Any, Any, Any]:
    """The backbone, the Trainer's optimiser on it and its schedule, over all epochs."""
    backbone = module(folder).backbone
    rates = {
        name: MODULE_SETTINGS[
            f"{'merger_' if '.merger.' in name else 'vision_'}learning_rate"
            if ".visual." in name
            else "learning_rate"
        ]
        for name, _ in backbone.named_parameters()
    }
    groups = [
        {"params": [p], "lr": rates[name], "weight_decay": 0.1 if p.ndim > 1 else 0.0}
        for name, p in backbone.named_parameters()
    ]
    kind, defaults = Trainer.get_optimizer_cls_and_kwargs(arguments)
    assert kind is torch.optim.AdamW
    optimizer = kind(groups, **defaults)
    warmup = arguments.get_warmup_steps(STEPS)
    return backbone, optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, STEPS)


def test_optimiser_clipping_and_schedule_over_several_epochs(qwen: Path, tmp_path: Path) -> None:
    steps = Steps()
    trained = fit(
        qwen,
        tmp_path,
        steps,
        counts={"train": 10},
        model={"warmup_ratio": WARMUP},
        max_epochs=EPOCHS,
        gradient_clip_val=LIMIT,
    )
    assert len(steps.gradients) == STEPS
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, warmup_steps=WARMUP)
    backbone, optimizer, schedule = theirs(qwen, arguments)
    norms = []
    for gradients in steps.gradients:
        for name, parameter in backbone.named_parameters():
            parameter.grad = gradients[name].clone()
        norms.append(float(torch.nn.utils.clip_grad_norm_(backbone.parameters(), LIMIT)))
        optimizer.step()
        schedule.step()
    assert max(norms) > LIMIT > min(norms)
    for (name, ours), their in zip(
        trained.backbone.named_parameters(), backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, their, atol=1e-6, rtol=1e-6, msg=name)
