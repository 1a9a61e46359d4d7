"""The base model's parts before any training: architecture, tokenizer and processor.

All three are the genuine ones of Qwen2.5-VL, made small: what opens a 7B folder opens this one.
"""

from typing import TYPE_CHECKING

import torch

from rbft.miniature.language import WORDS

if TYPE_CHECKING:
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

# The order of Qwen's own special tokens; `<unk>` stands for every word that the world lacks.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<unk>",
)
TOKENS = SPECIAL_TOKENS + WORDS

# Qwen2.5-VL's turns, without its standing system message, whose words the world lacks.
CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def new_model(seed: int) -> "Qwen2_5_VLForConditionalGeneration":
    """A Qwen2.5-VL of 1.6 million parameters with random weights."""
    from transformers import (
        GenerationConfig,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(TOKENS),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "tie_word_embeddings": True,
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": None,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "num_heads": 4,
            "intermediate_size": 256,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [3],
            "tokens_per_second": 2,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=token_id("<|endoftext|>"),
        eos_token_id=[token_id("<|im_end|>"), token_id("<|endoftext|>")],
        pad_token_id=token_id("<|endoftext|>"),
        do_sample=False,
    )
    return model


def new_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer with one token a word, split at white space and punctuation."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[
            token for token in SPECIAL_TOKENS if token.startswith(("<|im_start", "<|vi", "<|image"))
        ],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def new_processor() -> "Qwen2_5_VLProcessor":
    """Qwen2.5-VL's processor with the world's tokenizer; frames of 84 pixels pass unscaled."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 768}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(pixels)),
        tokenizer=new_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=dict(pixels), cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def token_id(token: str) -> int:
    """The id of a special token or a word."""
    return TOKENS.index(token)
