"""Rows of attention, rollout and their places in the video, against eager attention's weights."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rbft.attention.capture import (
    attention_rows,
    capture_heads,
    capture_last_rows,
    rollout_row,
)
from rbft.attention.causal import grey_out
from rbft.attention.maps import mean_row, read_map, token_grid, video_map
from rbft.batch import Batch
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.estimate.flops import head_width
from rbft.inference.generation import prefill, score_candidates
from rbft.stages import STAGES
from tests.examples import CARD, clips, collator, module, prompt_of, random_video

SHAPE = (6, 84, 140)  # three frame pairs of 3 x 5 tokens
GRID = (3, 3, 5)
SLOT = SampleSlot(0)
WORDS = [[64, 292, 376], [269, 376]]


def batch_of(folder: Path, name: str = "train_0", **changed: Any) -> Batch:
    """One clip and its question."""
    example = Example(clips(1)[0], changed.get("video") or random_video(name, SHAPE), None, SLOT)
    return collator(folder, prompt_stage="label", packing=True)([example])


@torch.no_grad()
def eager_weights(folder: Path, batch: Batch) -> list[Tensor]:
    """ "heads tokens tokens" of each layer."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    prompt = prompt_of(batch)
    out = model(
        input_ids=prompt.input_ids,
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        use_cache=False,
        output_attentions=True,
        **batch.video,
    )
    return [layer[0] for layer in out.attentions]


def test_the_last_row_is_that_of_eager_attention_and_no_score_changes(backbone: Path) -> None:
    model, batch = module(backbone).backbone, batch_of(backbone)
    name = model.config.text_config._attn_implementation
    own = ALL_ATTENTION_FUNCTIONS[name]
    plain = score_candidates(model, next(prefill(model, [prompt_of(batch)], batch.video)), WORDS)
    with capture_last_rows(model, [0, 1]) as rows:
        read = next(prefill(model, [prompt_of(batch)], batch.video))
    assert ALL_ATTENTION_FUNCTIONS[name] is own
    assert torch.equal(score_candidates(model, read, WORDS), plain)
    expected = eager_weights(backbone, batch)
    assert sorted(rows) == [0, 1]
    for layer, found in rows.items():
        torch.testing.assert_close(found, expected[layer][:, -1], atol=1e-6, rtol=1e-5)
    tokens = prompt_of(batch).input_ids.shape[1]
    assert sum(found.numel() for found in rows.values()) == 2 * 4 * tokens


def test_only_the_layers_that_are_asked_for_are_taken(qwen: Path) -> None:
    model, batch = module(qwen).backbone, batch_of(qwen)
    with capture_last_rows(model, [1]) as rows:
        next(prefill(model, [prompt_of(batch)], batch.video))
    assert list(rows) == [1]


def test_after_a_kv_cache_the_row_is_the_same(backbone: Path) -> None:
    """Two prompts about a clip share their beginning with the video, which runs once."""
    model = module(backbone).backbone
    make = collator(backbone, prompt_stage="label", packing=True)
    two = replace(make, extra_prompts=((STAGES["rationale"], CARD),))
    example = Example(clips(1)[0], random_video("train_0", SHAPE), None, SLOT)
    batch = two([example])
    with capture_last_rows(model, [0, 1]) as rows:
        reads = prefill(model, [prompt_of(batch), *batch.extra_prompts], batch.video, batch.shared)
        next(reads)
    expected = eager_weights(backbone, make([example]))
    for layer, found in rows.items():
        torch.testing.assert_close(found, expected[layer][:, -1], atol=1e-6, rtol=1e-5)


def test_an_error_leaves_the_attention_as_it_was(qwen: Path) -> None:
    model = module(qwen).backbone
    name = model.config.text_config._attn_implementation
    own = ALL_ATTENTION_FUNCTIONS[name]

    def fail() -> None:
        with capture_heads(model):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert ALL_ATTENTION_FUNCTIONS[name] is own


