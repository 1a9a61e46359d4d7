import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup

from rbft.backbone.family import FAMILIES
from rbft.backbone.loading import parameter_parts
from rbft.training.optim import cosine_schedule, parameter_groups
from tests.tiny import FAMILY_NAMES, FamilyName, tiny_model

RATES = {"language": 1e-5, "merger": 3e-5, "vision": 2e-6}
# Norms that the Trainer decays, because its patterns know "norm." and "_norm" but not these.
NORMS_MISSED_BY_TRAINER = {
    "qwen2_vl": set(),
    "qwen2_5_vl": {
        "model.visual.merger.ln_q.weight",
        *(f"model.visual.blocks.{block}.norm{n}.weight" for block in (0, 1) for n in (1, 2)),
    },
    "qwen3_vl": set(),
}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_decay_against_trainer(family: FamilyName) -> None:
    model = tiny_model(family)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(parameter_parts(model, FAMILIES[family]), RATES, 0.1)

    decayed = {names[id(p)] for g in groups if g["weight_decay"] == 0.1 for p in g["params"]}
    spared = {names[id(p)] for g in groups if g["weight_decay"] == 0.0 for p in g["params"]}
    theirs = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]

    assert decayed | spared == set(names.values())
    assert theirs - decayed == NORMS_MISSED_BY_TRAINER[family]
    assert decayed <= theirs
    norms = {f"{name}.weight" for name, m in model.named_modules() if "Norm" in type(m).__name__}
    assert spared == norms | {name for name in names.values() if name.endswith(".bias")}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_learning_rates_by_name(family: FamilyName) -> None:
    model = tiny_model(family)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(parameter_parts(model, FAMILIES[family]), RATES, 0.1)

    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            part = "language"
            if name.startswith("model.visual."):
                part = "merger" if "merger" in name else "vision"
            assert group["lr"] == RATES[part], name
            assert group["name"].startswith(part), name


@given(total=st.integers(1, 400), ratio=st.floats(0, 0.5))
@example(total=1, ratio=0.03)
@example(total=2, ratio=0.03)
@example(total=33, ratio=0.03)
@example(total=34, ratio=0.03)
@example(total=100, ratio=0.07)  # 7.000000000000001 steps are rounded up to 8, there as here
@example(total=5, ratio=0.0)
def test_schedule_against_transformers(total: int, ratio: float) -> None:
    arguments = TrainingArguments(output_dir=str(Path("unused")), use_cpu=True, warmup_steps=ratio)
    warmup = arguments.get_warmup_steps(total) if ratio else 0
    assert warmup == math.ceil(total * ratio)
    rates: list[list[float]] = []
    for theirs in (False, True):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-5)
        schedule = (
            get_cosine_schedule_with_warmup(optimizer, warmup, total)
            if theirs
            else cosine_schedule(optimizer, total, ratio)
        )
        seen = []
        for _ in range(total):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates.append([*seen, optimizer.param_groups[0]["lr"]])
    assert rates[0] == rates[1]
