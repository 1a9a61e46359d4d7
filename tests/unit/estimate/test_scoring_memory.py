"""Estimated memory of scoring and writing against a count of all tensors that are there."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.peak import Peak
from rbft.backbone.attention import use_segment_attention
from rbft.backbone.embeddings import copy_video_tokens
from rbft.backbone.family import FAMILIES
from rbft.batch import IGNORED, Sequences
from rbft.estimate.flops import ClipTokens
from rbft.estimate.memory import MemorySettings, compute_bytes_of
from rbft.estimate.scoring_memory import ScoringMemory, ScoringTask, scoring_memory
from rbft.inference.generation import extend, greedy_decode, prefill, score_candidates
from tests.unit.estimate.test_memory import PARAMETERS, SEVEN, SMALL, backbone, default_dtype

VIDEO = 7  # the token that stands for video
# Keys and values of every head in many blocks: a large cache. A wide tower: large activations.
CACHED = {**SMALL, "hidden": 224, "inner": 592, "heads": 7, "few": 7, "layers": 6}
WIDE = {**SMALL, "width": 320, "tower_inner": 856, "tower_heads": 4}
LONG, SHORT = ClipTokens((4, 16, 24), 384, 40, 9), ClipTokens((2, 16, 20), 160, 30, 9)
WORDY = ClipTokens((1, 4, 4), 4, 500, 9)
TASKS = {
    "vision tower": (WIDE, [LONG, SHORT], ScoringTask(classes=2, answer_tokens=3)),
    "prefill": (SMALL, [WORDY, SHORT, WORDY], ScoringTask(classes=2, answer_tokens=3)),
    "scoring the classes": (CACHED, [LONG, SHORT], ScoringTask(classes=8, answer_tokens=4)),
    "writing": (CACHED, [WORDY, WORDY, SHORT], ScoringTask(new_tokens=20, extra_caches=1)),
}


def prompts(clips: list[ClipTokens], packed: bool) -> Sequences:
    rows = [
        torch.cat([torch.full((clip.video,), VIDEO), torch.full((clip.prompt,), 9)])
        for clip in clips
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = torch.cat(rows)[None] if packed else pad(rows, True, 0, "left")
    mask = (ids > 0).long()
    places = (ids.flatten() == VIDEO).nonzero()[:, 0]
    positions = (mask.cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)
    labels = torch.full_like(ids, IGNORED)
    lengths = tuple(map(len, rows))
    return Sequences(ids, mask, positions, labels, lengths, places, padded_left=not packed)


def tracked(model: Any, family: str, clips: list[ClipTokens], task: ScoringTask, half: Any) -> int:
    """The most that is there at a time."""
    prompt, grids = prompts(clips, task.packed), torch.tensor([clip.grid for clip in clips])
    peak = Peak(*model.parameters(), *model.buffers())
    settings = {"max_new_tokens": task.new_tokens, "eos_token_id": [-1], "repetition_penalty": 1.1}
    with peak, half, torch.no_grad():
        video = {
            "pixel_values_videos": torch.randn(sum(clip.patches for clip in clips), 1176),
            "video_grid_thw": grids,
            **FAMILIES[family].tower_inputs(grids, model.config),
        }
        (read,) = prefill(model, [prompt], video)
        if task.new_tokens:
            greedy_decode(model, read.copy() if task.extra_caches else read, settings)
        if task.classes and task.new_tokens:
            behind = extend(model, read, [[9] * task.new_tokens] * len(clips))
            answers = [list(range(20, 20 + task.answer_tokens))] * task.classes
            score_candidates(model, behind, answers)
        elif task.classes:
            score_candidates(model, read, [list(range(20, 20 + task.answer_tokens))] * task.classes)
        assert read.lengths == prompt.lengths  # the prompts are there to the end
    return peak.bytes


def made(family: Any, size: dict[str, int], precision: str, frozen: bool) -> tuple[Any, Any]:
    """A backbone as it is scored, or validated while it trains; and what it runs in."""
    with default_dtype("bf16-true" if frozen and precision == "bf16-mixed" else precision):
        model = backbone(family, size).eval()
    model.config.video_token_id = VIDEO
    copy_video_tokens(model)
    use_segment_attention(model)
    # Without a cache of what is cast, as Lightning runs it.
    mixed = precision == "bf16-mixed"
    return model, torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "training"])
@pytest.mark.parametrize(
    ("family", "phase"),
    [("qwen2_vl", "vision tower"), *(("qwen2_5_vl", phase) for phase in TASKS)],
)
def test_the_peak_is_what_is_there(family: Any, precision: str, phase: str) -> None:
    size, clips, task = TASKS[phase]
    training = precision == "training"  # weights in 32 bits, products in half precision
    precision = "bf16-mixed" if training else precision
    model, half = made(family, size, precision, frozen=not training)
    settings = MemorySettings(compute_bytes_of(precision), False)
    memory = scoring_memory(model, FAMILIES[family], model.config, clips, settings, task)
    assert memory.peak == pytest.approx(tracked(model, family, clips, task, half), rel=0.1)
    assert memory.phases[phase] == memory.peak
    # Weights do not hide it.
    assert memory.weights < 0.7 * memory.peak


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_prompts_take_a_mask_of_their_length_squared(attention: Any) -> None:
    clips = [replace(WORDY, prompt=900)] * 3 + [SHORT]
    task = ScoringTask(2, 3, packed=False, eager=attention == "eager")
    model, half = made("qwen2_5_vl", SMALL, "32-true", frozen=True)
    if attention == "eager":
        model.set_attn_implementation("eager")
    settings = MemorySettings(4, False)
    memory = scoring_memory(model, FAMILIES["qwen2_5_vl"], model.config, clips, settings, task)
    found = tracked(model, "qwen2_5_vl", clips, task, half)
    assert memory.peak == pytest.approx(found, rel=0.15)
    packed = replace(task, packed=True)
    other = scoring_memory(model, FAMILIES["qwen2_5_vl"], model.config, clips, settings, packed)
    assert memory.prefill > 1.2 * other.prefill


def test_classes_behind_a_text_of_the_model_s_own() -> None:
    """The prompts are held while it writes, and go on with the text, once for each class."""
    clips, task = (
        [LONG, SHORT],
        ScoringTask(classes=8, answer_tokens=2, new_tokens=60, extra_caches=1),
    )
    model, half = made("qwen2_5_vl", CACHED, "32-true", frozen=True)
    settings = MemorySettings(4, False)
    memory = scoring_memory(model, FAMILIES["qwen2_5_vl"], model.config, clips, settings, task)
    assert memory.peak == memory.phases["scoring the classes"]
    assert memory.peak == pytest.approx(tracked(model, "qwen2_5_vl", clips, task, half), rel=0.1)


def test_sharded_weights_are_gathered_and_the_optimiser_s_state_stays() -> None:
    with torch.device("meta"):
        model = backbone("qwen2_5_vl", SEVEN)
    family, size = FAMILIES["qwen2_5_vl"], PARAMETERS["qwen2_5_vl"]

    def memory(settings: MemorySettings, other_bytes: int = 0) -> ScoringMemory:
        return scoring_memory(
            model, family, model.config, [LONG], settings, ScoringTask(2), other_bytes
        )

    assert memory(MemorySettings(2, True)).weights == 4 * size
    assert memory(MemorySettings(2, True, shards=8), 5).weights == 4 * size // 8 + 2 * size + 5


def test_more_clips_classes_and_words_take_more() -> None:
    with torch.device("meta"):
        model = backbone("qwen2_5_vl", SMALL)
    family = FAMILIES["qwen2_5_vl"]

    def memory(clips: list[ClipTokens], **task: Any) -> ScoringMemory:
        settings = MemorySettings(2, False)
        return scoring_memory(model, family, model.config, clips, settings, ScoringTask(**task))

    one, two = memory([LONG], classes=2), memory([LONG, LONG], classes=2)
    assert (two.kv_cache, two.pixels, two.prefill) == (
        2 * one.kv_cache,
        2 * one.pixels,
        2 * one.prefill,
    )
    assert memory([LONG], classes=3).scoring > one.scoring + one.kv_cache
    assert memory([LONG], new_tokens=400).writing > 1.5 * memory([LONG], new_tokens=1).writing
    assert one.writing == memory([LONG], new_tokens=9).scoring == 0
    # A tower whose outputs are kept does not run.
    assert memory([replace(LONG, grid=(0, 0, 0))], classes=2).pixels == 0
