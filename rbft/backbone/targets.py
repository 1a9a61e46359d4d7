"""Which linear layers of the language model's blocks have adapters, in the words of peft."""

import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

ALL_LINEAR = "all-linear"  # peft's word for every linear layer; here, of the blocks
MODULES, LAYERS = "model.lora.target_modules", "model.lora.layers_to_transform"


def check_choice(modules: Sequence[str] | str | None, layers: Sequence[int] | None) -> None:
    """Refuses a choice of layers that is none, whatever the backbone.

    Args:
        modules: Names of layers, a regular expression, or None for all.
        layers: Numbers of blocks, or None for all.

    Raises:
        ValueError: Naming the setting.
    """
    if isinstance(modules, str):
        try:
            re.compile(f"(?:{modules})")
        except re.error as error:
            raise ValueError(
                f"{MODULES} '{modules}' is no regular expression: {error}. Give one of the whole "
                "name of a layer, or a list of names, [q_proj, v_proj]."
            ) from error
    elif modules is not None and not all(modules or [""]):
        raise ValueError(
            f"{MODULES} {modules} names no layer. Give names, [q_proj, v_proj], or null for all "
            "linear layers of the language model's blocks."
        )
    if layers is not None and (not layers or min(layers) < 0):
        raise ValueError(
            f"{LAYERS} {layers} must be numbers of blocks, counted from 0; null takes all."
        )


def target_pattern(
    every: str, modules: Sequence[str] | str | None, layers: Sequence[int] | None
) -> str:
    """The layers with adapters as a regular expression of whole names, for peft's target_modules.

    Args:
        every: The regular expression of all linear layers that may have adapters.
        modules: Names of layers (the end of the whole name, at a full stop), a regular expression
            of the whole name, or None for all.
        layers: Numbers of blocks, or None for all.
    """
    parts = []
    if layers is not None:
        parts.append(rf"(?=.*\.layers\.(?:{'|'.join(map(str, layers))})\.)")
    if isinstance(modules, str) and modules != ALL_LINEAR:
        parts.append(f"(?=(?:{modules})$)")
    elif modules is not None and not isinstance(modules, str):
        parts.append(rf"(?=(?:.*\.)?(?:{'|'.join(map(re.escape, modules))})$)")
    return f"{''.join(parts)}(?:{every})" if parts else every


def linear_layers(config: Any, trust: bool = False) -> list[str]:
    """Whole names of all linear layers of a backbone; makes it without weights.

    Args:
        config: The backbone's configuration.
        trust: Run code that comes with it.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: nn.Module = AutoModelForImageTextToText.from_config(
            deepcopy(config), trust_remote_code=trust
        )
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]


def check_layers(
    names: Sequence[str],
    every: str,
    modules: Sequence[str] | str | None,
    layers: Sequence[int] | None,
) -> None:
    """Refuses a choice that names what the blocks of a backbone's language model do not have.

    Args:
        names: From `linear_layers`.
        every: See `target_pattern`.
        modules: Likewise.
        layers: Likewise.

    Raises:
        ValueError: Naming what is not there, and what is.
    """
    there = [name for name in names if re.fullmatch(every, name)]
    elsewhere = [name for name in names if not re.search(r"\.language_model\.layers\.", name)]
    ends = dict.fromkeys(re.sub(r".*\.layers\.\d+\.", "", name) for name in there)
    allowed = f"Its linear layers are {', '.join(ends)}."
    blocks = {int(found[1]) for name in there if (found := re.search(r"\.layers\.(\d+)\.", name))}
    if wrong := [number for number in layers or () if number not in blocks]:
        raise ValueError(
            f"{LAYERS} names block {wrong[0]}, but the language model has the blocks "
            f"{min(blocks)} to {max(blocks)}."
        )
    chosen = [modules] if isinstance(modules, str) else modules or []
    for one in chosen:
        given = modules if isinstance(modules, str) else [one]
        pattern = target_pattern(every, given, layers)
        if any(re.fullmatch(pattern, name) for name in there):
            continue
        outside = any(re.fullmatch(target_pattern(".*", given, None), name) for name in elsewhere)
        note = ", only of the vision tower or the head, which have no adapters" if outside else ""
        if isinstance(modules, str):
            raise ValueError(
                f"{MODULES} '{one}' matches the whole name of no linear layer of the language "
                f"model's blocks{note} (such a name: {there[0]}). {allowed} To name some of them, "
                "give a list: [q_proj, v_proj]."
            )
        raise ValueError(
            f"{MODULES} names '{one}', which is no linear layer of the language model's "
            f"blocks{note}. {allowed}"
        )
