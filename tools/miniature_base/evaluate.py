"""How well a model describes clips: greedy generation on decoded files, factor by factor."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from numpy import ndarray

from rbft.backbone.positions import position_ids
from rbft.miniature.language import (
    LABEL_PROMPT,
    PERSONAS,
    RATIONALE_PROMPT,
    caption,
    factors,
)
from rbft.miniature.world import make_clips, read_annotations
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import decode_video

BATCH = 32  # videos that are asked about at a time


def figures(
    model: Any,
    processor: Any,
    domain: Literal["general", "target"],
    size: int,
    seed: int,
    assessing: bool = True,
) -> dict[str, float]:
    """What a model makes of new clips of a domain, without any fine-tuning.

    Args:
        model: A Qwen2.5-VL.
        processor: Its processor.
        domain: Where the clips come from.
        size: Number of clips.
        seed: Of the clips.
        assessing: Whether it was taught to end rationales with the risk that it sees.

    Returns:
        The accuracy of each factor of the rationales (see `accuracies`); "label", the accuracy of
        the answers to the label prompt; and "high_is_abnormal", that of reading "risk : high" in
        the rationale as abnormal and everything else as normal.
    """
    with tempfile.TemporaryDirectory() as folder:
        clips = make_clips(Path(folder, "clips"), domain, sizes={"test": size}, seed=seed)
        rows = read_annotations(clips)
        videos = [_frames(clips / row.file) for row in rows]
    answers = ask(model, processor, videos, RATIONALE_PROMPT.format(persona=PERSONAS[0]))
    judged = ["abnormal" if factors(text).get("risk") == "high" else "normal" for text in answers]
    labels = ask(model, processor, videos, LABEL_PROMPT)
    told = [row.caption if assessing else caption(row.factors) for row in rows]
    found = accuracies(told, answers)
    for name, own in (("label", labels), ("high_is_abnormal", judged)):
        found[name] = sum(a == row.label for a, row in zip(own, rows, strict=True)) / size
    return {name: round(value, 4) for name, value in found.items()}


def ask(
    model: Any,
    processor: Any,
    videos: Sequence[UInt8[ndarray, "frames height width 3"]],
    prompt: str,
) -> list[str]:
    """The model's answer to one prompt on each video.

    Args:
        model: A Qwen2.5-VL.
        processor: Its processor.
        videos: Frames at one a second, of the same size and number.
        prompt: One text for all of them.
    """
    answers = []
    for first in range(0, len(videos), BATCH):
        inputs = encode(processor, videos[first : first + BATCH], prompt)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(new, skip_special_tokens=True)
    return answers


def encode(
    processor: Any,
    videos: Sequence[UInt8[ndarray, "frames height width 3"]],
    prompt: str,
) -> dict[str, Any]:
    """Everything that the model's forward takes, with rbft's own positions."""
    from transformers.video_utils import VideoMetadata

    content = [{"type": "video"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    seconds = [
        VideoMetadata(total_num_frames=len(video), fps=1.0, frames_indices=list(range(len(video))))
        for video in videos
    ]
    inputs = processor(
        text=[text] * len(videos),
        videos=list(videos),
        videos_kwargs={"video_metadata": seconds, "do_sample_frames": False},
        return_tensors="pt",
    )
    positions = [
        position_ids(
            ids,
            processor.video_token_id,
            grid.tolist(),
            2,
            [2 * float(step) * n for n in range(grid[0])],
        )
        for ids, grid, step in zip(
            inputs["input_ids"],
            inputs["video_grid_thw"],
            inputs["second_per_grid_ts"],
            strict=True,
        )
    ]
    return {**inputs, "position_ids": torch.stack(positions, dim=1)}


def accuracies(references: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Share of clips on which a rationale names the right word, for each factor.

    A rationale that does not keep to the form is wrong in every factor that cannot be read.

    Args:
        references: The true rationales.
        answers: The model's, in the same order.

    Returns:
        The share for each factor, and as "whole" that of rationales right word for word.
    """
    truths = [factors(reference) for reference in references]
    found = [factors(answer) for answer in answers]
    shares = {
        name: sum(own.get(name) == true[name] for own, true in zip(found, truths, strict=True))
        / len(truths)
        for name in truths[0]
    }
    whole = sum(own == true for own, true in zip(answers, references, strict=True))
    return shares | {"whole": whole / len(truths)}


def _frames(path: Path) -> UInt8[ndarray, "frames height width 3"]:
    settings = FrameSettings(fps=1.0, min_pixels=56 * 56, max_pixels=84 * 84)
    video = decode_video(path, settings)
    return video.frames.permute(0, 2, 3, 1).numpy()
