"""What the trainers are timed on: a random Qwen2.5-VL of the real vocabulary size, and clips.

Nothing is downloaded. The model has Qwen2.5-VL-7B's architecture, vocabulary size, patch sizes,
window attention and special tokens, with narrow layers; head and embedding are untied, as there.
Frames have the token count that real ones get from the paper's pixel budget. Clips are so short
(twice the seconds less four is below the tokens of a frame's longer side) that transformers, whose
rule is another than the one the pretrained weights learnt, places the text after them as rbft does;
more frames a second give them the tokens of longer ones.
"""

import csv
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from launch import rbft

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/ is not installed
from tools.miniature_base.base_model import CHAT_TEMPLATE

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
VOCABULARY = 151_936
# Qwen2.5's special tokens in order, from id 151,643 on.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
FIRST_SPECIAL = 151_643
CARD = {
    "name": "timed",
    "persona": "Smart Home Security Expert",
    "words": {"calm": "normal", "alarm": "abnormal"},
    "prompts": {
        "label": "Watch the video of the security camera. Is what happens {words}? "
        "Answer with one word.",
        "rationale": "You are a {persona}. Describe the subjects, their attributes, their actions "
        "and the scenes of this video, and what risk you see in it.",
    },
}
VOCABULARY_TEXT = (
    "the a person dog car package door yard street night day light walks past stands near takes "
    "drops runs towards looks at small large red blue dark bright slowly quickly calm unusual risk "
    "low high none because nothing else happens in front of house then leaves behind scene camera"
)
WORDS = tuple(VOCABULARY_TEXT.split(" "))
COLOURS = ((60, 90, 200), (210, 70, 50), (60, 160, 80), (200, 180, 60))


@dataclass(frozen=True)
class Size:
    """How large model and clips are.

    Attributes:
        vocabulary: Rows of embedding and head.
        hidden: Width of the decoder.
        layers: Decoder blocks.
        vision_hidden: Width of the vision tower.
        vision_layers: Its blocks; the last is the only one without windows.
        frame: Height and width of the clips, multiples of 28.
        seconds: Lengths of the clips, taken in turn.
        fps: Frames a second that the model is shown.
        clips: Training clips.
        tests: Test clips.
        rationale_words: Fewest and most words of a rationale.
    """

    vocabulary: int = VOCABULARY
    hidden: int = 256
    layers: int = 4
    vision_hidden: int = 128
    vision_layers: int = 4
    frame: tuple[int, int] = (280, 392)
    seconds: tuple[int, ...] = (4, 6, 8)
    fps: int = 1
    clips: int = 16
    tests: int = 2
    rationale_words: tuple[int, int] = (150, 250)


TINY = Size(
    vocabulary=2_000,
    hidden=64,
    layers=2,
    vision_hidden=32,
    vision_layers=2,
    frame=(56, 252),
    seconds=(4, 6),
    clips=4,
    rationale_words=(6, 10),
)


@dataclass(frozen=True)
class World:
    """Folders and files of a made world.

    Attributes:
        root: The folder of everything.
        size: How large it is.
    """

    root: Path
    size: Size

    @property
    def backbone(self) -> Path:
        """Model and processor; some trainers choose the model's class by the folder's name."""
        return self.root / "Qwen2.5-VL-timed"

    @property
    def card(self) -> Path:
        """The words of the task."""
        return self.root / "card.yaml"

    @property
    def table(self) -> Path:
        """The clips with split, class and rationale."""
        return self.root / "clips.csv"

    @property
    def pixels(self) -> dict[str, int]:
        """The paper's pixel budget per frame; clips of its size or smaller pass unscaled."""
        height, width = self.size.frame
        return {"min_pixels": min(100_352, height * width), "max_pixels": 151_200}

    @property
    def options(self) -> list[str]:
        """Command-line options of rbft that name all this, on one thread of the processor."""
        return [
            "--data=VideoFolder",
            f"--data.root={self.root}",
            f"--data.table={self.table}",
            f"--data.card={self.card}",
            f"--data.cache_folder={self.root / 'cache'}",
            f"--data.fps={self.size.fps}",
            f"--data.min_pixels={self.pixels['min_pixels']}",
            "--data.num_workers=0",
            f"--model.backbone={self.backbone}",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.precision=32-true",
            f"--trainer.default_root_dir={self.root / 'logs'}",
            "--trainer.enable_progress_bar=false",
            "--cpu_threads=1",
        ]


