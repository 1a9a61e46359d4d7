"""Scores from a shared, cached prompt against one plain forward per clip and answer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rbft.answers import continue_prompts, score_answers, write_answers
from rbft.backbone import generation_settings
from rbft.collator import Sequences
from rbft.data.base import Example
from rbft.stages import LABEL
from tests.examples import collator, examples, module

END = 376
# The first two begin alike, lengths differ, one is but the end of the turn.
ANSWERS = [[64, 292, END], [64, 292, 71, 68, END], [269, END], [64, END], [END]]


def test_the_words_are_of_several_tokens_and_end_the_turn(qwen: Path) -> None:
    assert collator(qwen).class_answers(LABEL) == [[269, END], [64, 292, END]]


@torch.no_grad()
def full_forward(
    model: Any, ids: list[int], positions: Tensor, answer: list[int], video: dict[str, Tensor]
) -> float:
    """log P(answer | video, ids), every token looked up by hand."""
    whole = torch.tensor([[*ids, *answer]])
    tail = positions[:, -1:] + torch.arange(1, len(answer) + 1)
    log_p = (
        model(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            position_ids=torch.cat([positions, tail], dim=1)[:, None],
            use_cache=False,
            **video,
        )
        .logits[0]
        .log_softmax(-1)
    )
    return sum(float(log_p[len(ids) - 1 + k, token]) for k, token in enumerate(answer))


def expected_scores(
    folder: Path,
    model: Any,
    made: list[Example],
    written: list[list[int]],
    answers: list[list[int]],
) -> Tensor:
    """Scores of answers after the prompt and what was written, clip by clip and without padding."""
    scores = []
    for one, text in zip(made, written, strict=True):
        batch = collator(folder, ask="label")([one])
        assert batch.prompt is not None
        ids = [*batch.prompt.input_ids[0].tolist(), *text]
        positions = batch.prompt.position_ids[:, 0]
        tail = positions[:, -1:] + torch.arange(1, len(text) + 1)
        positions = torch.cat([positions, tail], dim=1)
        scores.append([full_forward(model, ids, positions, a, batch.video) for a in answers])
    return torch.tensor(scores)


@pytest.mark.parametrize("answers", [ANSWERS, ANSWERS[1:2], [[5], [7]]])
def test_scores_of_left_padded_prompts(backbone: Path, answers: list[list[int]]) -> None:
    model, made = module(backbone).backbone, examples(4)
    batch = collator(backbone, ask="label")(made)
    assert batch.prompt is not None
    assert (batch.prompt.attention_mask[:, 0] == 0).any(), "nothing is padded"
    scores = score_answers(model, batch.prompt, batch.video, answers)
    expected = expected_scores(backbone, model, made, [[]] * 4, answers)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_one_clip_scores_as_in_a_batch(backbone: Path) -> None:
    model, make, made = module(backbone).backbone, collator(backbone, ask="label"), examples(3)
    batch = make(made)
    assert batch.prompt is not None
    together = score_answers(model, batch.prompt, batch.video, ANSWERS)
    for row, one in enumerate(made):
        alone = make([one])
        assert alone.prompt is not None
        scores = score_answers(model, alone.prompt, alone.video, ANSWERS)
        torch.testing.assert_close(scores[0], together[row], atol=1e-5, rtol=0)


def test_the_answer_s_length_is_not_normalised_away(qwen: Path) -> None:
    # A longer answer with the same beginning can only be less likely.
    model, batch = module(qwen).backbone, collator(qwen, ask="label")(examples(2))
    assert batch.prompt is not None
    short, long = score_answers(model, batch.prompt, batch.video, [[64, 292], [64, 292, END]]).T
    assert (long < short).all()


def test_scores_after_a_rationale_of_the_model_s_own(backbone: Path) -> None:
    model, made = module(backbone).backbone, examples(4)
    batch = collator(backbone, ask="label")(made)
    assert batch.prompt is not None
    written = [[64, 71, 198], [75], [], [68, 75, 75, 78, 198]]
    prompt = continue_prompts(batch.prompt, written, pad=377)
    scores = score_answers(model, prompt, batch.video, ANSWERS)
    expected = expected_scores(backbone, model, made, written, ANSWERS)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_continued_prompts_are_what_the_answer_s_sequence_is(backbone: Path) -> None:
    """Training puts the rationale behind the prompt in the same tokens and positions."""
    made = examples(3)
    trained = collator(backbone, learn="rationale")(made).answer
    asked = collator(backbone, ask="rationale")(made).prompt
    assert trained is not None
    assert asked is not None
    answers = [[token for token in row if token != -100] for row in trained.labels.tolist()]
    continued = continue_prompts(asked, answers, pad=377)
    for row in range(3):
        ours, theirs = _unpadded(continued, row), _unpadded(trained, row)
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other)


def _unpadded(sequences: Sequences, row: int) -> tuple[Tensor, Tensor]:
    real = sequences.attention_mask[row].bool()
    return sequences.input_ids[row, real], sequences.position_ids[:, row, real]


def test_written_answers_are_the_likeliest_tokens_one_by_one(backbone: Path) -> None:
    model, made = module(backbone).backbone, examples(3)
    make = collator(backbone, ask="label")
    batch = make(made)
    assert batch.prompt is not None
    settings = generation_settings(make.processor, max_new_tokens=4)
    written = write_answers(model, batch.prompt, batch.video, settings)
    for row, ids in enumerate(written):
        assert len(ids) == 4 or ids[-1] == END
        every = [[*ids[:2], token] for token in range(380)]
        scores = score_answers(model, _row(batch.prompt, row), make([made[row]]).video, every)
        assert every[int(scores.argmax())] == ids[:3]


def _row(prompt: Sequences, row: int) -> Sequences:
    return Sequences(
        prompt.input_ids[row : row + 1],
        prompt.attention_mask[row : row + 1],
        prompt.position_ids[:, row : row + 1],
        prompt.labels[row : row + 1],
    )
