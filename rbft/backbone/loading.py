"""Loads the backbone, a Qwen-VL folder or hub id, through transformers."""

import logging
import re
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from rbft.backbone.attention import use_segment_attention
from rbft.backbone.blocks import recompute_blocks
from rbft.backbone.embeddings import copy_video_tokens
from rbft.backbone.family import FAMILIES, PARTS, Family
from rbft.backbone.hub import check_hub
from rbft.backbone.kernels import use_linear_patch_embedding
from rbft.runs.folder import PROMPT_RULE, PROVENANCE, read_provenance
from rbft.runtime.console import print_rank_zero
from rbft.runtime.digests import folder_digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

# Files that transformers and peft read besides the weights: configuration, tokenizer, chat
# templates, processors, and the code that model.trust_remote_code runs.
MODEL_FILES = (
    "*config.json",
    "*.safetensors.index.json",
    "*.bin.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "additional_chat_templates/*",
    "*.model",
    "*.py",
)
WHOLE = "Copy or download the whole folder again, or give another one."
# What torch and transformers raise as RuntimeError for files that are damaged or do not fit.
UNREADABLE = re.compile("PytorchStreamReader|size mismatch|conversion|corrupt", re.IGNORECASE)


def load_config(
    source: str, trust: bool = False, setting: str = "model.backbone"
) -> tuple["PretrainedConfig", Family]:
    """The backbone's configuration and its family; reads one small file.

    Args:
        source: A `from_pretrained` folder or a hub id.
        trust: Run code that comes with it.
        setting: What names it, for messages.

    Raises:
        ValueError: If the configuration cannot be read, or the architecture is not supported.
    """
    from transformers import AutoConfig

    check_hub(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{setting} '{source}' cannot be read: {_first_line(error)} Give a folder that "
            "holds config.json, model weights and processor, or the hub id of a Qwen2-VL, "
            "Qwen2.5-VL, Qwen3-VL or Qwen3.5."
        ) from error
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"{setting} '{source}' is of kind '{config.model_type}'; supported are "
            f"{', '.join(FAMILIES)}. See CONTRIBUTING.md for how to add a family."
        )
    return config, family


def check_prompt_rule(weights: Path, family: Family) -> None:
    """Refuses weights that were trained on prompts in which clips stood in another way.

    Args:
        weights: A weights folder.
        family: Its family.

    Raises:
        ValueError: Naming both ways.
    """
    rule = (read_provenance(weights) or {}).get(PROMPT_RULE)
    if rule is not None and rule != family.prompt_rule:
        raise ValueError(
            f"weights folder {weights} was trained on prompts with '{rule}' ({PROVENANCE}: "
            f"{PROMPT_RULE}), and this version makes them with '{family.prompt_rule}'. Use the "
            "version that the folder names, or train anew."
        )


def load_processor(source: str, trust: bool = False) -> "ProcessorMixin":
    """Tokenizer, chat template and video processor of a backbone; see `load_config`."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(source, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The processor in '{source}' (tokenizer, chat template, video processor) cannot be "
            f"read: {_first_line(error)} {WHOLE}"
        ) from error


@cache
def available_attention(name: str) -> str:
    """The attention implementation, or sdpa with a message if it is not installed.

    Args:
        name: As in `model.attention`.
    """
    from transformers.utils import import_utils

    if name == "flash_attention_2" and not import_utils.is_flash_attn_2_available():
        print_rank_zero(
            "model.attention: flash_attention_2 needs a GPU and the package flash-attn, and one of "
            "them is missing; going on with sdpa."
        )
        return "sdpa"
    return name


@cache
def available_packing(family: Family) -> bool:
    """Whether clips can be packed, as is asked for, or a message that they are padded instead."""
    if not family.packs:
        print_rank_zero(
            f"model.packing: the linear attention of a {family.model_type} would mix the clips of "
            "a packed row; they are padded instead. Set model.packing to false to leave this out."
        )
    return family.packs


def load_model(
    source: str,
    attention: str,
    checkpointing: bool | float,
    *,
    empty: bool = False,
    dtype: torch.dtype | None = None,
    four_bit: torch.device | None = None,
    trust: bool = False,
) -> "PreTrainedModel":
    """The backbone's weights.

    Args:
        source: A `from_pretrained` folder or a hub id.
        attention: Attention implementation of transformers: sdpa, eager or flash_attention_2.
        checkpointing: Share of the blocks of decoder and vision tower with gradient checkpointing;
            True is all, False none.
        empty: Read no weights and leave the model on the meta device, for a process that gets its
            shard by broadcast.
        dtype: Dtype of the weights; None takes torch's default.
        four_bit: Device on which the decoder blocks are read and stored in 4 bits; None stores
            them in `dtype`.
        trust: Run code that comes with the weights.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    # Lightning sets the default dtype by trainer.precision. The dtype of the files (bf16) would
    # lose small updates in 32-bit training.
    dtype = dtype or torch.get_default_dtype()
    how: Any = {"trust_remote_code": trust}
    how |= {"dtype": dtype, "attn_implementation": attention}
    if empty:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
            model = AutoModelForImageTextToText.from_config(config, **how)
    else:
        if four_bit is not None:
            how |= {"quantization_config": _four_bit_config(dtype), "device_map": {"": four_bit}}
        model = _read_weights(source, how)
    if torch.cuda.is_available():  # not needed on a CPU, whose results keep their bits
        use_linear_patch_embedding(model)
    copy_video_tokens(model)
    if attention == "sdpa":
        use_segment_attention(model)
    # Not transformers' checkpointing: it does not compile recomputed blocks, not all its versions
    # can checkpoint a share, and it has embeddings and patches require gradients, which costs a
    # backward pass through a frozen vision tower.
    recompute_blocks(model, checkpointing)
    # from_pretrained leaves it in eval mode, in which nothing is recomputed.
    return model.train()


def _read_weights(source: str, how: dict[str, Any]) -> "PreTrainedModel":
    """The backbone with the weights of its files, all of them.

    Raises:
        ValueError: If they cannot be read, or some are missing or of another shape, which
            transformers would draw at random.
    """
    from transformers import AutoModelForImageTextToText

    reporter = logging.getLogger("transformers.modeling_utils")
    reporter.addFilter(_no_report)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **how
        )
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, UnpicklingError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not UNREADABLE.search(str(error)):
            raise
        raise ValueError(
            f"The weights in '{source}' cannot be read: {_first_line(error)} {WHOLE}"
        ) from error
    finally:
        reporter.removeFilter(_no_report)
    model, found = loaded
    other = [name for name, *_ in found["mismatched_keys"]]
    if wrong := sorted({*found["missing_keys"], *other}):
        raise ValueError(
            f"The weights in '{source}' are not those of the {model.config.model_type} that its "
            f"config.json describes: {len(wrong)} of {len(model.state_dict())} tensors are missing "
            f"or of another shape (first: {wrong[0]}). {WHOLE}"
        )
    if extra := sorted(found["unexpected_keys"]):
        print_rank_zero(
            f"{len(extra)} tensors in '{source}' are none of the model's and are left out (first: "
            f"{extra[0]})."
        )
    return model


def _no_report(record: logging.LogRecord) -> bool:
    """Leaves out a report of many lines on missing weights, of which an error says what matters."""
    return "LOAD REPORT" not in record.getMessage()


def _first_line(error: BaseException) -> str:
    """The first sentence of what a library says, which ends in a full stop."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__).strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _four_bit_config(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # By its whole name: "visual" alone matches nothing, without a word.
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )


def frozen_dtype(precision: str) -> torch.dtype:
    """Dtype of frozen weights: the compute dtype.

    Args:
        precision: The Trainer's. In the mixed ones, trainable weights stay in 32 bits.
    """
    halves = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return halves.get(precision, torch.get_default_dtype())


def parameter_parts(model: nn.Module, family: Family) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Named parameters by part: language, merger, vision."""
    parts: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        parts[family.part(name)].append((name, parameter))
    return parts


def fingerprint(source: str, base: str | None = None, *, bare: bool = False) -> str:
    """Content digest of a model: everything that `from_pretrained` depends on.

    Covers every byte of weights, tokenizer, chat template, processor, configuration and code, but
    not README, card, notes or the folder's name. A file is read once, see `rbft.runtime.digests`.
    The fingerprint of an adapter covers its base too. That of a hub id is the id with the revision
    in the local cache.

    Args:
        source: A `from_pretrained` folder, whole or an adapter, or a hub id.
        base: Fingerprint of an adapter's base; None takes the one that rbft noted in the folder.
            See `rbft.backbone.adapters.weights_fingerprint`, which finds the base.
        bare: Accept a folder without weights.

    Returns:
        32 hexadecimal characters, or `<hub id>@<commit>`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If a hub id's revision or an adapter's base is not known, or the folder holds no
            weights.
    """
    from transformers import PretrainedConfig

    folder = Path(source)
    if not folder.is_dir():
        check_hub(source)
        commit = PretrainedConfig.get_config_dict(source)[0].get("_commit_hash")
        if not commit:
            raise ValueError(
                f"Which revision of '{source}' the local cache holds is not known, so that its "
                "weights cannot be told from others. Download it (hf download "
                f"{source} --local-dir FOLDER) and give the folder instead."
            )
        return f"{source}@{commit}"
    names = [file.relative_to(folder).as_posix() for file in model_files(folder)]
    if not bare and not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise ValueError(
            f"{folder} holds no weights: no file *.safetensors or *.bin. Give a folder that "
            "save_pretrained wrote whole."
        )
    if "adapter_config.json" not in names:
        return folder_digest(folder, names)
    base = base or ((read_provenance(folder) or {}).get("base") or {}).get("fingerprint")
    if base is None:
        raise ValueError(
            f"{folder} is an adapter that does not say which weights it was trained on: a name in "
            "adapter_config.json is no proof. Merge it into whole weights, or start from an "
            "adapter that rbft wrote."
        )
    return folder_digest(folder, names, [f"base {base}"])


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that the model depends on."""
    found = {file for pattern in MODEL_FILES for file in folder.glob(pattern)}
    # transformers and peft prefer safetensors if there are both.
    found |= set(folder.glob("*.safetensors")) or set(folder.glob("*.bin"))
    return [file for file in found if file.is_file() and not file.name.startswith(".")]


def short_name(source: str) -> str:
    """The last part of a folder or hub id, for file names."""
    return Path(source).name.lower()


def generation_settings(
    source: str, processor: "ProcessorMixin", max_new_tokens: int, trust: bool = False
) -> dict[str, Any]:
    """Settings of text generation, as arguments of transformers' `generate`.

    End-of-sequence tokens and repetition penalty come from the backbone's
    `generation_config.json`. Its sampling settings are ignored: generation is greedy, so that a
    text depends on clip, prompt and weights alone.

    Args:
        source: A `from_pretrained` folder or a hub id.
        processor: Its processor.
        max_new_tokens: Longest text, in tokens.
        trust: Run code that comes with the backbone.

    Returns:
        `max_new_tokens`, `eos_token_id` (sorted; the tokenizer's and all of the generation config)
        and `repetition_penalty`.

    Raises:
        ValueError: If the repetition penalty is not above 0.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(source)
    except OSError:  # a backbone may come without one; transformers then does the same
        config = GenerationConfig.from_model_config(
            AutoConfig.from_pretrained(source, trust_remote_code=trust)
        )
    ends = config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    penalty = 1.0 if config.repetition_penalty is None else float(config.repetition_penalty)
    if not penalty > 0:
        raise ValueError(
            f"The generation_config.json of model.backbone '{source}' has repetition_penalty "
            f"{penalty:g}; it must be above 0. Correct it there: 1.0 penalises nothing."
        )
    tokenizer: Any = getattr(processor, "tokenizer")  # noqa: B009 (untyped in transformers)
    return {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted({tokenizer.eos_token_id, *ends}),
        "repetition_penalty": penalty,
    }
