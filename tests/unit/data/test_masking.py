"""What the loaders of a benchmark serve where parts of the clips are masked."""

from pathlib import Path

import pytest
import torch

from rbft.clip import Clip
from rbft.masking.box_file import BoxFile
from rbft.masking.boxes import Box
from rbft.masking.settings import Masking
from rbft.miniature.data import Miniature
from rbft.video.feature_cache import EncodedVideo
from tests.unit.miniature.test_data import SETTINGS


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    data = benchmark(tmp_path)
    file = BoxFile(tmp_path / "boxes.jsonl")
    for clip in data.clips("test"):
        video, box = data.files.digest(clip), Box(0.0, 0.0, 0.5, 1.0).as_list()
        frames = data.reader.decode(clip).indices
        file.append({"id": clip.id, "video": video, "frame": n, "boxes": [box]} for n in frames)
    file.merge([])
    return file.path


def benchmark(folder: Path, masking: Masking | None = None, **more: float) -> Miniature:
    return Miniature(
        train_size=1,
        test_size=2,
        clips_folder=folder / "clips",
        cache_folder=folder / "cache",
        masking=masking,
        **{**SETTINGS, **more},
    )


def test_clips_are_shown_with_their_masks(tmp_path: Path, boxes: Path) -> None:
    plain, masked = benchmark(tmp_path), benchmark(tmp_path, Masking(boxes))
    for clip in plain.clips("test"):
        before, after = plain.reader.decode(clip), masked.reader.decode(clip)
        assert (after.frames[..., :40] == 128).all()
        assert (after.frames[..., 45:] == before.frames[..., 45:]).all()
        video, key = masked.reader.load(clip)
        assert key == ""
        assert video.shown["masked"]["objects"] == 84 * 42 * len(after.indices)


def test_features_of_masked_frames_have_keys_of_their_own(tmp_path: Path, boxes: Path) -> None:
    """Or what the vision tower made of whole frames would be scored as if they were masked."""
    made = [None, Masking(boxes), Masking(boxes, "random"), Masking(boxes, "random", repeat=1)]
    clip = benchmark(tmp_path).clips("test")[0]
    keys = []
    for masking in made:
        data = benchmark(tmp_path, masking, feature_cache_gb=1.0)
        video, key = data.reader.load(clip, "tower")
        assert not isinstance(video, EncodedVideo)
        data.feature_cache.put(key, EncodedVideo(torch.zeros(1, 1), [1, 1, 1], 1.0))
        keys.append(key)
    assert len(set(keys)) == len(made)


def test_a_frame_without_line_is_no_broken_file(tmp_path: Path, boxes: Path) -> None:
    """A broken file would be counted as a wrong answer; this stops."""
    data = benchmark(tmp_path, Masking(boxes), fps=2.0)
    clip = data.clips("test")[0]
    with pytest.raises(
        ValueError, match=rf"has no line about \d+ of the 12 frames of clip {clip.id}"
    ) as error:
        data.reader.decode(clip)
    assert type(error.value) is ValueError


def test_training_takes_no_masks(tmp_path: Path, boxes: Path) -> None:
    with pytest.raises(AssertionError, match="training is on whole frames"):
        benchmark(tmp_path, Masking(boxes)).train_dataloader()


def test_the_miniature_knows_where_its_sprites_are(tmp_path: Path) -> None:
    data = benchmark(tmp_path)
    for clip in data.clips("test"):
        known = data.true_boxes(clip)
        assert sorted(known) == list(range(24))
        assert any(known.values())
        assert isinstance(clip, Clip)
