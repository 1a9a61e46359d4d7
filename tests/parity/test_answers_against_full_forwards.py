"""Scores from a shared, cached prompt against one plain forward per clip and answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from rbft.backbone.attention import TEXT, forward_inputs
from rbft.data.dataset import Example
from rbft.inference import classifier
from rbft.inference.classifier import Classified
from rbft.inference.generation import NotFiniteError, extend, prefill, score_candidates
from rbft.stages import LABEL, STAGES
from tests.examples import (
    CARD,
    answer_of,
    batch_of,
    collator,
    examples,
    is_padded,
    module,
    prompt_of,
    score_answers,
    write_answers,
    writing,
)

END = 376
PACKING = pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
# The first two begin alike, lengths differ, one is but the end of the turn.
ANSWERS = [[64, 292, END], [64, 292, 71, 68, END], [269, END], [64, END], [END]]


def test_the_words_are_of_several_tokens_and_end_the_turn(qwen: Path) -> None:
    assert collator(qwen).class_answers(LABEL) == [[269, END], [64, 292, END]]


@pytest.mark.parametrize(("answers", "fed"), [([[64, 292, END], [END]], [2]), ([[269], [END]], [])])
def test_no_token_is_fed_that_nothing_comes_after(
    qwen: Path, answers: list[list[int]], fed: list[int]
) -> None:
    model, batch = module(qwen).backbone, collator(qwen, prompt_stage="label")(examples(2))
    (read,) = prefill(model, [prompt_of(batch)], batch.video)
    widths: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    score_candidates(model, read, answers)
    assert widths == fed


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
    ask: str = "label",
) -> Tensor:
    """Scores of answers after the prompt and what was written, clip by clip and without padding."""
    scores = []
    for one, text in zip(made, written, strict=True):
        batch = collator(folder, prompt_stage=ask)([one])
        assert batch.prompt is not None
        ids = [*batch.prompt.input_ids[0].tolist(), *text]
        positions = batch.prompt.position_ids[:, 0]
        tail = positions[:, -1:] + torch.arange(1, len(text) + 1)
        positions = torch.cat([positions, tail], dim=1)
        scores.append([full_forward(model, ids, positions, a, batch.video) for a in answers])
    return torch.tensor(scores)


@PACKING
@pytest.mark.parametrize("answers", [ANSWERS, ANSWERS[1:2], [[5], [7]]])
def test_scores_of_prompts_of_several_lengths(
    backbone: Path, answers: list[list[int]], packing: bool
) -> None:
    model, made = module(backbone).backbone, examples(4)
    batch = collator(backbone, prompt_stage="label", packing=packing)(made)
    prompt = prompt_of(batch)
    assert len(set(prompt.lengths)) == 4
    assert is_padded(prompt) is not packing
    scores = score_answers(model, prompt, batch.video, answers)
    expected = expected_scores(backbone, model, made, [[]] * 4, answers)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@PACKING
def test_one_clip_scores_as_in_a_batch(backbone: Path, packing: bool) -> None:
    model, made = module(backbone).backbone, examples(3)
    make = collator(backbone, prompt_stage="label", packing=packing)
    batch = make(made)
    assert batch.prompt is not None
    together = score_answers(model, batch.prompt, batch.video, ANSWERS)
    for row, one in enumerate(made):
        alone = make([one])
        assert alone.prompt is not None
        scores = score_answers(model, alone.prompt, alone.video, ANSWERS)
        torch.testing.assert_close(scores[0], together[row], atol=1e-5, rtol=0)


@pytest.fixture
def strict_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a kernel that gives NaN for a token that sees nothing, as GPUs' kernels may."""
    sdpa = nn.functional.scaled_dot_product_attention

    def strict(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: Any
    ) -> Tensor:
        made = sdpa(query, key, value, attn_mask=attn_mask, **settings)
        if attn_mask is None:
            return made
        assert attn_mask.dtype == torch.bool
        return made.masked_fill(~attn_mask.any(-1, keepdim=True), float("nan"))

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", strict)


@PACKING
def test_padding_cannot_spoil_scores_and_texts(
    backbone: Path, request: pytest.FixtureRequest, packing: bool
) -> None:
    model = module(backbone).backbone
    batch = collator(backbone, prompt_stage="label", packing=packing)(examples(4))
    assert batch.prompt is not None
    given = model, batch.prompt, batch.video
    scores, texts = score_answers(*given, ANSWERS), write_answers(*given, writing(backbone, 6))
    request.getfixturevalue("strict_kernel")
    assert torch.equal(score_answers(*given, ANSWERS), scores)
    assert write_answers(*given, writing(backbone, 6)) == texts


