"""The collator's tokens and patches against the processor called as its documentation says."""

from pathlib import Path
from typing import Any

import torch
from transformers.video_utils import VideoMetadata

from rbft.data.dataset import Example
from rbft.stages import STAGES
from rbft.video.sampling import Video
from tests.examples import CARD, PAPER_STAGES, collator, examples


def conversation(prompt: str, answer: str | None) -> list[dict[str, Any]]:
    content = [{"type": "video"}, {"type": "text", "text": prompt}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


def by_processor(processor: Any, one: Example, prompt: str, answer: str | None = None) -> Any:
    text = processor.apply_chat_template(
        conversation(prompt, answer), tokenize=False, add_generation_prompt=answer is None
    )
    if type(processor).__name__ == "Qwen3VLProcessor":
        # Which leaves a pair around all frame pairs: see `rbft.backbone.qwen3_vl`.
        text = text.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    video = one.video
    assert isinstance(video, Video)
    metadata = VideoMetadata(
        total_num_frames=video.total_frames, fps=video.fps, frames_indices=video.indices
    )
    return processor(
        text=[text],
        videos=[video.frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )


def test_prompts_and_patches(backbone: Path) -> None:
    make = collator(backbone, prompt_stage="label")
    for one in examples(5):
        batch = make([one])
        assert batch.prompt is not None
        theirs = by_processor(make.processor, one, STAGES["label"].prompt(CARD, one.clip))
        assert batch.prompt.input_ids.tolist() == theirs["input_ids"].tolist()
        assert batch.prompt.attention_mask.tolist() == theirs["attention_mask"].tolist()
        assert batch.video.keys() == {"pixel_values_videos", "video_grid_thw"}
        for name, tensor in batch.video.items():
            assert torch.equal(tensor, theirs[name])
        if "second_per_grid_ts" in theirs:  # Qwen2.5-VL
            assert float(theirs["second_per_grid_ts"][0]) == 2 / one.video.sampled_fps


def test_patches_of_clips_of_different_sizes_keep_their_order(backbone: Path) -> None:
    make, made = collator(backbone, prompt_stage="label"), examples(5)
    together = make(made).video
    alone = [make([one]).video for one in made]
    for name, tensor in together.items():
        assert torch.equal(tensor, torch.cat([video[name] for video in alone]))


def test_prompt_and_answer_are_the_conversation_up_to_the_end_of_the_answer(backbone: Path) -> None:
    for name in PAPER_STAGES:
        stage = STAGES[name]
        make = collator(backbone, target_stage=name)
        for one in examples(3):
            batch = make([one])
            assert batch.answer is not None
            answer = stage.target(CARD, one.clip, one.rationale)
            prompt = stage.prompt(CARD, one.clip)
            theirs = by_processor(make.processor, one, prompt, answer)["input_ids"][0].tolist()
            ours = batch.answer.input_ids[0].tolist()
            assert ours == theirs[: len(ours)]
            # After the end of the turn the template has a line break, which nothing learns.
            assert make.processor.tokenizer.decode(theirs[len(ours) :]) == "\n"


def test_only_answers_and_the_end_of_the_turn_are_learnt(backbone: Path) -> None:
    make = collator(backbone, target_stage="rationale_class")
    batch = make(examples(3))
    assert batch.answer is not None
    for one, row in zip(examples(3), batch.answer.labels.tolist(), strict=True):
        learnt = make.processor.tokenizer.decode([token for token in row if token != -100])
        word = list(CARD.words.values())[one.clip.label or 0]
        assert learnt == f"{one.rationale}\n{word}<|im_end|>"
