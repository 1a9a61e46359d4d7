"""Packed rows and the vision tower's windows against transformers' own attention, clip by clip."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rbft.backbone.attention import TEXT, VISION, _groups, attend, forward_inputs
from rbft.backbone.loading import load_model
from rbft.data.sampler import SampleSlot
from rbft.inference.generation import prefill, score_candidates
from rbft.stages import STAGES
from tests.examples import (
    CARD,
    SHAPES,
    answer_of,
    batch_of,
    collator,
    examples,
    module,
    prompt_of,
    random_video,
)

# The last stands for a clip repeated to even out processes; clips of equal length are among them.
DRAWS = [
    SampleSlot(0, 0.5),
    SampleSlot(1, 2.0),
    SampleSlot(5, 1.0),
    SampleSlot(3, 1.0),
    SampleSlot(0, 0.0),
]


def reference(folder: Path, attention: str = "sdpa") -> Any:
    """The same weights with an attention of transformers' own."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    assert model.config.text_config._attn_implementation == attention
    return model.eval()


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return found


def check(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert max(float(g.abs().max()) for g in theirs.values()) > 0.01
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 1e-6


def one_by_one(folder: Path, stage: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of transformers' `labels=`, put together from one clip at a time."""
    model, make = reference(folder), collator(folder, target_stage=stage)
    made = examples(len(DRAWS), DRAWS)
    tokens = [make.answer_tokens(e.clip, e.rationale) for e in made]
    total = sum(d.weight * n for d, n in zip(DRAWS, tokens, strict=True))
    value = 0.0
    for example, draw, count in zip(made, DRAWS, tokens, strict=True):
        batch = make([example])
        answer = answer_of(batch)
        loss = model(**forward_inputs(answer), **batch.video, labels=answer.labels).loss
        share = draw.weight * count / total * loss
        share.backward()
        value += share.item()
    return value, gradients(model)


@pytest.mark.parametrize("stage", ["rationale", "label", "class_rationale"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_of_a_packed_row(
    backbone: Path, stage: str, checkpointing: bool
) -> None:
    model = module(backbone, stage, gradient_checkpointing=checkpointing)
    model.train(checkpointing)  # recomputed in training mode only; nothing is dropped out
    batch = batch_of(collator(backbone, target_stage=stage, packing=True), examples(5, DRAWS))
    assert answer_of(batch).input_ids.shape[0] == 1
    assert model.backbone.config.text_config._attn_implementation == TEXT
    model.backbone.set_attn_implementation({"vision_config": VISION})
    loss = model.loss(batch)
    loss.backward()
    expected, theirs = one_by_one(backbone, stage)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    check(gradients(model.backbone), theirs)


def test_a_row_without_a_mask(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mask over the packed row is built, and attention grows with each clip's own length."""
    from transformers import AttentionMaskInterface

    batch = batch_of(collator(backbone, target_stage="label", packing=True), examples(4))
    model, cells = module(backbone), []
    mask = AttentionMaskInterface()[TEXT]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setitem(
        AttentionMaskInterface._global_mapping,
        TEXT,
        lambda *args, **settings: cells.append(mask(*args, **settings)),
    )

    def watched(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        assert settings.get("attn_mask") is None
        if settings["is_causal"]:
            cells.append(len(query) * query.shape[2] * key.shape[2])
        return sdpa(query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model.loss(batch)
    assert cells.count(None) == len(cells) - len([c for c in cells if c])
    layers = model.config.text_config.num_hidden_layers
    expected = layers * sum(length**2 for length in answer_of(batch).lengths)
    assert sum(filter(None, cells)) == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_transformers_own_way_to_pack(backbone: Path, attention: str) -> None:
    """Positions that begin anew, which the attentions that build a mask read."""
    batch = batch_of(collator(backbone, target_stage="rationale", packing=True), examples(4))
    answer, targets = answer_of(batch), batch.targets
    assert targets is not None
    theirs = reference(backbone, attention)(
        **forward_inputs(answer),
        **batch.video,
        use_cache=False,
        logits_to_keep=targets.logit_indices,
    ).logits
    torch.testing.assert_close(module(backbone)(batch), theirs[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_clips_of_a_row_do_not_see_each_other(backbone: Path) -> None:
    model, make = module(backbone), collator(backbone, target_stage="label", packing=True)
    made = examples(3)
    before = model(batch_of(make, made))
    other = replace(made[0], video=random_video("other", SHAPES[0]))
    after = model(batch_of(make, [other, *made[1:]]))
    own = make.answer_tokens(made[0].clip, None)
    assert not torch.equal(before[:own], after[:own])
    assert torch.equal(before[own:], after[own:])


class Squares(TorchDispatchMode):
    """Notes what is made whose last two axes are both lengths of prompts."""

    def __init__(self, lengths: set[int]) -> None:
        super().__init__()
        self.lengths, self.found = lengths, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor) and {*tensor.shape[-2:]} <= self.lengths:
                self.found += [tuple(tensor.shape)] * (tensor.ndim > 1)
        return made


@pytest.mark.parametrize("asked", ["label", "both"])
@torch.no_grad()
def test_reading_prompts_makes_nothing_of_their_length_squared(backbone: Path, asked: str) -> None:
    model, found = module(backbone).backbone, {}
    for packing in (True, False):
        make = collator(backbone, prompt_stage="label", packing=packing)
        if asked == "both":
            make = replace(make, extra_prompts=((STAGES["rationale"], CARD),))
        batch = make(examples(4))
        prompts = [prompt_of(batch), *batch.extra_prompts]
        lengths = {*batch.shared, sum(batch.shared)}
        for prompt in prompts:
            lengths |= {*prompt.lengths, sum(prompt.lengths)}
        with Squares(lengths - {0}) as squares:
            for read in prefill(model, prompts, batch.video, batch.shared):
                score_candidates(model, read, [[64, 292, 376], [269, 376]])
        mlp = model.config.text_config.intermediate_size  # some prompt may be as long
        found[packing] = [s for s in squares.found if len(s) == 4 or s[-1] != mlp]
    assert found[True] == []
    width = max(batch.shared or prompt_of(batch).lengths)
    assert (4, 1, width, width) in found[False]


def test_what_was_cached_while_scoring_serves_training(qwen: Path) -> None:
    """The order of a row's segments; autograd refuses tensors that inference mode has made."""
    _groups.cache_clear()
    given: Any = [torch.randn(1, 2, 9, 8) for _ in range(3)]
    settings: Any = {"segments": (2, 5, 2), "scaling": 0.3, "dropout": 0.0, "causal": True}
    with torch.inference_mode():
        expected = attend(*given, **settings)
    made = attend(*(heads.requires_grad_() for heads in given), **settings)
    made.sum().backward()
    torch.testing.assert_close(made.detach(), expected)
    assert _groups.cache_info().misses == 1


def test_eager_attention_pads(qwen: Path) -> None:
    assert not module(qwen, attention="eager").packing
    assert module(qwen).packing
    assert not module(qwen, packing=False).packing


# The vision tower


GRIDS = [[[2, 4, 6], [1, 24, 18]], [[3, 16, 16]], [[1, 4, 4], [1, 10, 26], [2, 4, 4]]]


def by_windows(folder: Path) -> Any:
    """A backbone as it is where there is a GPU."""
    model = module(folder).backbone
    model.set_attn_implementation({"vision_config": VISION})
    return model


def tower(model: Any, grids: list[list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    visual = model.model.visual
    generator = torch.Generator().manual_seed(0)
    count = sum(t * h * w for t, h, w in grids)
    patches = torch.randn(count, 3 * 2 * 14 * 14, generator=generator)
    out = visual(patches, grid_thw=torch.tensor(grids)).pooler_output
    weights = torch.arange(out.numel()).view_as(out).sin()
    (out * weights).mean().backward()
    return out.detach(), {name: p.grad for name, p in visual.named_parameters()}


@pytest.mark.parametrize("grids", GRIDS)
def test_the_tower_s_windows(backbone: Path, grids: list[list[int]]) -> None:
    ours, mine = tower(by_windows(backbone), grids)
    theirs, other = tower(reference(backbone), grids)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    for name, gradient in other.items():
        torch.testing.assert_close(mine[name], gradient, atol=1e-6, rtol=1e-4)


def test_windows_are_one_call_a_length(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *args: Any, **settings: Any) -> Tensor:
        calls.append(tuple(query.shape))
        return sdpa(query, *args, **settings)

    model = by_windows(qwen)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    tower(model, [[2, 10, 20]])
    # Windows of 8 x 8 patches, cut off at the edges; then whole frames.
    assert [(shape[0], shape[2]) for shape in calls] == [
        (4, 64),
        (2, 32),
        (4, 16),
        (2, 8),
        (2, 200),
    ]


def test_a_saved_backbone_does_not_name_our_attention(qwen: Path, tmp_path: Path) -> None:
    model: Any = load_model(str(qwen), "sdpa", checkpointing=False)
    model.set_attn_implementation({"vision_config": VISION})
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert TEXT not in text
    assert VISION not in text
