"""LoRA adapters on the language model: ordinary peft adapters, added in place.

The backbone keeps its class, and its parameters keep their names with peft's suffix.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from rbft.backbone.family import FAMILIES, Family
from rbft.backbone.kernels import leave_casts_to_autocast
from rbft.backbone.loading import fingerprint, frozen_dtype
from rbft.backbone.targets import check_choice, check_layers, target_pattern
from rbft.runs.folder import ADAPTER, base_source, read_provenance
from rbft.runtime.ranges import check_ranges

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
PREFIX = "base_model.model."  # before every name in a peft file
# What peft's LoraConfig may say of an adapter. All else of it (biases that train, adapters on
# embeddings, other starts, which change the base) must be as it is by default.
TAKEN = {
    *("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "task_type", "inference_mode", "peft_type", "revision"),
    *("base_model_name_or_path", "auto_mapping", "peft_version", "runtime_config"),
}
STARTS = (True, False, "gaussian")  # of init_lora_weights: those that leave the base as it is
MERGE = "Merge it into whole weights with peft (merge_and_unload), and start from those."
# Where an adapter's layers may be, by a part of their names.
PLACES = (".language_model.layers.", ".visual.")


@dataclass(frozen=True)
class LoRA:
    """Adapters W + alpha / rank * B A on linear layers of the language model's blocks, as in peft.

    Args:
        rank: Rank of each adapter.
        alpha: Scale of the adapters, divided by the rank.
        dropout: Dropout of each adapter's inputs in training.
        use_dora: Weight-decomposed adapters (DoRA): the norm of each row of a layer's weights
            trains by itself. They cost more time and memory; vLLM cannot serve them unmerged.
        use_rslora: Divide alpha by the square root of the rank instead (rank-stabilised LoRA).
        target_modules: Which layers of the blocks have adapters: names, [q_proj, v_proj], or a
            regular expression of the whole name; null takes all linear layers.
        layers_to_transform: Numbers of the blocks with adapters, from 0; null takes all.
    """

    rank: int = 64
    alpha: int = 128
    dropout: float = 0.0
    use_dora: bool = False
    use_rslora: bool = False
    target_modules: list[str] | str | None = None
    layers_to_transform: list[int] | None = None

    def __post_init__(self) -> None:
        check_ranges("model.lora.", vars(self))
        check_choice(self.target_modules, self.layers_to_transform)

    def targets(self, every: str) -> str:
        """The layers with adapters, as a regular expression of their whole names.

        Args:
            every: That of all layers that may have some, `Family.targets`.
        """
        return target_pattern(every, self.target_modules, self.layers_to_transform)


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
    found, noted = {}, base_source(weights, note)
    for source in (backbone, noted):
        with suppress(OSError, ValueError):
            found[source] = fingerprint(source)
            if found[source] == note["fingerprint"]:
                return source
    raise ValueError(
        f"weights folder {weights} is an adapter of {noted} ({note['fingerprint']}), but "
        f"model.backbone {backbone} is {found.get(backbone, 'not to be read')} and "
        f"{noted} is {found.get(noted, 'not to be read')}. Set model.backbone to the "
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
    if weights is not None and is_adapter(weights):
        config = read_config(weights)
        own = {"rank": config.r, "alpha": config.lora_alpha}
        own |= {"use_dora": config.use_dora, "use_rslora": config.use_rslora}
        asked = {name: getattr(lora, name) for name in own}
        if own != asked:
            shown = [name for name in own if name in ("rank", "alpha") or own[name] != asked[name]]
            found, wanted = (
                _listed([f"{name} {str(one[name]).lower()}" for name in shown])
                for one in (own, asked)
            )
            raise ValueError(
                f"model.weights {weights} is an adapter of {found}, but model.lora asks for "
                f"{wanted}. An adapter is trained on as it is: set model.lora to its values."
            )


def check_targets(
    lora: LoRA | None,
    weights: Path | None,
    family: Family,
    config: Any,
    linear_layers: Callable[[], Sequence[str]],
) -> None:
    """Refuses layers that the backbone does not have or that an adapter is not of.

    Args:
        lora: The adapters to train; None trains none.
        weights: Weights folder to start from.
        family: The backbone's family.
        config: The backbone's configuration.
        linear_layers: Gives the names of the backbone's linear layers; asked where they matter.

    Raises:
        ValueError: Naming the setting, and what there is.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    if lora is None:
        return
    pattern = lora.targets(family.targets)
    if pattern != family.targets:
        check_layers(linear_layers(), family.targets, lora.target_modules, lora.layers_to_transform)
    if weights is None or not is_adapter(weights):
        return
    known = read_config(weights, family.mergers(config))
    if known.target_modules == pattern and not known.exclude_modules:
        return
    names = linear_layers()
    own = {name for name in names if check_target_module_exists(known, name)}
    wanted = {name for name in names if re.fullmatch(pattern, name)}
    if own != wanted:
        said = known.target_modules
        said = sorted(said) if isinstance(said, set) else said
        raise ValueError(
            f"model.weights {weights} is an adapter of {len(own)} linear layers, but model.lora "
            f"asks for {len(wanted)} (first that differs: {min(own ^ wanted)}). An adapter is "
            "trained on as it is: set model.lora.target_modules and "
            f"model.lora.layers_to_transform to its layers (in its {CONFIG}: {said})."
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
    mergers = family.mergers(model.config)
    if weights is None:
        assert lora is not None
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            use_dora=lora.use_dora,
            use_rslora=lora.use_rslora,
            target_modules=lora.targets(family.targets),
            modules_to_save=mergers if merger else None,
            task_type="CAUSAL_LM",
        )
    else:
        config = read_config(weights, mergers)
        if lora is not None:
            config.lora_dropout = lora.dropout
            config.modules_to_save = config.modules_to_save or (mergers if merger else None)
    config.inference_mode = False  # peft would keep the values in the frozen weights' dtype
    model.add_adapter(config)
    adapted = [name for name, part in model.named_modules() if hasattr(part, "lora_A")]
    if other := [name for name in adapted if not any(place in name for place in PLACES)]:
        raise ValueError(
            f"{weights} is an adapter of {other[0]}, but rbft takes adapters of the language "
            f"model's blocks and of the vision tower alone. {MERGE}"
        )
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


