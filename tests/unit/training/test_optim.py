import re
from typing import Any

import pytest
import torch
from torch import nn

from rbft.training.optim import cosine_schedule, parameter_groups, parameter_table


def make_parts() -> dict[str, list[tuple[str, nn.Parameter]]]:
    def part(*shapes: tuple[int, ...]) -> list[tuple[str, nn.Parameter]]:
        return [(f"p{i}", nn.Parameter(torch.zeros(shape))) for i, shape in enumerate(shapes)]

    return {"language": part((3, 4), (4,), (1000, 2)), "merger": part((2, 2)), "vision": part((5,))}


RATES = {"language": 1e-5, "merger": 2e-5, "vision": 2e-6}


def summary(groups: list[dict[str, Any]]) -> list[tuple[str, int, float, float]]:
    return [(g["name"], len(g["params"]), g["lr"], g["weight_decay"]) for g in groups]


def test_groups() -> None:
    groups = parameter_groups(make_parts(), RATES, 0.1)

    assert summary(groups) == [
        ("language", 2, 1e-5, 0.1),
        ("language_no_decay", 1, 1e-5, 0.0),
        ("merger", 1, 2e-5, 0.1),
        ("vision_no_decay", 1, 2e-6, 0.0),
    ]
    torch.optim.AdamW(groups)


def test_a_learning_rate_of_0_freezes() -> None:
    parts = make_parts()
    groups = parameter_groups(parts, RATES | {"language": 0.0}, 0.1)

    assert [g["name"] for g in groups] == ["merger", "vision_no_decay"]
    assert not any(parameter.requires_grad for _, parameter in parts["language"])
    assert all(parameter.requires_grad for _, parameter in parts["vision"])


def test_what_is_frozen_already_stays_out() -> None:
    parts = make_parts()
    for _, parameter in parts["language"]:
        parameter.requires_grad_(False)

    assert [g["name"] for g in parameter_groups(parts, RATES, 0.1)] == ["merger", "vision_no_decay"]


def test_nothing_to_train() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "Nothing would train: language, merger, vision are all frozen. Set model.learning_rate "
            "above 0."
        ),
    ):
        parameter_groups(make_parts(), dict.fromkeys(RATES, 0.0), 0.1)


def test_negative_learning_rate() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "The learning rate of the merger part is -1e-05. It must be positive, or 0 to freeze "
            "the part."
        ),
    ):
        parameter_groups(make_parts(), RATES | {"merger": -1e-5}, 0.1)


def test_schedule_of_a_few_steps() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cosine_schedule(optimizer, total_steps=6, warmup_ratio=0.3)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    assert rates == pytest.approx([0, 0.5, 1, 0.5 + 0.5 * 0.5**0.5, 0.5, 0.5 - 0.5 * 0.5**0.5, 0])


def test_schedule_goes_on_after_a_restart() -> None:
    def start() -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, cosine_schedule(optimizer, total_steps=10, warmup_ratio=0.1)

    optimizer, schedule = start()
    for _ in range(4):
        optimizer.step()
        schedule.step()
    again, resumed = start()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for both in ((optimizer, schedule), (again, resumed)):
        both[0].step()
        both[1].step()

    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_table() -> None:
    parts = make_parts()
    optimizer = torch.optim.AdamW(parameter_groups(parts, RATES | {"merger": 0.0}, 0.1))
    cosine_schedule(optimizer, 100, 0.03)  # the learning rate shown is not that of the first step

    headers, rows = parameter_table(optimizer.param_groups, parts)

    assert headers == ["part", "tensors", "parameters", "learning rate", "decay"]
    assert rows == [
        ["language", "2", "2,012", "1e-05", "0.1"],
        ["language_no_decay", "1", "4", "1e-05", "0"],
        ["vision_no_decay", "1", "5", "2e-06", "0"],
        ["merger", "1", "4", "frozen", "-"],
    ]
    assert parameter_table(optimizer.param_groups, {})[1] == rows[:3]
