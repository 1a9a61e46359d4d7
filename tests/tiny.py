"""Tiny random backbones of all families, with a processor, made offline in a second.

The architecture, the chat template's turns and the ways through processor, tokenizer and
`generate` are the real ones; sizes, vocabulary and weights are not.
"""

from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

FamilyName = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"]
# Those that most tests run over. One with experts differs in the decoder's MLP alone; Qwen3.5 has a
# file of its own, tests/parity/test_qwen3_5_against_transformers.py.
FAMILY_NAMES: tuple[FamilyName, ...] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 384  # 256 bytes, merges, special tokens
# Pixels per side of a patch, in all families here: the clips of the tests suit them all. That of
# the published Qwen3-VL is 16.
PATCH = 14
# What Qwen-VL's template makes of user and assistant turns, a system turn first.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""
# What Qwen3.5's template adds: the assistant thinks, or has done so without a word.
THINKING = """\
{%- if add_generation_prompt -%}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\n\n</think>\n\n' -}}
{%- else -%}
{{- '<think>\n' -}}
{%- endif -%}
{%- endif -%}"""
TEXTS = (
    "Is the clip normal or abnormal? Answer with one word.",
    "You are a Smart Home Security Expert. Describe the subjects, attributes, actions and scenes.",
    "hateful, offensive or normal: a person walks past the yard at night with a package.",
)


def tiny_tokenizer(*merged: str) -> Any:
    """A byte-level BPE tokenizer with Qwen's special tokens, trained on three sentences.

    Args:
        *merged: Pairs of (byte-level) characters that become tokens, instead of the last that
            were trained.
    """
    from transformers import Qwen2Tokenizer

    vocabulary, merges = copy(_trained_bpe()[0]), copy(_trained_bpe()[1])
    for first, second in merged:
        vocabulary[first + second] = vocabulary.pop("".join(merges.pop()))
        merges.insert(0, (first, second))
    return Qwen2Tokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


@cache
def _trained_bpe() -> tuple[dict[str, int], list[Any]]:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def merge_punctuation(folder: Path) -> None:
    """Gives a backbone a tokenizer that merges ">" and "." with a line break, as real ones do."""
    tiny_tokenizer(">\u010a", ".\u010a").save_pretrained(folder)  # the line break's byte


def tiny_processor(family: FamilyName, patch: int = PATCH) -> Any:
    """The family's processor with the tiny tokenizer."""
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    pixels = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    if family.startswith("qwen3"):
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=dict(pixels), patch_size=patch),
            tokenizer=tiny_tokenizer(),
            video_processor=Qwen3VLVideoProcessor(
                size=dict(pixels), patch_size=patch, cap_pixels_per_frame=False
            ),
            chat_template=CHAT_TEMPLATE + (THINKING if family == "qwen3_5" else ""),
        )
    kind = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}[family]
    return kind(
        image_processor=Qwen2VLImageProcessor(size=dict(pixels)),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=dict(pixels), cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_config(family: FamilyName, patch: int = PATCH) -> Any:
    """The family's configuration: two blocks in the decoder (Qwen3.5: three), two in the tower."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2VLConfig,
        Qwen3_5Config,
        Qwen3VLConfig,
        Qwen3VLMoeConfig,
    )

    ids = {
        token: tiny_tokenizer().convert_tokens_to_ids(f"<|{token}|>")
        for token in (
            "vision_start",
            "vision_end",
            "image_pad",
            "video_pad",
            "im_end",
            "endoftext",
        )
    }
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [2, 3, 3],  # sums to half of a head
        },
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["im_end"],
        "pad_token_id": ids["endoftext"],
    }
    tokens = {
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
    }
    if family.startswith("qwen3"):
        text |= {"head_dim": 32}  # not the width over the heads, as in the small published ones
        text["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        }
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": patch,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        }
        if family == "qwen3_5":
            del vision["deepstack_visual_indexes"]
            rotated = {"partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]}
            text["rope_parameters"] |= rotated
            text |= {
                "num_hidden_layers": 3,
                "layer_types": ["linear_attention", "full_attention", "linear_attention"],
                "linear_key_head_dim": 16,
                "linear_value_head_dim": 8,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
            }
            return Qwen3_5Config(text_config=text, vision_config=vision, **tokens)
        if family == "qwen3_vl":
            return Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **tokens)
    if family == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
        return Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)


def tiny_model(family: FamilyName, seed: int = 0, patch: int = PATCH) -> Any:
    """A model of the family with random weights (about 200,000), in evaluation mode.

    The caller's random state is left as it was.
    """
    import transformers

    kind = {
        "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
        "qwen3_vl_moe": transformers.Qwen3VLMoeForConditionalGeneration,
        "qwen3_5": transformers.Qwen3_5ForConditionalGeneration,
    }[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(tiny_config(family, patch))
        for name, parameter in model.named_parameters():
            # Norms start at 1 and biases at 0: a swapped or lost one would go unnoticed.
            if parameter.ndim == 1:
                start = 0.0 if name.endswith("bias") else 1.0
                torch.nn.init.normal_(parameter, start, 0.1)
    return model.eval()


def tiny_backbone(
    folder: Path, family: FamilyName = "qwen2_5_vl", seed: int = 0, patch: int = PATCH
) -> Path:
    """Saves model and processor as a `from_pretrained` folder, and returns the folder."""
    tiny_model(family, seed, patch).save_pretrained(folder)
    tiny_processor(family, patch).save_pretrained(folder)
    return folder
