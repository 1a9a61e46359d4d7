"""Qwen3.5, whose linear attention keeps states: training, scoring and writing against transformers.

Batches are padded and continue from a KV cache; expected are forward passes of transformers' own
over one whole sequence each, without padding and without a cache.
"""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForImageTextToText, Trainer
from transformers.video_utils import VideoMetadata

from rbft.backbone import kernels
from rbft.backbone.adapters import LoRA
from rbft.backbone.attention import forward_inputs
from rbft.backbone.family import FAMILIES
from rbft.backbone.loading import available_packing, load_config, parameter_parts
from rbft.backbone.qwen3_vl import END, PAD, START
from rbft.commands.attention_maps import check_attends
from rbft.commands.box_search import OWN_FORMS
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.inference.generation import extend, greedy_decode, prefill, score_candidates
from rbft.module import RBFTModule
from rbft.stages import STAGES
from rbft.training.optim import parameter_groups
from rbft.video.sampling import Video
from rbft.video.times import pair_times
from tests.examples import (
    CARD,
    MODULE_SETTINGS,
    answer_of,
    batch_of,
    collator,
    examples,
    is_padded,
    module,
    prompt_of,
    score_answers,
    write_answers,
    writing,
)
from tests.tiny import tiny_backbone

STOP = 376
# Two begin alike, lengths differ, one is but the end of the turn.
ANSWERS = [[64, 292, STOP], [64, 292, 71, 68, STOP], [STOP]]
SLOTS = [SampleSlot(0, 0.5), SampleSlot(1, 2.0), SampleSlot(3, 1.0), SampleSlot(0, 0.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("qwen3_5") / "qwen3_5", "qwen3_5")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """The same weights as transformers runs them."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def by_processor(processor: Any, one: Example, template: str) -> Any:
    """A prompt and its patches as transformers' processor makes them."""
    asked = STAGES["label"].prompt(CARD, one.clip)
    content = [{"type": "video"}, {"type": "text", "text": asked}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )
    video = one.video
    assert isinstance(video, Video)
    metadata = VideoMetadata(
        total_num_frames=video.total_frames, fps=video.fps, frames_indices=list(video.indices)
    )
    return processor(
        text=[text],
        videos=[video.frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )


def test_a_prompt_as_written_out(folder: Path) -> None:
    make = collator(folder, prompt_stage="label")
    ids = make.prompt_ids("Is it?", pair_times([0, 25, 50, 75], 25.0, 1.0), 4)
    pairs = "".join(f"<{at} seconds>{START}{PAD}{PAD}{END}" for at in (0.5, 2.5))
    assert make.processor.tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{pairs}Is it?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n"  # the answer follows at once
    )


def test_ids_patches_and_positions(folder: Path, theirs: Any) -> None:
    make = collator(folder, prompt_stage="label")
    exported = make.family.chat_template(make.processor.chat_template)
    assert make.family.chat_template(exported) == exported
    for one in examples(4):
        batch = make([one])
        prompt = prompt_of(batch)
        found = by_processor(make.processor, one, exported)
        assert prompt.input_ids.tolist() == found["input_ids"].tolist()
        for name in ("pixel_values_videos", "video_grid_thw"):
            assert torch.equal(batch.video[name], found[name])
        other = by_processor(make.processor, one, make.processor.chat_template)["input_ids"]
        assert make.processor.tokenizer.decode(other[0]).endswith("assistant\n<think>\n")
        is_video = prompt.input_ids == make.config.video_token_id
        positions, _ = theirs.model.get_rope_index(
            input_ids=prompt.input_ids,
            mm_token_type_ids=is_video.int() * 2,
            video_grid_thw=batch.video["video_grid_thw"],
        )
        assert torch.equal(prompt.position_ids, positions)


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_of_a_padded_batch(
    folder: Path, theirs: Any, checkpointing: bool
) -> None:
    """Padding stands behind the answers: the states flow forward only."""
    make, made = collator(folder, target_stage="rationale"), examples(4, SLOTS)
    tokens = [make.answer_tokens(one.clip, one.rationale) for one in made]
    total = sum(slot.weight * own for slot, own in zip(SLOTS, tokens, strict=True))
    theirs.zero_grad()
    expected = 0.0
    for one, slot, count in zip(made, SLOTS, tokens, strict=True):
        alone = make([one])
        given = {**forward_inputs(answer_of(alone)), **alone.video}
        loss = theirs(**given, labels=answer_of(alone).labels).loss * slot.weight * count / total
        loss.backward()
        expected += loss.item()
    ours = module(folder, "rationale", gradient_checkpointing=checkpointing).train()
    assert not ours.packing
    batch = batch_of(ours.collator, made)
    assert len(set(answer_of(batch).lengths)) == 3
    assert max(answer_of(batch).lengths) > 64, "linear attention computes 64 tokens at a time"
    loss = ours.loss(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    wanted = gradients(theirs)
    for name, own in gradients(ours.backbone).items():
        torch.testing.assert_close(own, wanted[name], atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def whole_logits(model: Any, prompt: Any, video: dict[str, Tensor], text: list[int]) -> Tensor:
    """Logits behind the prompt's last token and behind each of a text's, in one forward pass."""
    tail = prompt.position_ids[:, :, -1:] + torch.arange(1, len(text) + 1)
    logits = model(
        input_ids=torch.cat([prompt.input_ids, torch.tensor([text], dtype=torch.long)], dim=1),
        position_ids=torch.cat([prompt.position_ids, tail], dim=2),
        use_cache=False,
        **video,
    ).logits[0]
    return logits[prompt.input_ids.shape[1] - 1 :]


def expected_scores(
    folder: Path, model: Any, written: list[list[int]], answers: list[list[int]], ask: str = "label"
) -> Tensor:
    """Scores of answers behind each prompt and a text, each looked up by hand."""
    scores = []
    for one, text in zip(examples(len(written)), written, strict=True):
        batch = collator(folder, prompt_stage=ask)([one])
        own = []
        for answer in answers:
            whole = whole_logits(model, prompt_of(batch), batch.video, [*text, *answer])
            each = whole.log_softmax(-1)[len(text) :]
            own.append(sum(float(each[at, token]) for at, token in enumerate(answer)))
        scores.append(own)
    return torch.tensor(scores)


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_of_prompts_of_several_lengths(folder: Path, theirs: Any, attention: Any) -> None:
    """Padding stands before the prompts, where it leaves the states empty."""
    model = module(folder, attention=attention).backbone
    batch = collator(folder, prompt_stage="label")(examples(3))
    assert is_padded(prompt_of(batch))
    scores = score_answers(model, prompt_of(batch), batch.video, ANSWERS)
    close(scores, expected_scores(folder, theirs, [[]] * 3, ANSWERS))


@pytest.mark.parametrize(
    "written",
    [
        [[64, 71, 198], [], [68, 75, 198]],  # of different lengths, and none
        [[64, 71], [75, 198], [68, 75]],
        [[64], [75, 198], [68]],
    ],
    ids=["ragged", "even", "one"],
)
def test_scores_behind_texts(folder: Path, theirs: Any, written: list[list[int]]) -> None:
    model = module(folder).backbone
    batch = collator(folder, prompt_stage="label")(examples(3))
    (read,) = prefill(model, [prompt_of(batch)], batch.video)
    behind = extend(model, read.copy(), written)
    assert behind.lengths == tuple(
        a + len(b) for a, b in zip(prompt_of(batch).lengths, written, strict=True)
    )
    assert behind.mask.sum(1).tolist() == list(behind.lengths)
    assert (behind.mask.diff(dim=1) >= 0).all(), "padding stands before the tokens"
    close(
        score_candidates(model, behind, ANSWERS), expected_scores(folder, theirs, written, ANSWERS)
    )
    # What went on from the copy has left the prompts as they were; some of them alone are the same.
    plain = expected_scores(folder, theirs, [[]] * 3, ANSWERS)
    close(score_candidates(model, read.select([2, 0]), ANSWERS), plain[[2, 0]])
    close(score_candidates(model, read, ANSWERS), plain)


def test_several_prompts_about_the_same_clips(folder: Path, theirs: Any) -> None:
    """What they have in common is read once; behind it they differ in length from clip to clip."""
    model = module(folder).backbone
    make = collator(folder, prompt_stage="label")
    made = examples(3)
    texts = {0: "Clip 0.", 1: "A man walks past the yard.", 2: "Night."}
    made = [
        replace(one, clip=replace(one.clip, text=texts[place])) for place, one in enumerate(made)
    ]
    make = replace(make, extra_prompts=((STAGES["rationale"], CARD),))
    batch = make(made)
    prompts = [prompt_of(batch), *batch.extra_prompts]
    ends = [own - shared for own, shared in zip(prompts[0].lengths, batch.shared, strict=True)]
    assert len(set(ends)) > 1
    for read, ask in zip(
        prefill(model, prompts, batch.video, batch.shared), ("label", "rationale"), strict=True
    ):
        scores = score_candidates(model, read.copy(), ANSWERS)
        for row, one in enumerate(made):
            alone = collator(folder, prompt_stage=ask)([one])
            close(
                scores[row : row + 1],
                score_answers(model, prompt_of(alone), alone.video, ANSWERS),
            )
        written = greedy_decode(model, read, writing(folder, 3, eos_token_id=[-1]))
        for row, one in enumerate(made):
            alone = collator(folder, prompt_stage=ask)([one])
            assert written[row] == step_by_step(theirs, prompt_of(alone), alone.video, 3)


def step_by_step(model: Any, prompt: Any, video: dict[str, Tensor], longest: int) -> list[int]:
    """The likeliest tokens, for each of which the whole sequence is read."""
    text: list[int] = []
    for _ in range(longest):
        text.append(int(whole_logits(model, prompt, video, text)[-1].argmax()))
    return text


def test_texts_token_by_token(folder: Path, theirs: Any) -> None:
    """Clips that end before others leave the batch, and their states with them."""
    model, make = module(folder).backbone, collator(folder, prompt_stage="rationale")
    alone = [make([one]) for one in examples(4)]
    whole = [step_by_step(theirs, prompt_of(one), one.video, 6) for one in alone]
    end = whole[1][2]
    expected = [own[: own.index(end) + 1] if end in own else own for own in whole]
    assert len(set(map(len, expected))) > 1, "no clip ends before another"
    batch = make(examples(4))
    settings = writing(folder, 6, eos_token_id=[end], repetition_penalty=1.0)
    assert write_answers(model, prompt_of(batch), batch.video, settings) == expected
    given = {**forward_inputs(prompt_of(alone[0])), **alone[0].video}
    # Positions of the tokens that `generate` writes go on from those that are given.
    by_generate = theirs.generate(
        **given, max_new_tokens=6, do_sample=False, eos_token_id=end, pad_token_id=0
    )
    assert by_generate[0, prompt_of(alone[0]).input_ids.shape[1] :].tolist() == expected[0]


def test_clips_in_one_row_would_mix(folder: Path, theirs: Any) -> None:
    """Why nothing is packed: positions that start anew separate attention, but not the states."""
    make = collator(folder, target_stage="label")
    made = [make([one]) for one in examples(2)]
    first, second = (answer_of(batch) for batch in made)
    starts = torch.cat([torch.arange(length) for length in (*first.lengths, *second.lengths)])
    positions = torch.cat([first.position_ids, second.position_ids], dim=2)
    with torch.no_grad():
        alone = theirs(**forward_inputs(second), **made[1].video).logits[0]
        packed = theirs(
            input_ids=torch.cat([first.input_ids, second.input_ids], dim=1),
            position_ids=torch.cat([starts.expand(1, 1, -1), positions]),
            **{name: torch.cat([batch.video[name] for batch in made]) for name in made[0].video},
        ).logits[0, first.lengths[0] :]
    assert (packed - alone).abs().max() > 1e-2
    text = (
        "The clips of a qwen3_5 cannot be packed: its linear attention would mix them. Make their "
        "batches with packing=False."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        replace(make, packing=True)


def test_clips_are_padded_aloud_and_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    available_packing.cache_clear()
    for asked in (True, True, False):
        made = RBFTModule(str(folder), CARD, packing=asked, **MODULE_SETTINGS)
        assert not made.packing
        assert not any(make.packing for make in made.collators().values())
    assert capsys.readouterr().out == (
        "model.packing: the linear attention of a qwen3_5 would mix the clips of a packed row; "
        "they are padded instead. Set model.packing to false to leave this out.\n"
    )


def test_maps_of_attention_are_refused(folder: Path, qwen: Path) -> None:
    text = (
        "--runs names seen, whose backbone is a qwen3_5: most of its layers are linear attention, "
        "which has no weights between tokens that a map could show. Name runs of another backbone."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        check_attends("seen", load_config(str(folder))[0])
    check_attends("seen", load_config(str(qwen))[0])


def test_decay_against_trainer(theirs: Any) -> None:
    """Its Trainer decays the rates at which states fade too, numbers as biases are."""
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    parts = parameter_parts(theirs, FAMILIES["qwen3_5"])
    groups = parameter_groups(parts, {"language": 1e-4, "merger": 3e-5, "vision": 2e-6}, 0.1)
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    rates = {f"model.language_model.layers.{block}.linear_attn.A_log" for block in (0, 2)}
    assert set(Trainer.get_decay_parameter_names(None, theirs)) == decayed | rates  # type: ignore[arg-type]
    assert not decayed & rates


def test_blocks_of_linear_attention_are_not_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(kernels, "can_compile", lambda _: True)
    monkeypatch.setattr(
        kernels, "compile_blocks", lambda blocks: compiled.extend(b.block_type for b in blocks)
    )
    model = module(folder).backbone
    kernels.apply_kernels(model, compile=True, liger=False, device=torch.device("cpu"))
    assert compiled == ["full_attention"]


def test_how_all_write_boxes_is_known() -> None:
    assert OWN_FORMS.keys() == FAMILIES.keys()


def test_kept_features_are_those_of_the_tower(folder: Path, tmp_path: Path) -> None:
    made = module(folder, vision_learning_rate=0.0)
    batch = collator(folder, prompt_stage="label")(examples(3))
    grids = batch.video["video_grid_thw"]
    with torch.no_grad():
        tower = made.backbone.model.visual(batch.video["pixel_values_videos"], grid_thw=grids)
        kept = made.family.features(
            made.backbone.model.visual, batch.video["pixel_values_videos"], grids
        )
        assert torch.equal(kept, tower.last_hidden_state)
        shown = made.family.merge(made.backbone.model.visual, kept.split(grids.prod(-1).tolist()))
        assert torch.equal(torch.cat(list(shown.pooler_output)), tower.pooler_output)
        given = made.family.tower_inputs(grids, made.config)
        whole = made.backbone.model.get_video_features(**batch.video, **given).pooler_output
        assert torch.equal(torch.cat(list(whole)), tower.pooler_output)
        given["video_interp_weights"] = given["video_interp_weights"].flip(0)
        other = made.backbone.model.get_video_features(**batch.video, **given).pooler_output
        assert not torch.equal(torch.cat(list(other)), tower.pooler_output), "it is not read"
    assert made.family.feature_states(made.config) == 1
    answers = [
        score_answers(made.backbone, prompt_of(batch), video, ANSWERS[:2])
        for video in (batch.video, {"mm_encoder_outputs": {"video": shown}})
    ]
    assert torch.equal(*answers)


def test_adapters_are_peft_s(folder: Path, tmp_path: Path) -> None:
    made = module(folder, lora=LoRA(rank=2, alpha=4), vision_learning_rate=0.0)
    layers = {name for name, part in made.backbone.named_modules() if isinstance(part, LoraLayer)}
    mlps = {f"{n}.mlp.{name}_proj" for n in range(3) for name in ("gate", "up", "down")}
    linear = (*(f"in_proj_{name}" for name in ("qkv", "z", "b", "a")), "out_proj")
    states = {f"{n}.linear_attn.{name}" for n in (0, 2) for name in linear}
    heads = {f"1.self_attn.{name}_proj" for name in "qkvo"}
    assert layers == {f"model.language_model.layers.{name}" for name in mlps | states | heads}
    with torch.no_grad():
        for parameter in made.backbone.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    made.backbone.save_pretrained(tmp_path)
    batch = collator(folder, target_stage="label")(examples(1))
    given = {**forward_inputs(answer_of(batch)), **batch.video}
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        plain = base(**given).logits
    with warnings.catch_warnings():  # see rbft/commands/export_weights.py
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        peft = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        ours, other = made.backbone(**given).logits, peft(**given).logits
    assert torch.equal(ours, other)
    assert (ours - plain).abs().max() > 0.1, "it changes nothing"