class Squares(TorchDispatchMode):
    """Notes tensors with two axes of a length, that is attention over all tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.found = tokens, list[tuple[int, ...]]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor) and list(one.shape).count(self.tokens) > 1:
                self.found.append(tuple(one.shape))
        return made


def test_no_tensor_of_tokens_squared_is_made(qwen: Path) -> None:
    batch = batch_of(qwen)
    tokens = prompt_of(batch).input_ids.shape[1]
    found = {}
    for attention in ("sdpa", "eager"):
        model = module(qwen, attention=attention).backbone
        taken: Any = capture_last_rows(model, [0, 1]) if attention == "sdpa" else nullcontext()
        with taken, Squares(tokens) as squares:
            next(prefill(model, [prompt_of(batch)], batch.video))
        found[attention] = squares.found
    assert found["sdpa"] == []
    assert (1, 4, tokens, tokens) in found["eager"]  # so that they would have been seen


@pytest.mark.parametrize("chunk", [None, 7])
def test_rollout_is_that_of_dense_matrices(backbone: Path, chunk: int | None) -> None:
    model, batch = module(backbone).backbone, batch_of(backbone)
    with capture_heads(model) as heads:
        next(prefill(model, [prompt_of(batch)], batch.video))
    whole = torch.eye(prompt_of(batch).input_ids.shape[1], dtype=torch.float64)
    for weights in eager_weights(backbone, batch):
        mean = weights.double().mean(0)
        whole = (mean + torch.eye(len(mean))) / 2 @ whole
    found = rollout_row(heads, chunk)
    torch.testing.assert_close(found.double(), whole[-1], atol=1e-6, rtol=1e-5)
    # Queries and keys of each layer: linear in the tokens.
    tokens, width = len(found), head_width(model.config.text_config)
    stored = sum(query.numel() + key.numel() for query, key, _ in heads.values())
    assert stored == 2 * tokens * (4 + 2) * width


def test_rows_do_not_see_what_follows_them() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(n, 6, 8, generator=generator) for n in (4, 2))
    rows = torch.tensor([0, 3])
    found = attention_rows(query, key, 0.3, rows)
    scores = query @ key.repeat_interleave(2, 0).mT * 0.3
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    expected = scores.masked_fill(~causal, float("-inf")).softmax(-1)[:, rows]
    torch.testing.assert_close(found, expected)
    # Three queries behind three keys of a cache.
    found = attention_rows(query[:, 3:], key, 0.3, torch.tensor([1]))
    expected = scores.masked_fill(~causal, float("-inf")).softmax(-1)[:, 4:5]
    torch.testing.assert_close(found, expected)


def test_weights_are_in_32_bits_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    expected = attention_rows(query, key, 0.3, torch.tensor([4]))
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_rows(query, key, 0.3, torch.tensor([4]))
    assert torch.equal(found, expected)


@torch.no_grad()
def test_a_cell_of_the_map_is_the_pixels_that_its_token_shows(backbone: Path) -> None:
    """Each cell in grey changes its own token most, and a map of that token has its peak there."""
    made = module(backbone)
    video = random_video("train_0", SHAPE)

    def tokens(shown: Any) -> Tensor:
        batch = batch_of(backbone, video=shown)
        patches = batch.video["video_grid_thw"][0].tolist()
        assert token_grid(patches, 2) == GRID
        features = made.backbone.model.get_video_features(**batch.video, return_dict=True)
        return torch.cat(features.pooler_output)

    before, batch = tokens(video), batch_of(backbone)
    is_video = prompt_of(batch).input_ids[0] == made.config.video_token_id
    for cell in np.ndindex(GRID):
        cells = np.zeros(GRID, dtype=bool)
        cells[cell] = True
        most = (tokens(grey_out(video, cells)) - before).norm(dim=-1).argmax()
        row = torch.full((len(is_video),), 0.01)
        row[is_video.nonzero()[most]] = 1.0
        peak = np.unravel_index(video_map(row, is_video, GRID).values.argmax(), GRID)
        assert tuple(map(int, peak)) == cell


def test_a_map_is_the_mean_of_its_layers_over_the_video(backbone: Path) -> None:
    made, batch = module(backbone), batch_of(backbone)
    prompt = prompt_of(batch)
    is_video = prompt.input_ids[0] == made.config.video_token_id

    def forward() -> Any:
        return next(prefill(made.backbone, [prompt], batch.video))

    found, _ = read_map(made.backbone, [0, 1], is_video, GRID, forward)
    weights = eager_weights(backbone, batch)
    row = torch.stack([layer[:, -1].mean(0) for layer in weights]).mean(0)
    assert found.video_share == pytest.approx(float(row[is_video].sum()), rel=1e-5)
    expected = (row[is_video] / row[is_video].sum()).view(GRID).numpy()
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)
    one, _ = read_map(made.backbone, [1], is_video, GRID, forward)
    other = mean_row({1: weights[1][:, -1]})[is_video]
    np.testing.assert_allclose(one.values.ravel(), (other / other.sum()).numpy(), rtol=1e-5)
    rolled, _ = read_map(made.backbone, None, is_video, GRID, forward)
    assert rolled.values.sum() == pytest.approx(1)
    assert not np.allclose(rolled.values, found.values)
