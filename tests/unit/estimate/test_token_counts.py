"""Tokens of clips by the scan against those of real batches, and the check of the context."""

from pathlib import Path
from typing import Any

import pytest

from rbft.estimate.dry_run import Plan, count_tokens_of_stages
from rbft.estimate.flops import ClipTokens
from rbft.estimate.token_counts import check_context, count_tokens
from rbft.runs.folder import Run
from tests.examples import (
    SHAPES,
    Texts,
    Yard,
    YardFiles,
    answer_of,
    batch_of,
    clips,
    collator,
    examples,
    module,
    rationale,
    trainer,
)
from tests.several import Pets, pet_collator, pet_examples, pet_module

LONG = ClipTokens((10, 4, 4), 40, 12, 8)
SHORT = ClipTokens((2, 4, 4), 8, 12, 8)


class ShapedFiles(YardFiles):
    """Clips have no files to scan."""

    lost: frozenset[str] = frozenset()

    def grid(self, clip: Any) -> tuple[int, int, int]:
        frames, height, width = SHAPES[int(clip.id.rpartition("_")[2]) % len(SHAPES)]
        if clip.id in self.lost:
            raise ValueError("Frames of 1 x 900 pixels cannot be used")
        return frames // 2, height // 14, width // 14


class Shaped(Yard):
    """The made-up benchmark."""

    files_class = ShapedFiles


class ShapedPets(Pets):
    """The one with several classes a clip."""

    files_class = ShapedFiles


@pytest.fixture
def data(tmp_path: Path) -> Shaped:
    return Shaped(tmp_path / "card.yaml", {"train": 5})


@pytest.mark.parametrize("stage", ["rationale", "label", "rationale_class"])
def test_counts_are_those_of_the_batch(stage, data, backbone):
    make = collator(backbone, target_stage=stage)
    texts = {clip.id: rationale(clip) for clip in clips(5)}
    counts = count_tokens(data, make, clips(5), texts, longest_rationale=99)
    for number, example in enumerate(examples(5)):
        batch = batch_of(make, [example])
        answer, count = answer_of(batch), counts[f"train_{number}"]
        assert count.patches == len(batch.video["pixel_values_videos"])
        assert list(count.grid) == batch.video["video_grid_thw"][0].tolist()
        assert count.total == answer.input_ids.numel()
        assert count.answer == int((answer.labels != -100).sum())
        assert count.video == int((answer.input_ids == make.config.video_token_id).sum())


def test_an_unknown_rationale_is_as_long_as_it_may_get(data, qwen):
    make = collator(qwen, target_stage="rationale")
    known = {"train_0": rationale(clips(1)[0])}
    counts = count_tokens(data, make, clips(2), known, longest_rationale=99)
    assert counts["train_1"].answer == 99 + 1  # and the end of the turn
    assert counts["train_0"].answer == make.answer_tokens(clips(1)[0], known["train_0"])


def test_a_clip_that_cannot_be_decoded_is_left_out(data, qwen):
    data.files.lost = frozenset({"train_1"})
    make = collator(qwen, target_stage="label")
    assert list(count_tokens(data, make, clips(3), {}, 0)) == ["train_0", "train_2"]
    data.files.lost = frozenset(clip.id for clip in clips(3))
    with pytest.raises(ValueError, match="Frames of 1 x 900 pixels cannot be used"):
        count_tokens(data, make, clips(3), {}, 0)


def test_a_clip_beyond_the_context_is_named():
    counts = {"train_0": SHORT, "train_1": LONG}
    check_context(clips(2), counts, 60, "model.backbone tiny")
    with pytest.raises(ValueError, match="train_1") as refused:
        check_context(clips(2), counts, 59, "model.backbone tiny")
    assert str(refused.value) == (
        "Clip train_1 (train_1.mp4) takes 60 tokens (40 of video, 12 of prompt, 8 of answer), but "
        "model.backbone tiny takes at most 59 (max_position_embeddings). 1 of 2 clips are too "
        "long. Lower data.max_frames (at most 18 frames of this size fit), data.fps or "
        "data.max_pixels."
    )


def test_no_number_of_frames_is_offered_where_none_fits():
    with pytest.raises(ValueError, match=r"too long\. Lower data\.max_frames, data\.fps or"):
        check_context(clips(1), {"train_0": LONG}, 19, "model.backbone tiny")


def test_of_several_questions_the_longest_counts(tmp_path, qwen):
    data = ShapedPets(tmp_path, {"train": 3})
    make = pet_collator(qwen, "label")
    found = count_tokens(data, make, data.clips("train"), {}, 8)
    for example in pet_examples(3):
        batch = make([example])
        rows = answer_of(batch).lengths
        assert len(rows) == 3
        # The longest prompt is that of the second class, whose answer may be the shorter one.
        assert batch.targets is not None
        answers = [len(one) for one in batch.targets.answers]
        prompts = [row - own for row, own in zip(rows, answers, strict=True)]
        one = found[example.clip.id]
        assert (one.video + one.prompt, one.answer) == (max(prompts), max(answers))


@pytest.mark.parametrize(("kind", "rows"), [("several", 3), ("one", 1)])
def test_a_training_batch_has_a_row_for_each_question(tmp_path, qwen, kind, rows):
    counts = {"train": 2, "test": 1}
    if kind == "several":
        data, model = ShapedPets(tmp_path, counts), pet_module(qwen)
    else:
        data, model = Shaped(tmp_path / "card.yaml", counts), module(qwen)
    store = Texts({})
    plan = Plan(data, model, trainer(tmp_path), Run(tmp_path / "run"), ["label"], store)
    found = count_tokens_of_stages(plan)
    assert (found["label"].answers, found["test"].answers) == (rows, 1)
    assert len(found["label"].sequences(found["label"].tokens)) == 2 * rows
