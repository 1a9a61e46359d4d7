from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from rbft.callbacks.checks import TrainableParts
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Yard, fed, module, trainer


def fit(folder: Path, work: Path, *callbacks: Callback, **settings: Any) -> None:
    model = RBFTModule(str(folder), CARD, stage="label", **{**MODULE_SETTINGS, **settings})
    run = trainer(work, callbacks=list(callbacks))
    run.fit(model, fed(Yard(work / "card.yaml", {"train": 2}), model))


def test_the_table_at_the_start(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = TrainableParts()
    fit(backbone, tmp_path, check, vision_learning_rate=2e-6, learning_rate=1e-5)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[0] != "-"]
    assert rows[0] == ["part", "tensors", "parameters", "learning", "rate", "decay"]
    assert [(row[0], row[3], row[4]) for row in rows[1:]] == [
        ("language", "1e-05", "0.1"),
        ("language_no_decay", "1e-05", "0"),
        ("merger", "0.001", "0.1"),
        ("merger_no_decay", "0.001", "0"),
        ("vision", "2e-06", "0.1"),
        ("vision_no_decay", "2e-06", "0"),
    ]
    every = list(module(backbone).backbone.parameters())
    assert sum(int(row[1]) for row in rows[1:]) == len(every)
    assert sum(int(row[2].replace(",", "")) for row in rows[1:]) == sum(p.numel() for p in every)
    assert check.checked


class Cut(Callback):
    """Cuts the gradient's way from the language model to what comes before it."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        embed = pl_module.backbone.model.get_video_features

        def detached(*arguments: Any, **settings: Any) -> Any:
            with torch.no_grad():
                return embed(*arguments, **settings)

        pl_module.backbone.model.get_video_features = detached


def test_a_part_that_no_gradient_reaches_is_an_error(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No gradient reached") as error:
        fit(backbone, tmp_path, Cut(), TrainableParts())
    made = module(backbone)
    tensors = sum(
        made.family.part(name) == "merger" and p.ndim > 1
        for name, p in made.backbone.named_parameters()
    )
    assert str(error.value) == (
        f"No gradient reached the parameters of 'merger' ({tensors} tensors) in the first step, "
        "although they should train. Freeze the part on purpose (learning rate 0), or check "
        "adapters and freezing."
    )


def test_a_part_frozen_on_purpose_is_none(qwen: Path, tmp_path: Path) -> None:
    fit(
        qwen,
        tmp_path,
        Cut(),
        TrainableParts(),
        vision_learning_rate=0.0,
        merger_learning_rate=0.0,
    )


def test_a_gradient_of_zeros_is_none(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.zeros(2)
    optimizer = torch.optim.SGD([{"params": [weight], "name": "vision"}], lr=1.0)
    check, run, model = TrainableParts(), trainer(tmp_path), RBFTModule.__new__(RBFTModule)
    with pytest.raises(ValueError, match=r"^No gradient reached the parameters of 'vision' \(1 t"):
        check.on_before_optimizer_step(run, model, optimizer)
    # Only the first step is looked at: later a gradient may well vanish.
    check.on_before_optimizer_step(run, model, optimizer)
