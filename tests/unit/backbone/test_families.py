from pathlib import Path

import pytest
import torch

from rbft.backbone.family import FAMILIES, Family
from rbft.backbone.loading import load_config, load_model
from rbft.video.times import pair_times
from tests.tiny import FAMILY_NAMES, FamilyName

VIDEO = 383


def test_the_families_are_known_by_their_model_type() -> None:
    assert set(FAMILIES) == {*FAMILY_NAMES, "qwen3_vl_moe", "qwen3_5"}
    for name, family in FAMILIES.items():
        assert family.model_type == name
        assert isinstance(family, Family)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.visual.blocks.0.attn.qkv.weight", "vision"),
        ("model.visual.patch_embed.proj.weight", "vision"),
        ("model.visual.merger.mlp.0.weight", "merger"),
        ("model.visual.merger.ln_q.weight", "merger"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "language"),
        ("model.language_model.embed_tokens.weight", "language"),
        ("lm_head.weight", "language"),
        # Wrapped, as adapters and sharding do.
        ("base_model.model.model.visual.merger.mlp.0.weight", "merger"),
        ("base_model.model.model.language_model.layers.0.lora_A.default.weight", "language"),
    ],
)
def test_the_part_of_a_parameter(family: FamilyName, name: str, part: str) -> None:
    assert FAMILIES[family].part(name) == part


@pytest.mark.parametrize(
    ("family", "seconds", "positions"),
    [
        # Qwen2-VL counts frame pairs, Qwen2.5-VL two positions a second.
        ("qwen2_vl", 2.0, [[0, 1, 2, 3, 4], [0, 1, 1, 1, 4], [0, 1, 1, 1, 4]]),
        ("qwen2_vl", 0.5, [[0, 1, 2, 3, 4], [0, 1, 1, 1, 4], [0, 1, 1, 1, 4]]),
        ("qwen2_5_vl", 2.0, [[0, 1, 5, 9, 10], [0, 1, 1, 1, 10], [0, 1, 1, 1, 10]]),
        ("qwen2_5_vl", 0.5, [[0, 1, 2, 3, 4], [0, 1, 1, 1, 4], [0, 1, 1, 1, 4]]),
    ],
)
def test_positions(
    backbones: dict[str, Path], family: FamilyName, seconds: float, positions: list[list[int]]
) -> None:
    config, found = load_config(str(backbones[family]))
    ids = torch.tensor([1, VIDEO, VIDEO, VIDEO, 2])
    times = pair_times(range(6), 2 / seconds, 2 / seconds)
    assert found.position_ids(ids, [3, 2, 2], times, config).tolist() == positions


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_blocks_that_are_gathered_at_a_time(
    backbones: dict[str, Path], family: FamilyName
) -> None:
    model = load_model(str(backbones[family]), "sdpa", False)
    kinds = [type(block).__name__ for block in FAMILIES[family].blocks(model)]
    assert len(kinds) == 4
    assert all(kind.endswith("DecoderLayer") for kind in kinds[:2])
    assert all(kind.endswith("VisionBlock") for kind in kinds[2:])
