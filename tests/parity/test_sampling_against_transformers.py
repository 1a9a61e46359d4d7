"""The tokens that are drawn from, and how, against transformers' warpers and `generate`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rbft.backbone.attention import forward_inputs
from rbft.batch import Sequences
from rbft.data.rationales import about
from rbft.inference.generation import decode, greedy_decode, prefill
from rbft.inference.sampling import UNIT, Draw, RationaleSampling, text_key, weigh
from tests.examples import collator, examples, module, prompt_of, writing

NUCLEUS = RationaleSampling(temperature=0.7, top_p=0.8, top_k=20)


def warp(settings: RationaleSampling, ids: Any, scores: torch.Tensor) -> torch.Tensor:
    """Scores behind the warpers, in the order of `generate`."""
    made: list[Any] = [TemperatureLogitsWarper(settings.temperature)]
    if settings.top_k:
        made.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        made.append(TopPLogitsWarper(settings.top_p))
    return LogitsProcessorList(made)(ids, scores.clone())  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 20, 10**6])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_the_distribution(temperature: float, top_p: float, top_k: int, spread: float) -> None:
    settings = RationaleSampling(temperature=temperature, top_p=top_p, top_k=top_k)
    scores = torch.randn(8, 3000, generator=torch.Generator().manual_seed(0)) * spread
    warped = warp(settings, torch.zeros(8, 1, dtype=torch.long), scores)
    expected, weights = warped.double().softmax(-1), weigh(scores, settings)
    # What is less probable is drawn less than once in 10^14 tokens.
    clear = (expected == 0) | (expected > 1 / UNIT)
    assert torch.equal((weights > 0)[clear], (expected > 0)[clear])
    found = weights.double() / weights.sum(-1, keepdim=True).double()
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-9)


class Recorded:
    """Draws, and notes from which scores."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.scores = draw, []

    def __call__(self, scores: Any, texts: Any, position: int) -> Any:
        self.scores.append(scores.clone())
        return self.draw(scores, texts, position)


def keys(settings: RationaleSampling, count: int) -> list[bytes]:
    clips = [about(f"video {n}", None, None, "Describe it.") for n in range(count)]
    return [text_key(clip, settings.seed, 0) for clip in clips]


def test_the_scores_of_each_token_are_those_of_generate(backbone: Path) -> None:
    """The text that was drawn, fed to `generate` token by token, has the same scores."""
    model, make = module(backbone).backbone, collator(backbone, prompt_stage="rationale")
    settings = writing(backbone, 10, eos_token_id=[-1], repetition_penalty=1.3)
    batch = make(examples(1))
    prompt = prompt_of(batch)
    (read,) = prefill(model, [prompt], batch.video)
    record = Recorded(Draw(NUCLEUS, keys(NUCLEUS, 1)))
    (drawn,) = decode(model, read, settings, record)
    width = prompt.input_ids.shape[1]

    class Forced:
        """Lets `generate` write the text that was drawn."""

        def __init__(self) -> None:
            self.warped: list[torch.Tensor] = []

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.warped.append(warp(NUCLEUS, ids, scores))
            token = drawn[ids.shape[1] - width]
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)

    forced = Forced()
    written = model.generate(
        **forward_inputs(prompt),
        **batch.video,
        **settings,
        do_sample=False,
        pad_token_id=make.processor.tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList([forced]),
    )
    assert written[0, width:].tolist() == drawn
    for scores, warped in zip(record.scores, forced.warped, strict=True):
        found = weigh(scores, NUCLEUS).double() / UNIT
        found = found / found.sum(-1, keepdim=True)
        torch.testing.assert_close(found, warped.double().softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_the_batch_changes_no_text(backbone: Path, packing: bool) -> None:
    """Batches of 1, 2 and 5, in any order, with texts that end after different lengths."""
    model = module(backbone).backbone
    make = collator(backbone, prompt_stage="rationale", packing=packing)
    own = RationaleSampling(temperature=1.0, top_p=0.95)
    made, known = examples(5), keys(own, 5)

    def write(places: list[int], settings: dict[str, Any]) -> dict[int, list[int]]:
        batch = make([made[place] for place in places])
        prompt: Sequences = prompt_of(batch)
        (read,) = prefill(model, [prompt], batch.video)
        texts = decode(model, read, settings, Draw(own, [known[place] for place in places]))
        return dict(zip(places, texts, strict=True))

    free = write([*range(5)], writing(backbone, 12, eos_token_id=[-1]))
    ends = sorted({free[0][2], free[1][5]})
    settings = writing(backbone, 12, eos_token_id=ends)
    whole = write([0, 1, 2, 3, 4], settings)
    assert len(set(map(len, whole.values()))) > 1, "no text ends before another"
    torch.manual_seed(7)
    for batches in ([[0], [1], [2], [3], [4]], [[3, 1], [0, 4], [2]], [[4, 2, 0, 3, 1]]):
        found = {place: text for some in batches for place, text in write(some, settings).items()}
        assert found == whole


def test_samples_share_the_prompt_that_was_read(qwen: Path) -> None:
    model, make = module(qwen).backbone, collator(qwen, prompt_stage="rationale")
    settings, batch = writing(qwen, 8), make(examples(3))
    prompt, clips = prompt_of(batch), [about(f"video {n}", None, None, "") for n in range(3)]

    def draws(sample: int) -> Draw:
        return Draw(NUCLEUS, [text_key(clip, 0, sample) for clip in clips])

    (read,) = prefill(model, [prompt], batch.video)
    together = [decode(model, read.copy(), settings, draws(sample)) for sample in range(3)]
    greedy = greedy_decode(model, read, settings)
    for sample, texts in enumerate(together):
        (again,) = prefill(model, [prompt], batch.video)
        assert decode(model, again, settings, draws(sample)) == texts
    assert together[0] != together[1] != together[2] != together[0]
    (again,) = prefill(model, [prompt], batch.video)
    assert greedy_decode(model, again, settings) == greedy
