"""Kept outputs of the vision tower stand for its own run: same loss, gradients and answers."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import (
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from rbft.backbone.vision_features import check_frozen, embed_features, tower_digest, tower_features
from rbft.batch import Batch
from rbft.collator import Collator
from rbft.module import RBFTModule
from rbft.video.feature_cache import FeatureCache
from tests.examples import (
    Yard,
    answer_of,
    batch_of,
    collator,
    examples,
    module,
    prompt_of,
    score_answers,
    write_answers,
    writing,
)


@pytest.fixture
def frozen(backbone: Path) -> RBFTModule:
    return module(backbone, stage="label", vision_learning_rate=0.0)


def keyed(make: Collator, count: int, cache: FeatureCache) -> Batch:
    """A batch as the data module makes it when features are kept."""
    made = [replace(e, key=e.clip.id) for e in examples(count)]
    return batch_of(make, [replace(e, video=cache.get(e.key) or e.video) for e in made])


def test_merged_features_are_the_video_tokens_of_transformers(frozen, tmp_path):
    batch = collator(Path(frozen.loader.source), prompt_stage="label")(examples(5))
    theirs = frozen.backbone.get_video_features(**batch.video).pooler_output
    cache = FeatureCache(tmp_path, 1 << 30)
    ours = tower_features(
        frozen.backbone, frozen.family, keyed(collator(Path(frozen.loader.source)), 5, cache), cache
    )
    shown = embed_features(frozen.backbone, frozen.family, ours)["mm_encoder_outputs"][
        "video"
    ].pooler_output
    assert len(shown) == len(theirs) == 5
    for own, their in zip(shown, theirs, strict=True):
        torch.testing.assert_close(own, their)


@pytest.mark.parametrize("known", [0, 2, 4])
def test_loss_and_gradients_with_some_clips_seen_before(frozen, tmp_path, known, monkeypatch):
    """Whether none, some or all of a batch's clips were seen, and in whatever order."""
    make = collator(Path(frozen.loader.source), target_stage="label")
    plain = batch_of(make, examples(4))
    frozen.loss(plain).backward()
    expected = {
        n: p.grad.clone() for n, p in frozen.backbone.named_parameters() if p.grad is not None
    }
    assert not any("visual.blocks" in name for name in expected)
    assert any("visual.merger" in name for name in expected)
    cache = FeatureCache(tmp_path, 1 << 30)
    if known:
        tower_features(frozen.backbone, frozen.family, keyed(make, known, cache), cache)
    batch = keyed(make, 4, cache)
    assert batch.cached is not None
    assert [found is not None for found in batch.cached.features] == [n < known for n in range(4)]
    assert ("pixel_values_videos" in batch.video) == (known < 4)
    assert torch.equal(batch.video["video_grid_thw"], plain.video["video_grid_thw"])
    assert torch.equal(answer_of(batch).position_ids, answer_of(plain).position_ids)
    frozen.zero_grad()
    monkeypatch.setattr(type(frozen), "data", type("Data", (), {"feature_cache": cache}))
    loss = frozen.loss(batch)
    loss.backward()
    torch.testing.assert_close(loss.detach(), frozen.loss(plain).detach())
    found = {n: p.grad for n, p in frozen.backbone.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_a_clip_that_stands_in_several_sequences_is_shown_in_each(qwen, tmp_path, monkeypatch):
    """Expected reward looks at the answers of all classes; each clip is seen once."""
    made = module(qwen, stage="label_reward", vision_learning_rate=0.0)
    plain, cache = batch_of(made.collator, examples(4)), FeatureCache(tmp_path, 1 << 30)
    expected = made.loss(plain).detach()
    tower_features(made.backbone, made.family, keyed(made.collator, 2, cache), cache)
    batch = keyed(made.collator, 4, cache)
    assert batch.cached is not None
    monkeypatch.setattr(type(made), "data", type("Data", (), {"feature_cache": cache}))
    torch.testing.assert_close(made.loss(batch).detach(), expected)
    # In another order, or each clip's tokens in another's place, it would be another loss.
    sources = answer_of(batch).video_sources
    assert sources is not None
    wrong = replace(answer_of(batch), video_sources=sources.flip(0))
    assert abs(made.loss(replace(batch, answer=wrong)).item() - expected.item()) > 1e-6


def test_scores_and_texts_are_the_same(frozen, tmp_path):
    make = collator(Path(frozen.loader.source), prompt_stage="label")
    plain, cache = make(examples(3)), FeatureCache(tmp_path, 1 << 30)
    features = tower_features(frozen.backbone, frozen.family, keyed(make, 3, cache), cache)
    shown = embed_features(frozen.backbone, frozen.family, features)
    words, prompt = [[70, 71, 72], [70, 75]], prompt_of(plain)
    torch.testing.assert_close(
        score_answers(frozen.backbone, prompt, shown, words),
        score_answers(frozen.backbone, prompt, plain.video, words),
    )
    settings = writing(Path(frozen.loader.source), 6)
    assert write_answers(frozen.backbone, prompt, shown, settings) == write_answers(
        frozen.backbone, prompt, plain.video, settings
    )


def test_features_depend_on_nothing_but_the_clip(frozen, tmp_path):
    """Bit for bit, so that a run that is killed in between ends as one that is not."""
    make = collator(Path(frozen.loader.source))
    one, other = FeatureCache(tmp_path / "one", 1 << 30), FeatureCache(tmp_path / "other", 1 << 30)
    together = tower_features(frozen.backbone, frozen.family, keyed(make, 4, one), one)
    tower_features(frozen.backbone, frozen.family, keyed(make, 2, other), other)
    apart = tower_features(frozen.backbone, frozen.family, keyed(make, 4, other), other)
    for own, their in zip(together, apart, strict=True):
        assert torch.equal(own, their)


def test_a_tower_in_shards_is_refused(tmp_path):
    strategy = ModelParallelStrategy
    data = Yard(tmp_path / "card.yaml", {}, feature_cache_gb=0.5)
    text = (
        "data.feature_cache_gb (0.5) needs the vision tower in one piece, but trainer.strategy is "
        f"{strategy.__name__}. Set data.feature_cache_gb to 0, or another strategy."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        check_frozen(data.feature_cache.max_bytes, 0.0, strategy())
    check_frozen(data.feature_cache.max_bytes, 0.0, SingleDeviceStrategy())
    check_frozen(0, 1.0, strategy())


def test_what_makes_another_tower(backbones):
    one = module(backbones["qwen2_5_vl"])
    processor = one.processor

    def digest(made: RBFTModule, precision: str = "32-true") -> str:
        return tower_digest(made.backbone, made.family, processor, precision)

    before = digest(one)
    assert digest(module(backbones["qwen2_5_vl"])) == before
    assert digest(one, "bf16-mixed") != before
    with torch.no_grad():
        one.backbone.model.visual.merger.mlp[0].weight[0, 0] += 1
        one.backbone.lm_head.weight[0, 0] += 1
    assert digest(one) == before, "the merger and the language model come after the tower"
    with torch.no_grad():
        one.backbone.model.visual.blocks[1].mlp.up_proj.weight[0, 0] += 1e-6
    assert digest(one) != before
    one = module(backbones["qwen2_5_vl"])
    for name, other in {
        "rescale_factor": 1 / 127,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "patch_size": 16,
        "temporal_patch_size": 1,
    }.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processor.video_processor, name, other)
            assert digest(one) != before, name
    vision = one.backbone.config.vision_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision, "fullatt_block_indexes", [0])
        assert digest(one) != before
    with torch.no_grad():  # the same numbers in another shape, and in another type
        weight = one.backbone.model.visual.blocks[1].mlp.up_proj.weight
        weight.data = weight.data.T.contiguous().T.reshape(weight.shape[::-1])
    assert digest(one) != before
    assert digest(one) == digest(one)
