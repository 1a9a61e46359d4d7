"""LoRA adapters on the language model: ordinary peft adapters, added in place.

The backbone keeps its class, and its parameters keep their names with peft's suffix.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rbft.backbone.family import FAMILIES
from rbft.backbone.kernels import leave_casts_to_autocast
from rbft.backbone.loading import fingerprint, frozen_dtype
from rbft.runs.folder import ADAPTER, read_provenance
from rbft.runtime.ranges import check_ranges

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
PREFIX = "base_model.model."  # before every name in a peft file


@dataclass(frozen=True)
class LoRA:
    """Adapters W + alpha / rank * B A on all linear layers of the language model's blocks.

    Args:
        rank: Rank of each adapter.
        alpha: Scale of the adapters, divided by the rank.
        dropout: Dropout of each adapter's inputs in training.
    """

    rank: int = 64
    alpha: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_ranges("model.lora.", vars(self))


def is_adapter(weights: Path | None) -> bool:
    """Whether a weights folder holds an adapter instead of whole weights."""
    return weights is not None and (weights / CONFIG).is_file()


def find_base(backbone: str, weights: Path | None) -> str:
    """Folder or hub id of the whole weights that a model starts from.

    Args:
        backbone: The backbone of the settings.
        weights: A weights folder to start from: whole weights, an adapter, or None.

    Returns:
        The weights folder if it has whole weights, else the base of its adapter: the backbone or
        the source that rbft noted in the folder, whichever has the noted fingerprint.

    Raises:
        ValueError: If neither has that fingerprint.
    """
    if weights is None or not is_adapter(weights):
        return str(weights or backbone)
    note = (read_provenance(weights) or {}).get("base")
    if note is None:  # peft's own, from elsewhere
        return backbone
    found = {}
    for source in (backbone, note["name"]):
        with suppress(OSError, ValueError):
            found[source] = fingerprint(source)
            if found[source] == note["fingerprint"]:
                return source
    raise ValueError(
        f"weights folder {weights} is an adapter of {note['name']} ({note['fingerprint']}), but "
        f"model.backbone {backbone} is {found.get(backbone, 'not to be read')} and "
        f"{note['name']} is {found.get(note['name'], 'not to be read')}. Set model.backbone to the "
        "weights that the adapter was trained on."
    )


def base_note(source: str) -> dict[str, str]:
    """The entry of rbft.json that describes an adapter's base: hub id or whole path of a folder."""
    folder = Path(source)
    name = str(folder.resolve()) if folder.is_dir() else source
    return {"name": name, "fingerprint": fingerprint(source)}


def weights_fingerprint(weights: Path, backbone: str) -> str:
    """Content digest of a weights folder, see `rbft.backbone.loading.fingerprint`.

    Args:
        weights: Whole weights, or an adapter, whose digest covers its base.
        backbone: The backbone of the settings, the base of an adapter without rbft's note.

    Raises:
        ValueError: If the base of an adapter is not found, see `find_base`.
    """
    if not is_adapter(weights):
        return fingerprint(str(weights))
    return fingerprint(str(weights), fingerprint(find_base(backbone, weights)))


