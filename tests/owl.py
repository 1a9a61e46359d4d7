"""A tiny random OWLv2, an open-vocabulary detector of transformers, with its processor."""

from pathlib import Path

import torch


def tiny_owl(folder: Path) -> Path:
    """Saves model and processor as a `from_pretrained` folder, and returns the folder."""
    from transformers import (
        CLIPTokenizer,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    # Characters, alone and at the end of a word.
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*characters, *(f"{one}</w>" for one in characters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=16
    )
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    size["num_attention_heads"] = 2
    config = Owlv2Config(
        text_config={
            **size,
            "vocab_size": len(tokens),
            "max_position_embeddings": 16,
            "bos_token_id": len(tokens) - 2,
            "eos_token_id": len(tokens) - 1,
        },
        vision_config={**size, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Owlv2ForObjectDetection(config)
        for parameter in model.box_head.parameters():  # so that boxes stay near their patches
            parameter.data *= 0.3
    model.save_pretrained(folder)
    pictures = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    Owlv2Processor(pictures, tokenizer).save_pretrained(folder)
    return folder
