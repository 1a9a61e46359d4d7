"""The count of a step's arithmetic against torch's own counter, on tiny models of both families."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rbft.estimate.flops import ClipTokens, Flops, StepCounter, attention_width
from rbft.module import RBFTModule
from tests.examples import answer_of, batch_of, collator, examples, module
from tests.tiny import tiny_backbone

PARTS = ("language", "merger", "vision")
# The third axis is no multiple of the window (8 patches), so that windows differ in size.
WIDE = (4, 8, 20)


def one_clip(folder: Path) -> tuple[Any, ClipTokens]:
    """A batch of one clip of ten frames, and its counts."""
    make = collator(folder, target_stage="rationale")
    batch = batch_of(make, examples(2)[1:])
    grid = batch.video["video_grid_thw"][0].tolist()
    answer = answer_of(batch)
    is_answer = int((answer.labels != -100).sum())
    is_video = int((answer.input_ids == make.config.video_token_id).sum())
    prompt = answer.input_ids.shape[1] - is_video - is_answer
    return batch, ClipTokens(tuple(grid), is_video, prompt, is_answer)


def measured(made: RBFTModule, batch: Any) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        made.loss(batch).backward()
    return total(counter)


def total(counter: FlopCounterMode) -> int:
    """All that torch counted but rotary angles, a matrix product in transformers before 5.19."""
    counts = counter.get_flop_counts().items()
    angles = (sum(found.values()) for name, found in counts if name.endswith(".rotary_emb"))
    return counter.get_total_flops() - sum(angles)


def without_the_mask(clip: ClipTokens, made: RBFTModule, group_by_missing_prompts: int) -> int:
    """What a product over all pairs of tokens takes beyond those that a causal mask leaves."""
    text = made.config.text_config
    pairs = clip.total**2 - clip.total * (clip.total + 1) // 2
    return 4 * group_by_missing_prompts * text.num_hidden_layers * attention_width(text) * pairs


@pytest.mark.parametrize("frozen", [(), ("vision",), ("vision", "merger"), ("language",)])
def test_a_step_counts_as_torch_counts_it(backbone, frozen):
    rates = {
        f"{'' if part == 'language' else part + '_'}learning_rate": float(part not in frozen)
        for part in PARTS
    }
    made = module(backbone, "rationale", attention="eager", **rates)
    batch, clip = one_clip(backbone)
    counted = StepCounter(made.backbone, made.family, made.config).step(clip)
    # Eager attention multiplies all pairs and masks afterwards.
    extra = without_the_mask(clip, made, group_by_missing_prompts=3)
    assert measured(made, batch) == counted.total + extra


def test_experts_count_as_those_that_process_a_token(tmp_path):
    folder = tiny_backbone(tmp_path, "qwen3_vl_moe")
    made = module(folder, "rationale", attention="eager")
    # One by one: torch's counter does not see into the product of all experts.
    made.backbone.set_experts_implementation("eager")
    batch, clip = one_clip(folder)
    counted = StepCounter(made.backbone, made.family, made.config).step(clip)
    extra = without_the_mask(clip, made, group_by_missing_prompts=3)
    assert measured(made, batch) == counted.total + extra


def test_windows_at_the_border_are_smaller(backbone):
    """The tower alone, on a grid that the windows do not divide."""
    made = module(backbone, "rationale", attention="eager")
    tower = made.backbone.model.visual
    pixels = torch.randn(WIDE[0] * WIDE[1] * WIDE[2], 3 * 2 * 14 * 14)
    counter = FlopCounterMode(display=False)
    with counter:
        out = tower(pixels, grid_thw=torch.tensor([WIDE]))
        levels = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
        torch.stack(levels).sum().backward()
    patches = len(pixels)
    clip = ClipTokens(WIDE, patches // 4, 0, 0)
    whole = StepCounter(made.backbone, made.family, made.config).step(clip)
    language = language_alone(made, clip)
    assert total(counter) == whole.total - language.total


def language_alone(made: RBFTModule, clip: ClipTokens) -> Flops:
    """Torch's count of the decoder, with the pairs that the mask takes away left out."""
    text = made.config.text_config
    inputs = torch.zeros(1, clip.total, text.hidden_size, requires_grad=True)
    counter = FlopCounterMode(display=False)
    with counter:
        decoder = made.backbone.model.language_model
        decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state.sum().backward()
    return Flops(total(counter) - without_the_mask(clip, made, group_by_missing_prompts=3))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")  # peft asks for it
def test_lora_counts_the_gradients_that_pass_through_frozen_weights(qwen):
    from peft import LoraConfig, get_peft_model

    made = module(qwen, "rationale", attention="eager")
    targets = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"
    made.backbone = get_peft_model(made.backbone, LoraConfig(r=4, target_modules=targets))
    batch, clip = one_clip(qwen)
    counted = StepCounter(made.backbone, made.family, made.config).step(clip)
    found = measured(made, batch) - without_the_mask(clip, made, group_by_missing_prompts=3)
    # The first block's inputs need no gradient here: an eighth of a decoder of two blocks.
    assert found < counted.total < 1.15 * found
    full = StepCounter(module(qwen).backbone, made.family, made.config).step(clip)
    assert counted.linear < full.linear


def test_recomputation_is_not_counted(qwen):
    plain = module(qwen, "rationale", attention="eager")
    again = module(qwen, "rationale", attention="eager", gradient_checkpointing=True).train()
    batch, clip = one_clip(qwen)
    assert measured(again, batch) > measured(plain, batch)
    counts = [
        StepCounter(made.backbone, made.family, made.config).step(clip) for made in (plain, again)
    ]
    assert counts[0] == counts[1]


def test_the_head_counts_answers_only(qwen):
    made = module(qwen, "rationale")
    count = StepCounter(made.backbone, made.family, made.config).step
    clips = [ClipTokens((2, 4, 4), 8, 10 - answer, answer) for answer in (1, 2)]
    head = made.backbone.lm_head
    assert count(clips[1]).linear - count(clips[0]).linear == 3 * 2 * head.weight.numel()
    assert count(clips[0]).attention == count(clips[1]).attention


def test_flops_add_up():
    assert Flops(1, 2) * 3 + Flops(4, 5) == Flops(7, 11)
    assert Flops(7, 11).total == 18
