from pathlib import Path

import pytest
import torch

import rbft.data.diskcache as diskcache
from rbft.data.diskcache import DiskCache
from rbft.data.featurecache import FeatureCache, SeenVideo


class SmallCache(DiskCache):
    suffix = ".x"
    name = "small cache"
    otherwise = "nothing is kept"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = FeatureCache(tmp_path, 1 << 20)
    seen = SeenVideo(torch.randn(16, 5).to(dtype), [1, 4, 4], 7 / 8)
    assert cache.get("a") is None
    cache.put("a", seen)
    found = FeatureCache(tmp_path, 1 << 20).get("a")
    assert found is not None
    assert found.features.dtype == dtype
    assert torch.equal(found.features, seen.features)
    assert (found.grid, found.sampled_fps) == ([1, 4, 4], 7 / 8)
    assert found.seconds_per_pair() == 16 / 7
    found.features.zero_()
    again = cache.get("a")
    assert again is not None
    assert torch.equal(again.features, seen.features)


def test_part_of_a_larger_tensor_is_kept_as_its_own_values(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1 << 20)
    whole = torch.arange(24.0).view(6, 4)
    cache.put("b", SeenVideo(whole[2:4], [1, 1, 2], 1.0))
    cache.put("c", SeenVideo(whole.T, [1, 2, 2], 1.0))
    b, c = cache.get("b"), cache.get("c")
    assert b is not None
    assert c is not None
    assert torch.equal(b.features, whole[2:4])
    assert torch.equal(c.features, whole.T)


def test_the_folder_is_not_listed_for_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand clips would make ten thousand listings of up to as many files."""
    listings, tensor = [0], torch.zeros(1000)
    list_files = DiskCache._files

    def count(self: DiskCache) -> list[tuple[float, int, Path]]:
        listings[0] += 1
        return list_files(self)

    monkeypatch.setattr(DiskCache, "_files", count)
    roomy = SmallCache(tmp_path, 1000 * 5000)
    for number in range(400):
        roomy.write(str(number), tensor, {})
    assert listings[0] < 20
    full = SmallCache(tmp_path, 200 * 5000)
    listings[0] = 0
    for number in range(400, 800):
        full.write(str(number), tensor, {})
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= full.max_bytes
    assert listings[0] < 400
    # It stays as full as it may be, but for what it is emptied by.
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > full.max_bytes * 0.8
    assert full.read("799") is not None
    assert full.read("0") is None


def test_sixteen_writers_together_stay_within_the_size(tmp_path: Path) -> None:
    """Each may use up its share of the room that it has seen before it looks again."""
    assert diskcache.SHARE * 16 == 1
    made = [SmallCache(tmp_path, 100_000) for _ in range(16)]
    for number in range(200):
        made[number % 16].write(str(number), torch.zeros(100), {})
        assert made[0].size() <= 100_000
