"""Texts written in a batch that its finished clips leave, against transformers' `generate`."""

from dataclasses import replace
from operator import sub
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.backbone.attention import forward_inputs
from rbft.batch import Sequences
from rbft.card import Card
from rbft.inference.generation import decode_texts, greedy_decode, prefill, score_candidates
from rbft.stages import STAGES
from tests.examples import (
    CARD,
    Yard,
    collator,
    examples,
    fed,
    is_padded,
    module,
    prompt_of,
    rationale_module,
    score_answers,
    trainer,
    write_answers,
    writing,
)

Answers = list[list[int]]
PACKING = pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])


def one_by_one(
    folder: Path, model: Any, count: int, settings: dict[str, Any], card: Card = CARD
) -> Answers:
    make, texts = replace(collator(folder, prompt_stage="rationale"), card=card), []
    # Spelt out: the hub's generation configs sample.
    greedy = {"do_sample": False, "pad_token_id": make.processor.tokenizer.pad_token_id}
    for example in examples(count):
        batch = make([example])
        prompt = prompt_of(batch)
        written = model.generate(**forward_inputs(prompt), **batch.video, **settings, **greedy)
        texts.append(written[0, prompt.input_ids.shape[1] :].tolist())
    return texts


def an_end(texts: Answers) -> int:
    """A token at which the texts would end after the most different lengths."""

    def lengths(token: int) -> set[int]:
        return {text.index(token) if token in text else len(text) for text in texts}

    return max({token for text in texts for token in text}, key=lambda token: len(lengths(token)))


def another_end(texts: Answers, first: int) -> int:
    """A token that comes before the first end in about half of the texts."""
    before = [text[1 : text.index(first)] if first in text else text[1:] for text in texts]
    tokens = sorted({token for text in before for token in text})
    return min(tokens, key=lambda token: abs(2 * sum(token in text for text in before) - 5))


@PACKING
@pytest.mark.parametrize("longest", [1, 2, 12])
def test_the_same_text_as_one_by_one(backbone: Path, longest: int, packing: bool) -> None:
    model, make = (
        module(backbone).backbone,
        collator(backbone, prompt_stage="rationale", packing=packing),
    )
    unending = writing(backbone, 12, eos_token_id=[-1])
    ends = [an_end(one_by_one(backbone, model, 5, unending))]
    settings = writing(backbone, longest, eos_token_id=ends)
    expected = one_by_one(backbone, model, 5, settings)
    if longest > 2:
        assert len(set(map(len, expected))) > 1, "no clip ends before another"
    batch = make(examples(5))
    prompt = prompt_of(batch)
    assert is_padded(prompt) is not packing
    assert write_answers(model, prompt, batch.video, settings) == expected


@PACKING
@pytest.mark.parametrize("penalty", [1.05, 1.3, 0.8])
def test_repetition_is_penalised_and_any_of_several_ids_ends_a_text(
    backbone: Path, penalty: float, packing: bool
) -> None:
    model, make = (
        module(backbone).backbone,
        collator(backbone, prompt_stage="rationale", packing=packing),
    )
    longest = 40
    plain = one_by_one(backbone, model, 5, writing(backbone, longest, eos_token_id=[-1]))
    settings = writing(backbone, longest, eos_token_id=[-1], repetition_penalty=penalty)
    unending = one_by_one(backbone, model, 5, settings)
    assert unending != plain, "the penalty changes nothing"
    batch = make(examples(5))
    prompt = prompt_of(batch)
    assert is_padded(prompt) is not packing
    assert write_answers(model, prompt, batch.video, settings) == unending

    first = an_end(unending)
    settings["eos_token_id"] = [first, second := another_end(unending, first)]
    expected = one_by_one(backbone, model, 5, settings)
    assert expected != one_by_one(backbone, model, 5, settings | {"eos_token_id": [first]})
    assert second in {text[-1] for text in expected}, "the second id ends no text"
    assert write_answers(model, prompt, batch.video, settings) == expected


def test_a_score_below_zero_is_penalised_by_multiplying(qwen: Path) -> None:
    model, make = module(qwen).backbone, collator(qwen, prompt_stage="rationale")
    model.lm_head.register_forward_hook(lambda head, given, scores: scores - 100)
    settings = writing(qwen, 8, eos_token_id=[-1], repetition_penalty=1.01)
    batch = make(examples(3))
    expected = one_by_one(qwen, model, 3, settings)
    assert write_answers(model, prompt_of(batch), batch.video, settings) == expected


@PACKING
def test_padding_is_no_repetition(qwen: Path, packing: bool) -> None:
    """What a clip's neighbours are changes no text, not even where the padding is written."""
    model, make = module(qwen).backbone, collator(qwen, prompt_stage="rationale", packing=packing)
    pad = make.processor.tokenizer.pad_token_id
    settings = writing(qwen, 1, repetition_penalty=1e4)
    batch = make(examples(4))
    (read,) = prefill(model, [prompt_of(batch)], batch.video)
    rows = (read.mask == 0).any(1)
    assert rows.any()
    with torch.no_grad():
        model.lm_head.weight[:] = read.hidden.mean(0).sign() * 1e-3
        model.lm_head.weight[pad] *= 2
        logits = model.lm_head(read.hidden)
    assert (logits.argmax(-1) == pad).all()
    assert (logits > 0).all()
    assert greedy_decode(model, read, settings) == [[pad]] * 4


