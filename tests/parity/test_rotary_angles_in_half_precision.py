"""Rotary angles far into a clip, in each of the Trainer's precisions, against their formula."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rbft.estimate.flops import head_width
from tests.examples import Yard, fed, module, trainer

FAR = 2000


def exact(base: float, width: int, position: int) -> Tensor:
    """Angles in 64 bits: position x base^(-2i / width)."""
    return position * base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)


def angles_fit(waves: tuple[Tensor, Tensor], angles: Tensor, tolerance: float) -> bool:
    cos, sin = (wave.double().flatten() for wave in waves)
    off = (cos - angles.cos()).abs().max(), (sin - angles.sin()).abs().max()
    return float(max(off)) < tolerance


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-true", torch.bfloat16),
        ("16-true", torch.float16),
        ("bf16-mixed", torch.float32),
        ("32-true", torch.float32),
    ],
)
def test_angles_at_position_2000(
    backbone: Path, tmp_path: Path, precision: Any, dtype: torch.dtype
) -> None:
    model = module(backbone)
    yard = Yard(tmp_path / "card.yaml", {"test": 2})
    trainer(tmp_path, precision=precision).test(model, fed(yard, model), verbose=False)
    assert {parameter.dtype for parameter in model.backbone.parameters()} == {dtype}
    frequencies = {n: b.dtype for n, b in model.named_buffers() if n.endswith("inv_freq")}
    assert len(frequencies) == 4  # in the decoder and in the tower, each with a copy
    assert set(frequencies.values()) == {torch.float32}

    # Cosines and sines are handed over in the precision of the states, whose rounding is small.
    tolerance = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 3e-4}[dtype]
    text = model.backbone.model.language_model.rotary_emb
    waves = text(torch.zeros(1, dtype=dtype), torch.full((3, 1, 1), FAR))
    config = model.config.text_config
    base, width = config.rope_parameters["rope_theta"], head_width(config)
    assert angles_fit(waves, exact(base, width, FAR).repeat(2), tolerance)
    tower = model.backbone.model.visual.rotary_pos_emb
    waves = tower(torch.zeros(1, dtype=dtype), torch.tensor([[FAR, FAR - 1]]))
    angles = torch.cat([exact(1e4, 8, FAR), exact(1e4, 8, FAR - 1)]).repeat(2)
    assert angles_fit(waves, angles, tolerance)

    # What the conversion alone would do.
    text.bfloat16()
    waves = text(torch.zeros(1, dtype=dtype), torch.full((3, 1, 1), FAR))
    assert not angles_fit(waves, exact(base, width, FAR).repeat(2), 0.1)


def test_a_module_can_be_moved(qwen: Path) -> None:
    model = module(qwen)
    before = dict(model.named_buffers())
    assert model.to(torch.device("meta"), torch.bfloat16) is model
    for name, buffer in model.named_buffers():
        assert buffer.is_meta
        assert buffer.dtype == before[name].dtype or not name.endswith("inv_freq")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
