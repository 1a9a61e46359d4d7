from pathlib import Path

import pytest

from rbft.video.cache_folder import WHAT, cache_sizes, clear_cache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in (
        ("frames/a.clip", 5),
        ("frames/b.part", 2),
        ("features/a.features", 4),
        ("scans/yard.jsonl", 3),
        ("digests.jsonl", 6),
        ("miniature/world/annotations.jsonl", 1),
        ("miniature/world/a.mp4", 10),
        ("frames/mine.txt", 100),
        ("miniature/mine/a.mp4", 100),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    return tmp_path


@pytest.mark.parametrize("part", [*WHAT, "all"])
def test_a_part_is_cleared_and_nothing_else(folder: Path, part: str) -> None:
    before = {"frames": 7, "features": 4, "scans": 3, "digests": 6, "clips": 11}
    assert cache_sizes(folder) == before
    clear_cache(folder, part)
    assert cache_sizes(folder) == {
        name: 0 if part in (name, "all") else size for name, size in before.items()
    }
    assert (folder / "frames/mine.txt").exists()
    assert (folder / "miniature/mine/a.mp4").exists()


def test_a_cache_that_is_not_there(tmp_path: Path) -> None:
    clear_cache(tmp_path / "none", "all")
    assert set(cache_sizes(tmp_path / "none").values()) == {0}
