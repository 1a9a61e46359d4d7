"""Tiny random open-vocabulary detectors of transformers, with their processors."""

from pathlib import Path

import torch


def tiny_owl(folder: Path) -> Path:
    """Saves an OWLv2 and its processor as a `from_pretrained` folder, and returns the folder."""
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


def tiny_dino(folder: Path) -> Path:
    """The same of an MM-Grounding-DINO, which knows the words dog, trash, can and a."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        MMGroundingDinoConfig,
        MMGroundingDinoForObjectDetection,
        SwinConfig,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "dog", "trash", "can", "a"]
    tower = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=4,
        out_indices=[2, 3, 4],  # pyright: ignore[reportCallIssue]
    )
    text = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    config = MMGroundingDinoConfig(
        backbone_config=tower,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=8,
        max_text_len=32,
        num_feature_levels=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MMGroundingDinoForObjectDetection(config)
    model.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder
