"""True and tiny sizes of Qwen2.5-VL, and what GPUs compute in dense bf16."""

from typing import Any

# Dense bf16 with 32-bit sums, in TFLOP/s, by a part of the name; from the makers' data sheets.
PEAKS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
SIZES = {
    "7b": {
        "text": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
        },
        "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16},
        "sections": [16, 24, 24],
        "patches": (20, 36),
    },
    "tiny": {
        "text": {
            "vocab_size": 384,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
        "sections": [2, 3, 3],
        "patches": (4, 6),
    },
}


def make_config(size: str) -> Any:
    """Qwen2.5-VL's configuration."""
    from transformers import Qwen2_5_VLConfig

    facts = SIZES[size]
    text = {**facts["text"], "bos_token_id": 0, "eos_token_id": 1}
    sections = {"mrope_section": facts["sections"]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, **sections}
    vision = {**facts["vision"], "out_hidden_size": text["hidden_size"], "tokens_per_second": 2}
    vision["fullatt_block_indexes"] = [7, 15, 23, 31] if size == "7b" else [1]
    ids = dict.fromkeys(("image_token_id", "vision_start_token_id", "vision_end_token_id"), 2)
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, video_token_id=3, **ids)
