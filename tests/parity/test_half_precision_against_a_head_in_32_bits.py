"""Scores of a model in half precision, from its last hidden state on in 32 bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rbft.inference.generation import prefill, score_candidates
from rbft.module import RBFTModule
from rbft.stages import LABEL
from tests.examples import batch_of, collator, examples, module, prompt_of, random_video

CLIPS, BATCH = 300, 20


def in_half(folder: Path, precision: str, stage: str = "label") -> tuple[RBFTModule, Any]:
    """The model, and what it runs in."""
    made = module(folder, stage)
    if precision == "bf16-true":
        made.backbone.to(torch.bfloat16)
    return made, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


class States:
    """Keeps the last hidden states of every forward."""

    def __init__(self, backbone: Any) -> None:
        self.kept: list[Tensor] = []
        self.hook = backbone.model.register_forward_hook(
            lambda _, __, out: self.kept.append(out.last_hidden_state.detach())
        )


def reference(head: Tensor, states: list[Tensor], words: list[list[int]], clips: int) -> Tensor:
    """Scores by the head's weights in 64 bits, every token looked up by hand."""
    first, rest = (s.double() @ head.double().T for s in states)
    first, rest = first[:, -1].log_softmax(-1), rest.log_softmax(-1)
    rows = []
    for clip in range(clips):
        row = []
        for number, word in enumerate(words):
            score = first[clip, word[0]]
            for place, token in enumerate(word[1:]):
                score = score + rest[clip * len(words) + number, place, token]
            row.append(score)
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
@torch.no_grad()
def test_probabilities_of_many_clips(backbone: Path, precision: str, packing: bool) -> None:
    made, half = in_half(backbone, precision)
    made.backbone.lm_head.weight *= 10  # else one class is all but certain for every clip
    words = made.collator.class_answers(LABEL)
    make = collator(backbone, prompt_stage="label", packing=packing)
    every = [
        replace(example, video=random_video(example.clip.id, (2, 56, 56)))
        for example in examples(CLIPS)
    ]
    found, errors = [], []
    for start in range(0, CLIPS, BATCH):
        batch = make(every[start : start + BATCH])
        with half:
            states = States(made.backbone)
            got = made.classify(batch).probabilities
            states.hook.remove()
            if packing:  # a clip in a row, its last token last
                ends = torch.tensor(prompt_of(batch).lengths).cumsum(0) - 1
                states.kept[0] = states.kept[0][0, ends][:, None]
            rough = made.backbone.lm_head(states.kept[0][:, -1]).float().log_softmax(-1)
        assert got is not None
        head = made.backbone.lm_head.weight
        expected = reference(head, states.kept, words, BATCH).softmax(-1)
        assert (got.double() - expected).abs().max() < 1e-6
        found += got[:, 1].tolist()
        exact = (states.kept[0][:, -1].double() @ head.double().T).log_softmax(-1)
        errors.append(float((rough - exact).abs().max()))
    # Of so many, two may come out alike in 32 bits.
    assert len(set(found)) > 0.98 * CLIPS
    assert min(errors) > 1e-3, "the head in half precision is as exact"


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("stage", ["rationale", "label"])
@torch.no_grad()
def test_the_validation_s_likelihood(qwen: Path, precision: str, stage: str) -> None:
    """Of whole answers, a rationale's many tokens included."""
    made, half = in_half(qwen, precision, stage)
    learnt = batch_of(collator(qwen, target_stage=stage), examples(3))
    asked = collator(qwen, prompt_stage=stage)(examples(3))
    assert learnt.targets is not None
    answers = learnt.targets.answers
    with half:
        (read,) = prefill(made.backbone, [prompt_of(asked)], asked.video)
        for number, answer in enumerate(answers):
            states = States(made.backbone)
            got = score_candidates(made.backbone, read.copy(), [answer])
            states.hook.remove()
            kept = [read.hidden[:, None], *states.kept]
            expected = reference(made.backbone.lm_head.weight, kept, [answer], 3)
            assert got.dtype == torch.float32
            # A rounding of sums of up to some dozen terms of a few nats each.
            torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-6)
            assert number < 3
