"""Positions against `get_rope_index` of the installed transformers, and through its `generate`.

transformers 5.3 to 5.23 agree up to the end of the video and then start the text too early; see
`rbft.backbone.positions`. A release with another rule fails here: look at what it does, and say so
there.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from rbft.backbone.attention import forward_inputs
from rbft.batch import Sequences
from rbft.clip import Clip
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from tests.examples import batch_of, collator, examples, module, random_video
from tests.tiny import FAMILY_NAMES, FamilyName

STEPS = 5
WHOLE_SECONDS = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18)


def their_positions(model: Any, prompt: Sequences, video: dict[str, Tensor], seconds: list[float]):
    is_video = prompt.input_ids == model.config.video_token_id
    positions, _ = model.model.get_rope_index(
        prompt.input_ids,
        mm_token_type_ids=is_video.int() * 2,
        video_grid_thw=video["video_grid_thw"],
        second_per_grid_ts=torch.tensor(seconds),
        attention_mask=prompt.attention_mask,
    )
    return positions


def example(frames: int, height: int, width: int, step: int) -> Example:
    clip = Clip("clip_0", Path("clip_0.mp4"), 0, "test")
    return Example(clip, random_video("clip_0", (frames, height, width), step), None, SampleSlot(0))


@pytest.mark.parametrize(
    ("frames", "height", "width", "step"),
    [
        (2, 56, 84, 10),  # one frame pair: both rules agree
        (4, 56, 84, 10),
        (12, 56, 84, 10),
        (40, 56, 56, 10),
        (10, 56, 112, 5),  # 2 frames a second
        (10, 112, 56, 13),  # 1.3 s from frame to frame: 5.2 positions a pair, cut off
        (24, 56, 84, 35),
    ],
)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_equal_up_to_the_end_of_the_video_and_shifted_after_it(
    backbones: dict[str, Path],
    family: FamilyName,
    frames: int,
    height: int,
    width: int,
    step: int,
) -> None:
    make, model = collator(backbones[family], prompt_stage="label"), module(backbones[family])
    made = example(frames, height, width, step)
    batch = make([made])
    assert batch.prompt is not None
    seconds = 2 / made.video.sampled_fps
    assert seconds == pytest.approx(2 * step / 10)
    if family == "qwen2_5_vl" and seconds % 1 and WHOLE_SECONDS:
        pytest.skip("transformers before 5.18 cuts off the seconds of a pair, not the positions")
    ours = batch.prompt.position_ids[:, 0]
    theirs = their_positions(model.backbone, batch.prompt, batch.video, [seconds])[:, 0]

    if family == "qwen3_vl":  # whose frame pairs are small, so that both rules agree
        assert torch.equal(ours, theirs)
        return
    is_video = batch.prompt.input_ids[0] == model.config.video_token_id
    end = int(is_video.nonzero().max()) + 1
    assert torch.equal(ours[:, :end], theirs[:, :end])
    time_step = {"qwen2_vl": 1.0, "qwen2_5_vl": 2 * seconds}[family]
    last_time = math.floor((frames // 2 - 1) * time_step + 1e-9)
    shift = max(0, last_time + 1 - max(height, width) // 28)
    assert (ours[:, end:] - theirs[:, end:]).unique().tolist() == [shift]
    # And the rule itself.
    assert int(ours[0, end]) == int(ours[:, :end].max()) + 1


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_the_shift_matters(backbones: dict[str, Path], family: FamilyName) -> None:
    backbone = backbones[family]
    model = module(backbone)
    batch = batch_of(collator(backbone, target_stage="rationale"), [examples(2)[1]])
    assert batch.answer is not None
    seconds = [2 / examples(2)[1].video.sampled_fps]
    theirs = their_positions(model.backbone, batch.answer, batch.video, seconds)
    other = replace(batch, answer=replace(batch.answer, position_ids=theirs))
    assert not torch.equal(theirs, batch.answer.position_ids)
    assert abs(model.loss(batch).item() - model.loss(other).item()) > 1e-5


def unpadded(prompt: Sequences, row: int) -> tuple[Tensor, Tensor]:
    used = int(prompt.attention_mask[row].sum())
    return prompt.input_ids[row, -used:], prompt.position_ids[:, row, -used:]


@torch.no_grad()
def step_by_step(
    model: Any, ids: Tensor, positions: Tensor, video: dict[str, Tensor]
) -> tuple[list[int], Tensor]:
    """Greedy tokens and logits without a cache: every step runs the whole sequence."""
    written, logits = [], []
    for _ in range(STEPS):
        out = model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            position_ids=positions[:, None],
            use_cache=False,
            **video,
        ).logits[0, -1]
        logits.append(out)
        written.append(int(out.argmax()))
        ids = torch.cat([ids, out.argmax()[None]])
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
    return written, torch.stack(logits)


def clip_video(made: list[Example], row: int, folder: Path) -> dict[str, Tensor]:
    return collator(folder, prompt_stage="label")([made[row]]).video


@torch.no_grad()
def generate(model: Any, prompt: Sequences, video: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    out = model.generate(
        **forward_inputs(prompt),
        **video,
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[:, prompt.input_ids.shape[1] :], torch.stack(out.logits, dim=1)


def test_cached_steps_of_generate_equal_full_forwards(backbone: Path) -> None:
    model, made = module(backbone).backbone, examples(4)
    batch = collator(backbone, prompt_stage="label")(made)
    assert batch.prompt is not None
    assert (batch.prompt.attention_mask[:, 0] == 0).any(), "nothing is padded"

    tokens, logits = generate(model, batch.prompt, batch.video)

    for row in range(len(made)):
        ids, positions = unpadded(batch.prompt, row)
        written, expected = step_by_step(model, ids, positions, clip_video(made, row, backbone))
        assert tokens[row].tolist() == written
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=0)


def test_a_batch_of_one_writes_as_in_a_batch_of_four(backbone: Path) -> None:
    model, make, made = (
        module(backbone).backbone,
        collator(backbone, prompt_stage="label"),
        examples(4),
    )
    batch = make(made)
    assert batch.prompt is not None
    tokens, logits = generate(model, batch.prompt, batch.video)
    for row, one in enumerate(made):
        alone = make([one])
        assert alone.prompt is not None
        own_tokens, own_logits = generate(model, alone.prompt, alone.video)
        assert own_tokens[0].tolist() == tokens[row].tolist()
        torch.testing.assert_close(own_logits[0], logits[row], atol=1e-5, rtol=0)


def test_what_transformers_remembers_of_its_own_positions_does_not_leak(backbone: Path) -> None:
    model, made = module(backbone).backbone, examples(2)
    batch = collator(backbone, prompt_stage="label")(made)
    assert batch.prompt is not None
    _, before = generate(model, batch.prompt, batch.video)
    with torch.no_grad():  # leaves its offset in the model
        model(
            input_ids=batch.prompt.input_ids,
            attention_mask=batch.prompt.attention_mask,
            mm_token_type_ids=(batch.prompt.input_ids == model.config.video_token_id).int() * 2,
            **batch.video,
        )
    assert model.model.rope_deltas is not None
    _, after = generate(model, batch.prompt, batch.video)
    assert torch.equal(before, after)