def test_what_such_a_kernel_does_to_padding_that_sees_nothing(
    backbone: Path, strict_kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the test above is not empty; and what is not finite does not pass for an answer."""
    model, batch = module(backbone).backbone, collator(backbone, prompt_stage="label")(examples(4))
    monkeypatch.setattr(
        AttentionMaskInterface,
        "_global_mapping",
        {**AttentionMaskInterface._global_mapping, TEXT: sdpa_mask},
    )
    assert batch.prompt is not None
    padded = (batch.prompt.attention_mask[:, 0] == 0).tolist()
    given = model, batch.prompt, batch.video
    scores = score_answers(*given, ANSWERS)
    assert scores.isfinite().all(-1).tolist() == [not short for short in padded]
    with pytest.raises(NotFiniteError) as found:
        write_answers(*given, writing(backbone, 6))
    lost = [clip for clip, short in enumerate(padded) if short]
    assert found.value.clips == lost
    assert str(found.value) == f"Scores of the clips {lost} of the batch are not finite."


def test_the_answer_s_length_is_not_normalised_away(qwen: Path) -> None:
    # A longer answer with the same beginning can only be less likely.
    model, batch = module(qwen).backbone, collator(qwen, prompt_stage="label")(examples(2))
    assert batch.prompt is not None
    short, long = score_answers(model, batch.prompt, batch.video, [[64, 292], [64, 292, END]]).T
    assert (long < short).all()


@pytest.mark.parametrize(
    "written",
    [
        [[64, 71, 198], [75], [], [68, 75, 75, 78, 198]],  # of different lengths, and none
        [[], [], [], []],
        [[64, 71], [75, 198], [68, 75], [78, 198]],
    ],
    ids=["ragged", "empty", "even"],
)
@PACKING
def test_scores_after_a_rationale_of_the_model_s_own(
    backbone: Path, written: list[list[int]], packing: bool
) -> None:
    model, made = module(backbone).backbone, examples(4)
    batch = collator(backbone, prompt_stage="label", packing=packing)(made)
    (read,) = prefill(model, [prompt_of(batch)], batch.video)
    scores = score_candidates(model, extend(model, read.copy(), written), ANSWERS)
    expected = expected_scores(backbone, model, made, written, ANSWERS)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    # What went on from the copy has left the prompts as they were.
    expected = expected_scores(backbone, model, made, [[]] * 4, ANSWERS)
    torch.testing.assert_close(score_candidates(model, read, ANSWERS), expected, atol=1e-5, rtol=0)


@PACKING
def test_the_class_is_scored_after_the_model_s_own_rationale(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    model, made = module(backbone, "rationale_class"), examples(4)
    said = [[75, 64, 198], [68, 198], [75, 198], []]
    # With class and end; without a class; cut off before the line break; the class alone.
    written = [[*said[0], *ANSWERS[0]], [*said[1][:-1], END], said[2][:-1], ANSWERS[2]]
    monkeypatch.setattr(classifier, "greedy_decode", lambda *_: written)
    batch, towers = collator(backbone, prompt_stage="rationale_class", packing=packing)(made), []
    hook = model.backbone.model.visual.register_forward_hook(lambda *_: towers.append(1))
    got = model.classify(batch)
    hook.remove()
    assert len(towers) == 1, "the video is read again"
    assert isinstance(got, Classified)
    words = model.collator.class_answers(model.stage)
    expected = expected_scores(backbone, model.backbone, made, said, words, ask="rationale_class")
    assert got.scores is not None
    torch.testing.assert_close(got.scores, expected, atol=1e-5, rtol=0)
    assert got.prediction.tolist() == expected.argmax(-1).tolist()
    assert got.texts[0].endswith("abnormal")


def test_an_answer_scores_as_in_training(backbone: Path) -> None:
    """Training puts the answer behind the prompt in the same tokens and positions."""
    model = module(backbone, "rationale")
    for example in examples(3):
        learnt = batch_of(collator(backbone, target_stage="rationale"), [example])
        asked = collator(backbone, prompt_stage="rationale")([example])
        answer = [token for token in answer_of(learnt).labels[0].tolist() if token != -100]
        score = score_answers(model.backbone, prompt_of(asked), asked.video, [answer])
        assert score.item() == pytest.approx(-model.loss(learnt).item() * len(answer), abs=1e-4)


@pytest.mark.parametrize("stage", ["class_rationale", "rationale_class"])
def test_a_class_scores_as_it_was_trained_whatever_the_tokenizer_merges(
    merging: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words as the paper has them; expected are transformers' own figures for training's row."""
    from transformers import AutoModelForImageTextToText

    card = replace(CARD, words={"quiet": "<normal>", "alarm": "<abnormal>"})
    theirs = AutoModelForImageTextToText.from_pretrained(merging, dtype=torch.float32).eval()
    model = module(merging, stage)
    model.card = card
    model.collator = replace(model.collator, card=card)
    tokenizer, made = model.processor.tokenizer, examples(3)
    text = "It climbs."
    expected = []
    for example in made:
        own = []
        for label, word in enumerate(card.words.values()):
            labelled = replace(example, clip=replace(example.clip, label=label), rationale=text)
            batch = model.collator([labelled])
            answer = answer_of(batch)
            with torch.no_grad():
                logits = (
                    theirs(**forward_inputs(answer), **batch.video).logits[0, :-1].log_softmax(-1)
                )
            ids = answer.labels[0, 1:]
            places = (ids != -100).nonzero()[:, 0].tolist()
            # The tokens that spell the class and what ends it, by their text.
            ended = f"{word}\n" if stage == "class_rationale" else f"{word}<|im_end|>"
            whole = tokenizer.decode(ids[places])
            assert whole.count(ended) == 1
            before = whole.index(ended)
            spelt, score = "", 0.0
            for place in places:
                at = len(spelt)
                spelt += tokenizer.decode(ids[place : place + 1])
                if before <= at < before + len(ended):
                    score += float(logits[place, ids[place]])
                    assert len(spelt) <= before + len(ended), "a token is the class's only in part"
            own.append(score)
        expected.append(own)
    # The model has written the rationale alone, so that training's separator follows.
    monkeypatch.setattr(
        classifier, "greedy_decode", lambda *_: [tokenizer(text)["input_ids"]] * len(made)
    )
    asked = replace(model.collator, target_stage=None, prompt_stage=STAGES[stage])(made)
    got = model.classify(asked)
    assert got.scores is not None
    torch.testing.assert_close(got.scores, torch.tensor(expected), atol=1e-5, rtol=0)


@PACKING
def test_written_answers_are_the_likeliest_tokens_one_by_one(backbone: Path, packing: bool) -> None:
    model, made = module(backbone).backbone, examples(3)
    make = collator(backbone, prompt_stage="label", packing=packing)
    batch = make(made)
    written = write_answers(model, prompt_of(batch), batch.video, writing(backbone, 4))
    for one, ids in zip(made, written, strict=True):
        assert len(ids) == 4 or ids[-1] == END
        every, alone = [[*ids[:2], token] for token in range(380)], make([one])
        scores = score_answers(model, prompt_of(alone), alone.video, every)
        assert every[int(scores.argmax())] == ids[:3]


@pytest.mark.parametrize("alike", [False, True])
def test_what_a_packed_reading_leaves_is_what_a_padded_one_does(
    backbone: Path, alike: bool
) -> None:
    """Tokens, positions, keys and values of each clip, and which of them count."""
    model, made = module(backbone).backbone, examples(1) * 3 if alike else examples(4)
    reads = []
    for packing in (False, True):
        batch = collator(backbone, prompt_stage="label", packing=packing)(made)
        reads += prefill(model, [prompt_of(batch)], batch.video)
    theirs, ours = reads
    real = theirs.mask == 1
    assert real.all() == alike
    assert torch.equal(ours.mask, theirs.mask)
    assert ours.lengths == theirs.lengths == tuple(real.sum(1).tolist())
    assert torch.equal(ours.ids[real], theirs.ids[real])
    assert torch.equal(ours.position, theirs.position)
    torch.testing.assert_close(ours.hidden, theirs.hidden, atol=1e-5, rtol=0)
    for mine, other in zip(ours.cache.layers, theirs.cache.layers, strict=True):
        for name in ("keys", "values"):
            a, b = (getattr(layer, name).transpose(1, 2)[real] for layer in (mine, other))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_attention_that_cannot_tell_packed_clips_apart_is_not_given_them(qwen: Path) -> None:
    model = module(qwen, attention="eager").backbone
    batch = collator(qwen, prompt_stage="label", packing=True)(examples(2))
    with pytest.raises(AssertionError):
        next(prefill(model, [prompt_of(batch)], batch.video))
    alone = collator(qwen, prompt_stage="label", packing=True)(examples(1))
    next(prefill(model, [prompt_of(alone)], alone.video))


@PACKING
def test_eager_attention(backbone: Path, packing: bool) -> None:
    """It pads whatever is asked: the module sees to it."""
    made = module(backbone, attention="eager", packing=packing)
    assert not made.packing
    batch = collator(backbone, prompt_stage="label", packing=made.packing)(examples(4))
    assert is_padded(prompt_of(batch))
    scores = score_answers(made.backbone, prompt_of(batch), batch.video, ANSWERS)
    expected = expected_scores(backbone, module(backbone).backbone, examples(4), [[]] * 4, ANSWERS)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
