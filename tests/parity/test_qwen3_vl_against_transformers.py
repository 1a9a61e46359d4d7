"""Qwen3-VL with its own patch size: prompts, positions, patches, logits, losses and features.

transformers is given the ids that rbft builds; where its own rule for them agrees, it builds them
itself. Prompts are also written out by hand.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from rbft.backbone.adapters import LoRA, add_adapters
from rbft.backbone.family import FAMILIES, token_side
from rbft.backbone.loading import check_prompt_rule, load_config
from rbft.backbone.qwen3_vl import END, PAD, START
from rbft.backbone.vision_features import embed_features, tower_features
from rbft.clip import Clip
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.runs.folder import PROVENANCE
from rbft.runtime.files import write_json
from rbft.stages import STAGES
from rbft.video.feature_cache import FeatureCache
from rbft.video.sampling import Video, frame_size, patch_grid
from rbft.video.times import pair_times
from tests.examples import CARD, answer_of, batch_of, collator, module, prompt_of
from tests.tiny import tiny_backbone

KINDS = ("qwen3_vl", "qwen3_vl_moe")
# Frames, height, width, and frames of the file from one to the next, at ten a second.
CLIPS = ((2, 64, 96, 10), (6, 96, 64, 5), (3, 64, 64, 13))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("qwen3")
    return {kind: tiny_backbone(root / kind, kind, patch=16) for kind in KINDS}


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def video(frames: int, height: int, width: int, step: int) -> Video:
    generator = torch.Generator().manual_seed(frames)
    pixels = torch.randint(0, 256, (frames, 3, height, width), generator=generator)
    indices = [step * place for place in range(frames)]
    return Video(pixels.to(torch.uint8), indices, step * frames, 10.0)


def made() -> list[Example]:
    return [
        Example(
            Clip(f"clip_{place}", Path(f"clip_{place}.mp4"), place % 2, "train"),
            video(*shape),
            "A person walks past the yard.",
            SampleSlot(place),
        )
        for place, shape in enumerate(CLIPS)
    ]


@pytest.mark.parametrize(
    ("indices", "fps", "sampled", "times", "said"),
    [
        # One frame a second: a pair is named after the middle of its two frames.
        ([0, 25, 50, 75], 25.0, 1.0, None, ["<0.5 seconds>", "<2.5 seconds>"]),
        (
            [0, 15, 30, 45, 60, 75],
            30.0,
            2.0,
            None,
            ["<0.2 seconds>", "<1.2 seconds>", "<2.2 seconds>"],
        ),
        ([0, 30, 60], 30.0, 1.0, None, ["<0.5 seconds>", "<2.0 seconds>"]),  # the last one twice
        ([7, 7], 25.0, 1.0, None, ["<0.0 seconds>"]),
        ([250, 275], 25.0, 1.0, None, ["<0.5 seconds>"]),  # a part of a file counts from its start
        ([0, 1, 2, 3], 1.0, 1.0, [0.0, 0.4, 7.0, 60.0], ["<0.2 seconds>", "<33.5 seconds>"]),
        ([0, 599 * 30], 30.0, 2 / 600, None, ["<299.5 seconds>"]),
    ],
)
def test_prompts_as_written_out(
    folders: dict[str, Path],
    indices: list[int],
    fps: float,
    sampled: float,
    times: list[float] | None,
    said: list[str],
) -> None:
    make = collator(folders["qwen3_vl"], prompt_stage="label")
    ids = make.prompt_ids("Is it?", pair_times(indices, fps, sampled, times), 2 * len(said))
    pairs = "".join(f"{one}{START}{PAD}{PAD}{END}" for one in said)
    assert make.processor.tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{pairs}Is it?<|im_end|>\n<|im_start|>assistant\n"
    )


def by_processor(processor: Any, one: Example, prompt: str, template: str) -> Any:
    content = [{"type": "video"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        chat_template=template,
    )
    clip = one.video
    assert isinstance(clip, Video)
    metadata = VideoMetadata(
        total_num_frames=clip.total_frames, fps=clip.fps, frames_indices=list(clip.indices)
    )
    return processor(
        text=[text],
        videos=[clip.frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )


def test_transformers_builds_the_same_with_the_exported_template(folder: Path) -> None:
    make = collator(folder, prompt_stage="label")
    own = make.processor.chat_template
    exported = make.family.chat_template(own)
    for one in made():
        batch = make([one])
        prompt = STAGES["label"].prompt(CARD, one.clip)
        theirs = by_processor(make.processor, one, prompt, exported)
        assert prompt_of(batch).input_ids.tolist() == theirs["input_ids"].tolist()
        for name in ("pixel_values_videos", "video_grid_thw"):
            assert torch.equal(batch.video[name], theirs[name])
        # With the backbone's own template a pair stands around all pairs, which rbft leaves out.
        wrapped = by_processor(make.processor, one, prompt, own)["input_ids"]
        assert wrapped.shape[1] == theirs["input_ids"].shape[1] + 2
        # A backbone that comes with the exported one gives the same ids.
        make.processor.chat_template = exported
        assert torch.equal(prompt_of(make([one])).input_ids, theirs["input_ids"])
        make.processor.chat_template = own


def test_positions(folder: Path) -> None:
    make, model = collator(folder, target_stage="rationale"), module(folder).backbone
    for one in made():
        answer = answer_of(batch_of(make, [one]))
        is_video = answer.input_ids == make.config.video_token_id
        theirs, _ = model.model.get_rope_index(
            answer.input_ids,
            mm_token_type_ids=is_video.int() * 2,
            video_grid_thw=make([one]).video["video_grid_thw"],
        )
        assert torch.equal(answer.position_ids, theirs)


def test_positions_as_written_out(folders: dict[str, Path]) -> None:
    config, family = load_config(str(folders["qwen3_vl"]))
    pad = config.video_token_id
    ids = torch.tensor([1, 2, pad, pad, 3, 4, pad, pad, 5])
    times = pair_times([0, 10, 20, 30], 10.0, 1.0)
    assert family.position_ids(ids, [2, 2, 4], times, config).tolist() == [
        [0, 1, 2, 2, 4, 5, 6, 6, 8],
        [0, 1, 2, 2, 4, 5, 6, 6, 8],
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
    ]
    with pytest.raises(ValueError, match="in 1 runs, but the video has 2 frame pairs"):
        family.position_ids(torch.tensor([1, *[pad] * 4, 2]), [2, 2, 4], times, config)
    with pytest.raises(ValueError, match=r"holds 3 video tokens.*gives 4"):
        family.position_ids(torch.tensor([1, pad, pad, 2, pad]), [2, 2, 4], times, config)


@pytest.mark.parametrize("packing", [True, False])
def test_loss_and_gradients_are_those_of_transformers(folder: Path, packing: bool) -> None:
    """Which are given each clip by itself, and labels."""
    ours, theirs = module(folder, stage="rationale"), module(folder).backbone
    make = replace(collator(folder, target_stage="rationale"), packing=packing)
    ours.loss(batch_of(make, made())).backward()

    answers = [batch_of(replace(make, packing=False), [one]) for one in made()]
    total = sum(int((answer_of(batch).labels != -100).sum()) for batch in answers)
    for batch in answers:
        answer = answer_of(batch)
        theirs(
            input_ids=answer.input_ids,
            labels=answer.labels,
            mm_token_type_ids=(answer.input_ids == make.config.video_token_id).int() * 2,
            num_items_in_batch=total,
            **batch.video,
        ).loss.backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in ours.backbone.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert any("deepstack_merger_list.0" in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-6, msg=name)


def test_logits_and_what_deepstack_adds(folder: Path) -> None:
    model = module(folder).backbone
    make = collator(folder, target_stage="label")
    batch = batch_of(make, made()[1:2])
    logits = module(folder)(batch)
    answer = answer_of(batch)
    is_video = (answer.input_ids == make.config.video_token_id).int()
    with torch.no_grad():
        given = {"input_ids": answer.input_ids, "mm_token_type_ids": is_video * 2, **batch.video}
        theirs = model(**given).logits[0, answer.labels[0].roll(-1) != -100]
    torch.testing.assert_close(logits.detach(), theirs, atol=1e-5, rtol=1e-5)
    without = module(folder)
    for merger in without.backbone.model.visual.deepstack_merger_list:
        for parameter in merger.parameters():
            parameter.data.zero_()
    assert (without(batch) - logits).abs().max() > 1e-2


def test_kept_features_are_the_tower_s_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    frozen = module(folder, stage="label", vision_learning_rate=0.0)
    make, cache = collator(folder, prompt_stage="label"), FeatureCache(tmp_path, 1 << 30)
    keyed = [replace(one, key=one.clip.id) for one in made()]
    first = tower_features(frozen.backbone, frozen.family, make(keyed), cache)
    known: list[Example] = []
    for one in keyed:
        found = cache.get(one.key)
        assert found is not None
        assert found.pair_times == one.video.pair_times
        known.append(replace(one, video=found))
    again = tower_features(frozen.backbone, frozen.family, make(known), cache)
    states = frozen.family.feature_states(frozen.config)
    assert {own.shape[1] for own in again} == {32 * states}
    for ours, own, one in zip(again, first, made(), strict=True):
        assert torch.equal(ours, own)
        theirs = frozen.backbone.get_video_features(**make([one]).video)
        shown = embed_features(frozen.backbone, frozen.family, [ours])["mm_encoder_outputs"]
        assert torch.equal(shown["video"].pooler_output[0], theirs.pooler_output[0])
        for level, their in zip(
            shown["video"].deepstack_features, theirs.deepstack_features, strict=True
        ):
            whole = their if isinstance(their, Tensor) else their[0]  # as before 5.18
            assert torch.equal(level[0], whole)
    # Cached clips stand in the same prompts.
    ids = [prompt_of(make(some)).input_ids for some in (keyed, known)]
    assert torch.equal(*ids)


def test_every_part_trains_with_its_own_rate(folder: Path) -> None:
    model = module(folder, stage="label", vision_learning_rate=0.0).backbone
    add_adapters(model, LoRA(rank=4, alpha=8), None, merger=True)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    held = {name for name in trained if ".modules_to_save." in name}
    places = {name.split("visual.")[1].split(".modules_to_save")[0] for name in held}
    assert places == {"merger", "deepstack_merger_list.0"}
    adapted = {
        name.split("layers.0.")[1].split(".lora")[0]
        for name in trained
        if ".0." in name and "lora" in name
    }
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    experts = model.config.model_type == "qwen3_vl_moe"
    assert adapted == attention | (
        set() if experts else {f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    )


def test_frames_are_of_the_backbone_s_tokens(folders: dict[str, Path]) -> None:
    config, _ = load_config(str(folders["qwen3_vl"]))
    assert token_side(config) == 32
    assert patch_grid(4, (64, 96), 32) == (2, 4, 6)
    # A frame pair of the paper's pixel budget, wide and nearly square.
    budget = {"min_pixels": 784, "max_pixels": 360 * 420, "side": 32}
    sizes = [frame_size(*size, 10, **budget) for size in ((720, 1280), (480, 640))]
    assert [height * width // 32**2 for height, width in sizes] == [144, 140]


def test_weights_that_know_other_prompts_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    family = FAMILIES["qwen3_vl"]
    write_json(tmp_path / PROVENANCE, {"video_prompt": family.prompt_rule})
    check_prompt_rule(tmp_path, family)
    write_json(tmp_path / PROVENANCE, {"video_prompt": "another rule"})
    with pytest.raises(ValueError, match="was trained on prompts") as error:
        check_prompt_rule(tmp_path, family)
    assert str(error.value) == (
        f"weights folder {tmp_path} was trained on prompts with 'another rule' (rbft.json: "
        "video_prompt), and this version makes them with 'a time before each frame pair, nothing "
        "around all of them'. Use the version that the folder names, or train anew."
    )
