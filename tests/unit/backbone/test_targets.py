"""Which layers have adapters: names, expressions, blocks, and what is said of others."""

import re
from pathlib import Path
from typing import Any

import pytest

from rbft.backbone.adapters import LoRA
from rbft.backbone.loading import load_config
from rbft.backbone.qwen2_vl import TARGETS
from rbft.backbone.targets import check_layers, linear_layers, target_pattern
from tests.tiny import tiny_config

ALL = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
SAID = f"Its linear layers are {', '.join(ALL)}."


@pytest.fixture(scope="module")
def names(backbones: dict[str, Path]) -> list[str]:
    return linear_layers(load_config(str(backbones["qwen2_5_vl"]))[0])


@pytest.mark.parametrize(
    ("modules", "layers", "expected"),
    [
        (None, None, {0: ALL, 1: ALL}),
        ("all-linear", None, {0: ALL, 1: ALL}),
        (["q_proj", "v_proj"], None, {0: (ALL[0], ALL[2]), 1: (ALL[0], ALL[2])}),
        # The vision tower has a gate_proj too.
        (["gate_proj", "self_attn.o_proj"], [1], {1: (ALL[3], ALL[4])}),
        (["model.language_model.layers.0.mlp.up_proj"], None, {0: (ALL[5],)}),
        (r".*self_attn\.(q|k)_proj|.*1.*down_proj", None, {0: ALL[:2], 1: (*ALL[:2], ALL[6])}),
        (r".*layers\.0|.*up_proj", None, {0: ALL[5:6], 1: ALL[5:6]}),
        (".*", [0], {0: ALL}),
    ],
)
def test_the_layers_that_are_meant(
    names: list[str], modules: Any, layers: Any, expected: dict[int, tuple[str, ...]]
) -> None:
    lora = LoRA(target_modules=modules, layers_to_transform=layers)
    check_layers(names, TARGETS, modules, layers)
    assert [name for name in names if re.fullmatch(lora.targets(TARGETS), name)] == [
        f"model.language_model.layers.{block}.{end}"
        for block, ends in expected.items()
        for end in ends
    ]


def test_experts_are_no_layers_of_their_own() -> None:
    names = linear_layers(tiny_config("qwen3_vl_moe"))
    for name in ("gate_proj", "gate"):  # of an expert, and what chooses the experts
        with pytest.raises(ValueError, match="no linear layer") as error:
            check_layers(names, TARGETS, [name], None)
        assert str(error.value) == (
            f"model.lora.target_modules names '{name}', which is no linear layer of the language "
            "model's blocks. Its linear layers are self_attn.q_proj, self_attn.k_proj, "
            "self_attn.v_proj, self_attn.o_proj."
        )


def test_names_and_numbers_are_whole_ones() -> None:
    lora = LoRA(target_modules=["q_proj"], layers_to_transform=[1])
    block = "model.language_model.layers"
    assert re.fullmatch(lora.targets(TARGETS), f"{block}.1.self_attn.q_proj")
    for other in (f"{block}.11.self_attn.q_proj", f"{block}.1.self_attn.k_proj"):
        assert not re.fullmatch(lora.targets(TARGETS), other)
    assert not re.fullmatch(target_pattern(".*", ["proj"], None), f"{block}.1.self_attn.q_proj")
    assert not re.fullmatch(target_pattern(".*", ["q.proj"], None), f"{block}.1.self_attn.q_proj")


def test_without_a_choice_the_expression_is_the_family_s() -> None:
    for lora in (LoRA(), LoRA(target_modules="all-linear")):
        assert lora.targets(TARGETS) == TARGETS


@pytest.mark.parametrize(
    ("modules", "layers", "message"),
    [
        (
            [],
            None,
            "model.lora.target_modules [] names no layer. Give names, [q_proj, v_proj], or null "
            "for all linear layers of the language model's blocks.",
        ),
        (
            ["q_proj", ""],
            None,
            "model.lora.target_modules ['q_proj', ''] names no layer. Give names, [q_proj, "
            "v_proj], or null for all linear layers of the language model's blocks.",
        ),
        (
            "(q",
            None,
            "model.lora.target_modules '(q' is no regular expression: missing ), unterminated "
            "subpattern at position 0. Give one of the whole name of a layer, or a list of names, "
            "[q_proj, v_proj].",
        ),
        (
            None,
            [0, -1],
            "model.lora.layers_to_transform [0, -1] must be numbers of blocks, counted from 0; "
            "null takes all.",
        ),
        (
            None,
            [],
            "model.lora.layers_to_transform [] must be numbers of blocks, counted from 0; null "
            "takes all.",
        ),
    ],
)
def test_a_choice_that_is_none_on_any_backbone(modules: Any, layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match="lora") as error:
        LoRA(target_modules=modules, layers_to_transform=layers)
    assert str(error.value) == message


ELSEWHERE = ", only of the vision tower or the head, which have no adapters"
EXAMPLE = "(such a name: model.language_model.layers.0.self_attn.q_proj)"


@pytest.mark.parametrize(
    ("modules", "layers", "message"),
    [
        (
            ["q_proj", "qproj"],
            None,
            "model.lora.target_modules names 'qproj', which is no linear layer of the language "
            f"model's blocks. {SAID}",
        ),
        (
            ["qkv"],
            None,
            "model.lora.target_modules names 'qkv', which is no linear layer of the language "
            f"model's blocks{ELSEWHERE}. {SAID}",
        ),
        (
            "q_proj",
            None,
            "model.lora.target_modules 'q_proj' matches the whole name of no linear layer of the "
            f"language model's blocks {EXAMPLE}. {SAID} To name some of them, give a list: "
            "[q_proj, v_proj].",
        ),
        (
            ".*qkv|lm_head",
            None,
            "model.lora.target_modules '.*qkv|lm_head' matches the whole name of no linear layer "
            f"of the language model's blocks{ELSEWHERE} {EXAMPLE}. {SAID} To name some of them, "
            "give a list: [q_proj, v_proj].",
        ),
        (
            ["q_proj"],
            [0, 2],
            "model.lora.layers_to_transform names block 2, but the language model has the blocks "
            "0 to 1.",
        ),
    ],
)
def test_what_the_blocks_do_not_have(
    names: list[str], modules: Any, layers: Any, message: str
) -> None:
    with pytest.raises(ValueError, match="lora") as error:
        check_layers(names, TARGETS, modules, layers)
    assert str(error.value) == message
