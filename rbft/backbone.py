"""The backbone: a Qwen-VL folder or hub id, read through transformers."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rbft.families import FAMILIES, PARTS, Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin


def load_config(source: str) -> tuple["PretrainedConfig", Family]:
    """The backbone's configuration and its family; reads one small file.

    Args:
        source: A `from_pretrained` folder or a hub id.

    Raises:
        ValueError: If nothing can be read there, or the architecture is not supported.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.backbone '{source}' cannot be read: {reason} Give a folder that holds "
            "config.json, model weights and processor, or the hub id of a Qwen2-VL or Qwen2.5-VL."
        ) from error
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"model.backbone '{source}' is of kind '{config.model_type}'; supported are "
            f"{', '.join(FAMILIES)}. See CONTRIBUTING.md for how to add a family."
        )
    return config, family


def load_processor(source: str) -> "ProcessorMixin":
    """Tokenizer, chat template and video processor of a backbone."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(source)


def load_model(source: str, attention: str, checkpointing: bool) -> "PreTrainedModel":
    """The backbone's weights, in torch's default dtype.

    Args:
        source: A `from_pretrained` folder or a hub id.
        attention: Attention implementation of transformers: sdpa, eager or flash_attention_2.
        checkpointing: Recompute activations in the backward pass instead of keeping them.
    """
    from transformers import AutoModelForImageTextToText

    # Lightning sets the default dtype by trainer.precision; the file's own (bf16) would lose
    # small updates in 32-bit training.
    model = AutoModelForImageTextToText.from_pretrained(
        source, dtype=torch.get_default_dtype(), attn_implementation=attention
    )
    if checkpointing:
        model.activation_checkpointing_enable()
    # from_pretrained leaves it in eval mode, in which checkpointing is silently off.
    return model.train()


def parameter_parts(model: nn.Module, family: Family) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Named parameters by part: language, merger, vision."""
    parts: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        parts[family.part(name)].append((name, parameter))
    return parts


def fingerprint(source: str) -> str:
    """Short hash that tells one set of weights from another without reading all of it.

    Covers the configuration and, of every weight file, the size and the first and last MiB. A
    hub id stands for itself, with the revision that the local cache holds.
    """
    folder = Path(source)
    if not folder.is_dir():
        config, _ = load_config(source)
        return f"{source}@{getattr(config, '_commit_hash', None)}"
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(-min(size, 1 << 20), os.SEEK_END)
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def short_name(source: str) -> str:
    """The last part of a folder or hub id, for file names."""
    return Path(source).name.lower()


def generation_settings(processor: "ProcessorMixin", max_new_tokens: int) -> dict[str, Any]:
    """Greedy decoding, spelt out: the hub's generation configs sample and penalise repetition."""
    tokenizer: Any = getattr(processor, "tokenizer")  # noqa: B009 (untyped in transformers)
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "repetition_penalty": 1.0,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
