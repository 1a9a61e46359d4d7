"""Weights folders as rbft leaves them, without training."""

import shutil
from pathlib import Path
from typing import Any

import torch

from rbft.backbone.adapters import LoRA, add_adapters, base_note
from rbft.backbone.loading import fingerprint, load_model
from rbft.backbone.positions import POSITION_RULE
from rbft.runs.folder import PROVENANCE, provenance
from rbft.runs.inference import INFERENCE
from rbft.runtime.files import write_json
from tests.examples import CARD
from tests.tiny import tiny_processor

LORA = LoRA(rank=4, alpha=8)
NOTE: dict[str, Any] = {
    "data.fps": 2.0,
    "data.num_frames": None,
    "data.min_pixels": 784,
    "data.max_pixels": 3136,
    "data.min_frames": 2,
    "data.max_frames": 6,
    "data.sampling": "frame",
    "data.damaged": "error",
    "data.reader": None,
    "data.eval_batch_size": 3,
    "model.answer": "score",
    "model.max_new_tokens": 5,
    "model.quantize": None,
    "model.self_consistency": None,
    "model.attention": "sdpa",
    "model.packing": True,
    "model.liger": False,
    "model.cudnn_attention": False,
    "trainer.precision": None,
}


def whole_weights(folder: Path, backbone: Path, /, **facts: Any) -> Path:
    """A folder of whole weights.

    Args:
        folder: What is made.
        backbone: Its weights and processor.
        **facts: Further entries of the note, in place of those that there are.
    """
    shutil.copytree(backbone, folder)
    return _note(folder, backbone, **facts)


def adapter(
    folder: Path,
    backbone: Path,
    /,
    lora: LoRA = LORA,
    *,
    merger: bool = True,
    noise: float | None = None,
    **facts: Any,
) -> Path:
    """A folder with an adapter that changes what the backbone says.

    Args:
        folder: What is made.
        backbone: Its base.
        lora: Its options.
        merger: Whether the merger was trained with it.
        noise: Standard deviation of what is added to its weights; None adds the same to all.
        **facts: Further entries of the note, in place of those that there are.
    """
    model: Any = load_model(str(backbone), "sdpa", False)
    add_adapters(model, lora, None, merger=merger)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 if noise is None else noise * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tiny_processor("qwen2_5_vl").save_pretrained(folder)
    return _note(folder, backbone, **{"base": base_note(str(backbone)), **facts})


def _note(folder: Path, backbone: Path, /, **facts: Any) -> Path:
    CARD.save(folder / "card.yaml")
    made = {"stages": ["rationale", "label"], "backbone": fingerprint(str(backbone))}
    made |= {"backbone_name": str(backbone), "run": "yard_run", INFERENCE: NOTE, **facts}
    kept = {name: value for name, value in made.items() if value is not None}
    write_json(folder / PROVENANCE, provenance(POSITION_RULE, **kept))
    return folder