def make_world(root: Path, size: Size, texts: Sequence[str] = ()) -> World:
    """Writes model, processor, clips, card and table.

    Args:
        root: An empty folder.
        size: How large everything is.
        texts: Rationales, taken in turn with class and colour; empty makes random ones up.
    """
    world = World(root, size)
    root.mkdir(parents=True, exist_ok=True)
    world.card.write_text(yaml.safe_dump(CARD, sort_keys=False), encoding="utf-8")
    make_backbone(world.backbone, size)
    words = random.Random(0)
    rows = []
    for number in range(size.clips + size.tests):
        path = root / f"clip{number:02d}.mp4"
        kind = number % len(COLOURS)
        render(path, size.seconds[number % len(size.seconds)], size.frame, COLOURS[kind], number)
        length = words.randint(*size.rationale_words)
        text = " ".join(words.choices(WORDS, k=length)) + "."
        text = texts[kind % len(texts)] if texts else text
        split = "train" if number < size.clips else "test"
        rows.append([path.name, ("calm", "alarm")[number % 2], split, text])
    with world.table.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "split", "reference"], *rows])
    return world


def teach(world: World, stage: str, steps: int) -> Path:
    """Trains on four clips until answers are what was taught, and returns the weights folder.

    Args:
        world: Model, clips and texts.
        stage: What is taught: label or rationale.
        steps: Optimiser steps.
    """
    with world.table.open(encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream)
    few = world.root / "few.csv"
    with few.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([head, *rows[: len(COLOURS)], rows[-1]])
    rbft(
        "fit",
        *world.options,
        f"--data.table={few}",
        "--name=taught",
        f"--model.stage={stage}",
        "--model.learning_rate=1e-3",
        "--model.merger_learning_rate=1e-3",
        "--model.vision_learning_rate=2e-4",
        "--model.gradient_checkpointing=false",
        "--data.rationale_ratio=0",  # the table's own
        f"--data.batch_size={len(COLOURS)}",
        f"--data.global_batch_size={len(COLOURS)}",
        f"--trainer.max_epochs={steps}",
        folder=world.root,
    )
    return world.root / "logs" / "taught" / stage / "weights"


def render(
    path: Path, seconds: int, size: tuple[int, int], colour: tuple[int, int, int], seed: int
) -> None:
    """A clip at 10 frames a second: a coloured block crosses a grainy ground."""
    import av
    import numpy as np

    height, width = size
    grain = np.random.default_rng(seed).integers(0, 40, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(10 * seconds):
            picture = np.roll(grain, number, axis=1) + 40
            left = (number * 5 + seed * 11) % (width // 2)
            picture[height // 4 : height // 2, left : left + width // 2] = colour
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def make_backbone(folder: Path, size: Size) -> None:
    """Saves a random model and its processor as a `from_pretrained` folder."""
    import torch
    from transformers import (
        GenerationConfig,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = make_tokenizer(size.vocabulary)
    name = tokenizer.convert_tokens_to_ids
    heads = size.hidden // 32
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": 4 * size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 4),
            "max_position_embeddings": 128_000,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [4, 6, 6],  # sums to half of a head
            },
            "tie_word_embeddings": False,
            "bos_token_id": name("<|endoftext|>"),
            "eos_token_id": name("<|im_end|>"),
            "pad_token_id": name("<|endoftext|>"),
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 3 * size.vision_hidden,
            "num_heads": size.vision_hidden // 32,
            "out_hidden_size": size.hidden,
            "fullatt_block_indexes": [size.vision_layers - 1],
            "tokens_per_second": 2,
        },
        vision_start_token_id=name("<|vision_start|>"),
        vision_end_token_id=name("<|vision_end|>"),
        image_token_id=name("<|image_pad|>"),
        video_token_id=name("<|video_pad|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=name("<|endoftext|>"),
        eos_token_id=name("<|im_end|>"),
        pad_token_id=name("<|endoftext|>"),
        do_sample=False,
    )
    model.save_pretrained(folder)
    pixels = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 16_384}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(pixels)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(pixels)),
        chat_template=SYSTEM + CHAT_TEMPLATE,
    ).save_pretrained(folder)


def make_tokenizer(vocabulary: int) -> Any:
    """A byte-level BPE with Qwen2.5's special tokens at their ids, if the vocabulary is its size.

    It is trained on the words that are used; entries that nothing encodes to fill it up.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    first = min(FIRST_SPECIAL, vocabulary - len(SPECIAL_TOKENS))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=min(first, 1_000),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*CARD["prompts"].values(), *CARD["words"].values(), CARD["persona"], " ".join(WORDS)]
    bpe.train_from_iterator([*texts, "system user assistant You are a helpful assistant."], trainer)
    trained = json.loads(bpe.to_str())["model"]
    vocab: dict[str, int] = trained["vocab"]
    digits = math.ceil(math.log10(first))
    vocab |= {f"unused{number:0{digits}d}": number for number in range(len(vocab), first)}
    vocab |= {token: first + place for place, token in enumerate(SPECIAL_TOKENS)}
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[tuple(pair) for pair in trained["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
