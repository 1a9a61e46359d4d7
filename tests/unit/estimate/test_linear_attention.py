"""Arithmetic and memory of Qwen3.5's linear attention against torch's counters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5 import modeling_qwen3_5 as reference

from rbft.backbone.attention import use_segment_attention
from rbft.backbone.embeddings import copy_video_tokens
from rbft.backbone.family import FAMILIES
from rbft.estimate.flops import ClipTokens, StepCounter, attention_width, state_size
from rbft.estimate.memory import (
    MemorySettings,
    compute_bytes_of,
    decoder_bytes_per_token,
    linear_attention_bytes_per_token,
    step_memory,
)
from rbft.estimate.scoring_memory import ScoringTask, scoring_memory
from tests.examples import answer_of, batch_of, examples, module
from tests.parity.test_flops_against_torch import total
from tests.tiny import tiny_backbone
from tests.unit.estimate.test_memory import PRECISIONS, default_dtype, kept_bytes
from tests.unit.estimate.test_scoring_memory import VIDEO, tracked

# The proportions of the 9B model at an eighth of its width.
SMALL: dict[str, Any] = {
    "vocab_size": 2000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "linear_key_head_dim": 48,
    "linear_value_head_dim": 80,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [6, 5, 5],
        "partial_rotary_factor": 0.25,
    },
}
KINDS = [*SMALL["layer_types"], "linear_attention"]
TOWER = {"depth": 2, "hidden_size": 160, "intermediate_size": 428, "num_heads": 2, "patch_size": 14}


def small(**changed: Any) -> Any:
    config = Qwen3_5Config(
        text_config={**SMALL, **changed}, vision_config={**TOWER, "out_hidden_size": 512}
    )
    return Qwen3_5ForConditionalGeneration(config)


def test_a_step_counts_as_torch_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states apart: how torch computes them is its affair, see the test below."""
    folder = tiny_backbone(tmp_path / "qwen3_5", "qwen3_5")
    made = module(folder, "rationale", attention="eager")
    batch = batch_of(made.collator, examples(2)[1:])
    answer = answer_of(batch)
    learnt = int((answer.labels != -100).sum())
    seen = int((answer.input_ids == made.config.video_token_id).sum())
    grid = tuple(batch.video["video_grid_thw"][0].tolist())
    clip = ClipTokens(grid, seen, answer.input_ids.shape[1] - seen - learnt, learnt)

    def without(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> tuple[Tensor, None]:
        weight = (query.mean() + key.mean()) * (given["g"] * given["beta"])[..., None]
        return value * weight, None

    def unmixed(hidden: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden * weight.mean()

    convolve = reference.causal_conv1d_fn
    monkeypatch.setattr(reference, "torch_chunk_gated_delta_rule", without)
    monkeypatch.setattr(reference, "causal_conv1d_fn", unmixed)
    counter = FlopCounterMode(display=False)
    with counter:
        made.loss(batch).backward()
    text, counted = made.config.text_config, StepCounter(made.backbone, made.family, made.config)
    # One layer of three attends, in eager attention to all tokens.
    hidden = clip.total**2 - clip.total * (clip.total + 1) // 2
    extra = 12 * attention_width(text) * hidden
    # Torch counts the gradient of a convolution by channel as if it mixed them: forward alone.
    weight = made.backbone.model.language_model.layers[0].linear_attn.conv1d.weight.detach()
    alone = FlopCounterMode(display=False)
    with alone:
        convolve(torch.zeros(1, len(weight), clip.total), weight[:, 0])
    positions = clip.total + 3  # those that it computes
    convolution = alone.get_total_flops() * clip.total // positions
    states = 6 * clip.total * state_size(text)
    apart = 2 * 3 * (convolution + states)
    assert total(counter) == counted.step(clip).total - apart + extra


def test_the_work_on_a_state_is_three_products() -> None:
    """To read what a key has, to correct it, and to ask; the numbers are transformers'."""
    tokens, heads, keys, values = 5, 2, 3, 4
    query, key = torch.rand(2, 1, tokens, heads, keys)
    value, beta = torch.rand(1, tokens, heads, values), torch.rand(1, tokens, heads)
    decay = -torch.rand(1, tokens, heads)
    counter = FlopCounterMode(display=False)
    state, outputs = torch.zeros(heads, keys, values), []
    with counter:
        for at in range(tokens):
            state = state * decay[0, at].exp()[:, None, None]
            known = key[0, at][:, None] @ state
            change = (value[0, at][:, None] - known) * beta[0, at][:, None, None]
            state = state + key[0, at][:, :, None] @ change
            outputs.append(query[0, at][:, None] @ state / keys**0.5)
    expected, _ = reference.torch_recurrent_gated_delta_rule(
        query, key, value, g=decay, beta=beta, initial_state=None, output_final_state=False
    )
    torch.testing.assert_close(torch.stack(outputs)[:, :, 0], expected[0])
    assert counter.get_total_flops() == 6 * tokens * heads * keys * values


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_block_keeps_what_the_formula_says(precision: str) -> None:
    tokens = 640  # no other size of the model
    with default_dtype(precision) as autocast:
        model = small().train()
        decoder = model.model.language_model
        hidden = torch.randn(1, tokens, SMALL["hidden_size"], requires_grad=True)
        angles = decoder.rotary_emb(hidden, torch.arange(tokens).expand(3, 1, -1))
        shared = {"position_embeddings": angles, "attention_mask": None}
        with autocast:
            found = [
                kept_bytes(layer, lambda layer=layer: layer(hidden, **shared)) / tokens
                for layer in decoder.layers
            ]
        with torch.device("meta"):
            more = small(num_hidden_layers=3, layer_types=KINDS)
    given = model, model.config, MemorySettings(compute_bytes_of(precision), False)
    formulas = (linear_attention_bytes_per_token, decoder_bytes_per_token)
    for own, formula in zip(found, formulas, strict=True):
        assert own == pytest.approx(formula(*given), rel=0.1)
    # Each kind of block counts as often as there are blocks of it.
    clip = ClipTokens((2, 4, 4), 8, 600, 32)
    two, three = (
        step_memory(one, FAMILIES["qwen3_5"], one.config, [clip], given[2]).saved_decoder
        for one in (model, more)
    )
    assert three - two == pytest.approx(found[0] * tokens, rel=0.1)


@pytest.mark.parametrize(
    ("precision", "task", "phase"),
    [
        ("32-true", ScoringTask(2, 3), "prefill"),
        # A few tokens behind each of many prompts fill a chunk for each of them.
        ("bf16-mixed", ScoringTask(12, 4), "scoring the classes"),
    ],
)
def test_the_peak_of_scoring_is_what_is_there(
    precision: str, task: ScoringTask, phase: str
) -> None:
    with default_dtype("bf16-true" if precision == "bf16-mixed" else precision):
        model = small(num_hidden_layers=3, layer_types=KINDS, intermediate_size=256).eval()
    model.config.video_token_id = VIDEO
    copy_video_tokens(model)
    use_segment_attention(model)
    mixed = precision == "bf16-mixed"
    half = torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)
    clips = [ClipTokens((1, 4, 4), 4, 300, 9), ClipTokens((2, 8, 8), 32, 260, 9)]
    task = replace(task, packed=False)
    settings = MemorySettings(compute_bytes_of(precision), False)
    memory = scoring_memory(model, FAMILIES["qwen3_5"], model.config, clips, settings, task)
    found = tracked(model, "qwen3_5", clips, task, half)
    assert memory.peak == pytest.approx(found, rel=0.1)
    assert memory.phases[phase] == memory.peak
    assert memory.weights < 0.7 * memory.peak  # they do not hide it
