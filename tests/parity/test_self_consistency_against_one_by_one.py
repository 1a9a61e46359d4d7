"""Averaging over drawn rationales against each clip and each draw alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.inference import classifier
from rbft.inference.generation import decode, extend, prefill, score_candidates
from rbft.inference.sampling import Draw, SelfConsistency, text_key
from tests.examples import collator, examples, module, prompt_of

SETTINGS = SelfConsistency(samples=4, temperature=1.3, seed=2, early_stop=False)


@pytest.fixture
def model(qwen: Path) -> Any:
    made = module(qwen, "rationale_class", self_consistency=SETTINGS, max_new_tokens=8)
    for parameter in made.backbone.parameters():
        if parameter.dim() > 1:  # so that what stands before the class changes its probability
            parameter.data *= 3
    return made


def classify(model: Any, folder: Path, count: int = 3, *, packing: bool = False) -> Any:
    batch = collator(folder, prompt_stage="rationale_class", packing=packing)(examples(count))
    with torch.no_grad():
        return model.classify(batch)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_it_is_the_mean_over_draws_each_made_alone(model: Any, qwen: Path, packing: bool) -> None:
    got = classify(model, qwen, packing=packing)
    make = collator(qwen, prompt_stage="rationale_class")
    words = model.collator.class_answers(model.stage)
    for place, example in enumerate(examples(3)):
        batch, shares, tokens = make([example]), [], 0
        for number in range(SETTINGS.samples):
            with torch.no_grad():
                (read,) = prefill(model.backbone, [prompt_of(batch)], model.vision(batch))
                key = text_key({"clip": example.clip.id}, SETTINGS.seed, number)
                (ids,) = decode(
                    model.backbone, read.copy(), model.generation, Draw(SETTINGS, [key])
                )
                tokens += len(ids)
                before = model.classifier._parse([ids], words).rationales
                behind = extend(model.backbone, read, before)
                shares.append(score_candidates(model.backbone, behind, words)[0].softmax(-1))
        expected = torch.stack(shares).mean(0)
        assert float(torch.stack(shares)[:, 0].std()) > 1e-4  # the draws differ
        torch.testing.assert_close(got.probabilities[place], expected, atol=2e-5, rtol=0)
        assert got.written[place] == tokens
        assert int(got.prediction[place]) == int(expected.argmax())


def test_what_is_drawn_about_a_clip_depends_on_the_clip_alone(model: Any, qwen: Path) -> None:
    first = classify(model, qwen, 1)
    among = classify(model, qwen, 3)
    torch.testing.assert_close(first.scores[0], among.scores[0], atol=1e-4, rtol=0)
    assert first.texts[0] == among.texts[0]
    again = classify(model, qwen, 3)
    torch.testing.assert_close(again.scores, among.scores)
    model.self_consistency = replace(SETTINGS, seed=3)
    assert classify(model, qwen, 3).texts != among.texts


# Probability of the first class of three clips in five draws.
DRAWN = ((0.9, 0.9, 0.9, 0.1, 0.1), (0.4, 0.3, 0.2, 0.1, 0.0), (0.6, 0.4, 0.6, 0.4, 0.6))


def scripted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has the draws say the above; gives back how many clips were asked in each."""
    asked: list[int] = []
    left = [list(own) for own in DRAWN]
    open_clips: list[list[int]] = [[0, 1, 2]]

    def select(self: Any, clips: Sequence[int]) -> Any:
        open_clips[0] = list(clips)
        return self

    def scores(*_: Any) -> torch.Tensor:
        asked.append(len(open_clips[0]))
        shares = torch.tensor([left[clip].pop(0) for clip in open_clips[0]], dtype=torch.float64)
        return torch.stack([shares, 1 - shares], dim=1).log()

    monkeypatch.setattr("rbft.inference.generation.PrefilledPrompt.select", select)
    monkeypatch.setattr("rbft.inference.generation.PrefilledPrompt.copy", lambda self: self)
    monkeypatch.setattr(classifier, "decode", lambda *_: [[70 + len(asked)] for _ in open_clips[0]])
    monkeypatch.setattr(classifier, "extend", lambda *_: None)
    monkeypatch.setattr(classifier, "score_candidates", scores)
    return asked


def test_no_more_is_drawn_than_can_change_the_class(
    model: Any, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch)
    model.self_consistency = replace(SETTINGS, samples=5, early_stop=True)
    got = classify(model, qwen)
    # Sums after each draw, first minus second class: 0.8, 1.6, 2.4 with two draws left: decided.
    # -0.2, -0.6, -1.2, -2.0 with one left: decided. 0.2, 0, 0.2, 0, 0.2: never before the end.
    assert asked == [3, 3, 3, 2, 1]
    assert got.written == [3, 4, 5]
    assert got.prediction.tolist() == [0, 1, 0]
    means = [sum(own[:count]) / count for own, count in zip(DRAWN, got.written, strict=True)]
    assert got.probabilities[:, 0].tolist() == pytest.approx(means)


def test_all_are_drawn_where_that_is_asked(
    model: Any, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch)
    model.self_consistency = replace(SETTINGS, samples=5)
    got = classify(model, qwen)
    assert asked == [3] * 5
    assert got.prediction.tolist() == [0, 1, 0]
    # What is shown of a clip led to its class: the second one's first draw did not.
    assert got.texts[0] == model.processor.tokenizer.decode([70])


def test_a_class_that_no_draw_gives_any_chance_has_a_score(
    model: Any, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch)
    sure = torch.tensor([[0.0, -1e4]] * 3)
    monkeypatch.setattr(classifier, "score_candidates", lambda *_: sure)
    model.self_consistency = replace(SETTINGS, samples=2)
    got = classify(model, qwen)  # refuses scores that are not finite
    assert got.prediction.tolist() == [0, 0, 0]
