from pathlib import Path

import pytest
import torch

from rbft.video.feature_cache import EncodedVideo, FeatureCache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = FeatureCache(tmp_path, 1 << 20)
    seen = EncodedVideo(torch.randn(16, 5).to(dtype), [1, 4, 4], 7 / 8)
    assert cache.get("a") is None
    cache.put("a", seen)
    found = FeatureCache(tmp_path, 1 << 20).get("a")
    assert found is not None
    assert found.features.dtype == dtype
    assert torch.equal(found.features, seen.features)
    assert (found.grid, found.sampled_fps) == ([1, 4, 4], 7 / 8)
    assert found.pair_times.step == 16 / 7
    found.features.zero_()
    again = cache.get("a")
    assert again is not None
    assert torch.equal(again.features, seen.features)


def test_the_frames_that_went_into_the_tower_are_kept(tmp_path: Path) -> None:
    """Of outputs that were kept without them they are not known."""
    cache, shown = FeatureCache(tmp_path, 1 << 20), {"frames": [0, 12, 24], "fps": 23.976}
    cache.put("a", EncodedVideo(torch.ones(4, 2), [1, 2, 2], 1.0, shown))
    cache.write("b", torch.ones(4, 2), {"grid": [1, 2, 2], "sampled_fps": 1.0})
    again = FeatureCache(tmp_path, 1 << 20)
    found = [again.get(key) for key in ("a", "b")]
    assert [one.shown for one in found if one is not None] == [shown, {}]


def test_part_of_a_larger_tensor_is_kept_as_its_own_values(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1 << 20)
    whole = torch.arange(24.0).view(6, 4)
    cache.put("b", EncodedVideo(whole[2:4], [1, 1, 2], 1.0))
    cache.put("c", EncodedVideo(whole.T, [1, 2, 2], 1.0))
    b, c = cache.get("b"), cache.get("c")
    assert b is not None
    assert c is not None
    assert torch.equal(b.features, whole[2:4])
    assert torch.equal(c.features, whole.T)