def check_adapters(
    lora: LoRA | None,
    quantize: str | None,
    weights: Path | None,
    learning_rates: dict[str, float],
) -> None:
    """Refuses settings that cannot be trained, before anything is loaded.

    Args:
        lora: The adapters to train, or None to train the weights themselves.
        quantize: How the frozen weights are stored.
        weights: Weights folder to start from.
        learning_rates: Learning rate by part.

    Raises:
        ValueError: Naming the settings.
    """
    if lora is None:
        if quantize is not None:
            raise ValueError(
                f"model.quantize is {quantize}, but weights in 4 bits cannot be trained, only "
                "adapters on them. Set model.lora (for instance --model.lora.rank 64), or "
                "model.quantize to null to train all weights."
            )
        if is_adapter(weights):
            raise ValueError(
                f"model.weights {weights} is an adapter. Set model.lora to train it on, or merge "
                "it into whole weights (python -m rbft export --weights ... --output ...) and "
                "start from those."
            )
        return
    if learning_rates["vision"] > 0:
        raise ValueError(
            f"model.vision_learning_rate is {learning_rates['vision']:g}, but with adapters "
            "(model.lora) the vision tower is frozen. Set model.vision_learning_rate to 0, or "
            "model.lora to null to train all weights."
        )
    if is_adapter(weights):
        config: Any = _read_config(weights)
        if (config.r, config.lora_alpha) != (lora.rank, lora.alpha):
            raise ValueError(
                f"model.weights {weights} is an adapter of rank {config.r} and alpha "
                f"{config.lora_alpha}, but model.lora asks for rank {lora.rank} and alpha "
                f"{lora.alpha}. An adapter is trained on as it is: set model.lora to its values."
            )


def weights_dtype(
    lora: LoRA | None,
    quantize: str | None,
    weights: Path | None,
    precision: str,
    *,
    sharded: bool,
    training: bool,
) -> torch.dtype:
    """The dtype in which whole weights are loaded: half precision if they are frozen.

    In the mixed precisions, trainable weights are in 32 bits and only the computation is in half
    precision. Scoring, writing and prediction would take twice the memory with such weights, for
    the weights and for the KV cache, and would cast all weights for every new token.

    Args:
        lora: The adapters to train, or None to train the weights themselves.
        quantize: How the frozen weights are stored.
        weights: Weights folder to start from.
        precision: The Trainer's.
        sharded: Whether the weights are sharded; FSDP2 requires one dtype.
        training: Whether the model is trained, not only scored or used to write.
    """
    frozen = not training or lora is not None or quantize is not None or is_adapter(weights)
    return frozen_dtype(precision) if frozen and not sharded else torch.get_default_dtype()


def add_adapters(
    model: Any,
    lora: LoRA | None,
    weights: Path | None,
    *,
    merger: bool,
    read: bool = True,
    autocast: bool = False,
) -> None:
    """Adds adapters to a model in place, and freezes everything else.

    Args:
        model: The backbone, its weights in any dtype or in 4 bits.
        lora: Adapters to train; None to only use those of `weights`.
        weights: Adapter folder to read; None makes new adapters, which change no output yet.
        merger: Train the merger too; it is saved with the adapters.
        read: Whether this process reads the values.
        autocast: Whether the model runs under autocast, see `leave_casts_to_autocast`.

    Raises:
        ValueError: If the folder's adapters do not fit this backbone.
    """
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    family = FAMILIES[model.config.model_type]
    config: Any = None if weights is None else _read_config(weights)
    if lora is not None:
        merger = merger or bool(config and config.modules_to_save)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=family.targets,
            modules_to_save=family.mergers(model.config) if merger else None,
            task_type="CAUSAL_LM",
        )
    config.inference_mode = False  # peft would keep the values in the frozen weights' dtype
    model.add_adapter(config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Not the dtype of the frozen weights: half precision loses small updates.
            parameter.data = parameter.data.to(torch.get_default_dtype())
    if autocast:
        leave_casts_to_autocast(model)
    if weights is None or not read:
        return
    expected = get_peft_model_state_dict(model)
    state = {
        name.removeprefix(PREFIX): tensor for name, tensor in load_file(weights / WEIGHTS).items()
    }
    merging = {name: value for name, value in expected.items() if family.part(name) == "merger"}
    if not merging.keys() & state.keys():  # it was frozen so far
        state |= merging
    if wrong := sorted(expected.keys() ^ state.keys()):
        raise ValueError(
            f"{weights / WEIGHTS} does not fit its backbone: {len(wrong)} tensors are in one of "
            f"them only (first: {wrong[0]}). Set model.backbone to the weights that the adapter "
            "was trained on, or make the adapter anew."
        )
    set_peft_model_state_dict(model, state)


def _read_config(folder: Path | None) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(str(folder))