def read_config(folder: Path, mergers: Sequence[str] | None = None) -> Any:
    """The LoraConfig of peft in an adapter folder.

    Args:
        folder: The weights folder.
        mergers: The modules of the backbone that may have been trained with it, `Family.mergers`;
            None takes any.

    Raises:
        ValueError: If it is of a kind that rbft does not take; names what it is.
    """
    from peft import LoraConfig, PeftConfig

    if not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} holds {CONFIG} but no {WEIGHTS}. Save the adapter again with peft's "
            "save_pretrained, which writes it."
        )
    config: Any = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(
            f"{folder} is an adapter of peft_type {kind}, but rbft takes LORA alone (LoRA, rsLoRA, "
            f"DoRA). {MERGE}"
        )
    other: dict[str, Any] = {}
    for one in fields(LoraConfig):
        value = getattr(config, one.name)
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if value and one.name not in TAKEN and value != default:
            other[one.name] = value
    if config.init_lora_weights in STARTS:
        other.pop("init_lora_weights", None)
    saved = () if mergers is None else config.modules_to_save or ()
    if beside := [
        n for n in saved if not any(f".{n}".endswith(f".{one}") for one in mergers or ())
    ]:
        other["modules_to_save"] = beside
    for name, value in other.items():
        raise ValueError(
            f"{folder} is an adapter with {name} {value}, which rbft does not take. {MERGE}"
        )
    return config


def _listed(parts: Sequence[str]) -> str:
    """Words as in a sentence: a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