@PACKING
def test_finished_clips_leave(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    model, make = (
        module(backbone).backbone,
        collator(backbone, prompt_stage="rationale", packing=packing),
    )
    texts = one_by_one(backbone, model, 5, writing(backbone, 12, eos_token_id=[-1]))
    settings = writing(backbone, 12, eos_token_id=[an_end(texts)])
    batch, sizes = make(examples(5)), []
    prompt = prompt_of(batch)
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, given: sizes.append(len(given["inputs_embeds"])), with_kwargs=True
    )
    written = write_answers(model, prompt, batch.video, settings)
    hook.remove()
    # The first forward reads the prompts; each further one takes the clips that still write.
    expected = [sum(len(text) > step for text in written) for step in range(max(map(len, written)))]
    assert sizes == [1 if packing else 5, *expected[1:]]
    assert sizes[-1] < 5


@PACKING
@torch.no_grad()
def test_a_longer_neighbour_changes_nothing(qwen: Path, packing: bool) -> None:
    model, make = module(qwen).backbone, collator(qwen, prompt_stage="rationale", packing=packing)
    settings = writing(qwen, 6, repetition_penalty=1.3)
    whole, alone = make(examples(2)), make(examples(1))
    together = write_answers(model, prompt_of(whole), whole.video, settings)
    assert write_answers(model, prompt_of(alone), alone.video, settings) == together[:1]


# Several prompts about the same clips


WORDS = [[64, 292, 376], [64, 376], [269, 376]]


def row_of(prompt: Sequences, clip: int) -> list[int]:
    """A clip's tokens."""
    if len(prompt.input_ids) == 1:
        return prompt.input_ids[0].split(prompt.lengths)[clip].tolist()
    return prompt.input_ids[clip, prompt.attention_mask[clip] == 1].tolist()


@PACKING
@pytest.mark.parametrize("order", [("label", "rationale"), ("rationale", "label", "rationale")])
def test_what_prompts_share_is_read_once(
    backbone: Path, order: tuple[str, ...], packing: bool
) -> None:
    model, made = module(backbone).backbone, examples(4)
    make = collator(backbone, prompt_stage=order[0], packing=packing)
    make = replace(make, extra_prompts=tuple((STAGES[name], CARD) for name in order[1:]))
    batch = make(made)
    prompts, video = [prompt_of(batch), *batch.extra_prompts], batch.video
    settings = writing(backbone, 6, repetition_penalty=1.3)
    alone = [
        (score_answers(model, prompt, video, WORDS), write_answers(model, prompt, video, settings))
        for prompt in prompts
    ]

    towers, fed = [], []
    hooks = [
        model.model.visual.register_forward_hook(lambda *args: towers.append(1)),
        model.model.language_model.register_forward_pre_hook(
            lambda module, args, given: fed.append(given["inputs_embeds"].shape[1]),
            with_kwargs=True,
        ),
    ]
    reads = list(prefill(model, prompts, video, batch.shared))
    for hook in hooks:
        hook.remove()

    assert len(towers) == 1
    # What they begin with, and the rest of each, which holds no video.
    assert fed == [
        sum(batch.shared) if packing else max(batch.shared),
        *(max(map(sub, prompt.lengths, batch.shared)) for prompt in prompts),
    ]
    for prompt in prompts:
        for clip, begun in enumerate(batch.shared):
            own = row_of(prompt, clip)
            assert make.config.video_token_id in own[:begun]
            assert make.config.video_token_id not in own[begun:]
            assert own[:begun] == row_of(prompts[0], clip)[:begun]
    assert len({tuple(row_of(prompt, 0)[: batch.shared[0] + 1]) for prompt in prompts}) > 1
    again = prefill(model, prompts, video, batch.shared)
    for one, other, (scores, texts) in zip(reads, again, alone, strict=True):
        torch.testing.assert_close(score_candidates(model, one, WORDS), scores, atol=1e-5, rtol=0)
        assert greedy_decode(model, other, settings) == texts


def test_rationales_of_several_prompts(backbone: Path, tmp_path: Path) -> None:
    """One pass of Stage 0 over the clips writes what each prompt alone would be answered."""
    cards = [CARD, CARD.using("less"), CARD.using("label")]
    yard = Yard(tmp_path / "card.yaml", {"train": 5}, eval_batch_size=2)
    yard.feed = replace(
        yard.feed, predict_clips=[replace(clip, split="predict") for clip in yard.clips("train")]
    )
    made, towers = rationale_module(backbone, *cards), []
    settings = writing(backbone, made.max_new_tokens)
    expected = [one_by_one(backbone, made.backbone, 5, settings, card) for card in cards]
    made.backbone.model.visual.register_forward_hook(lambda *_: towers.append(1))
    batches = trainer(tmp_path).predict(made, datamodule=fed(yard, made))
    assert len(towers) == 3  # batches of 2, 2 and 1
    texts = [[text for batch in batches or [] for text in batch[n].texts] for n in range(3)]  # type: ignore[index]
    tokenizer = made.processor.tokenizer
    assert texts == [decode_texts(ids, tokenizer, settings) for ids in expected]
    assert len({str(own) for own in texts}) == 3
