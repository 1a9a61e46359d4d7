"""Under which name a clip's features are kept: its content, its frames and the tower."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.video.feature_cache import EncodedVideo
from tests.examples import Yard, clips


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "train_0.mp4"
    made.write_bytes(b"a video")
    return made


def yard(work: Path, **settings: Any) -> Yard:
    return Yard(work / "card.yaml", {"train": 1}, feature_cache_gb=1.0, **settings)


def test_each_tower_sees_a_clip_for_itself(tmp_path: Path, file: Path) -> None:
    clip = replace(clips(1)[0], path=file)
    one = yard(tmp_path)
    frames, key = one.reader.load(clip, "one tower")
    assert not isinstance(frames, EncodedVideo)
    features = EncodedVideo(torch.ones(4, 2), [1, 2, 2], 1.0)
    one.feature_cache.put(key, features)
    again, same = yard(tmp_path).reader.load(clip, "one tower")
    assert isinstance(again, EncodedVideo)
    assert torch.equal(again.features, features.features)
    assert same == key
    for other, tower in (
        (yard(tmp_path), "another tower"),
        (yard(tmp_path, fps=2.0), "one tower"),
        (yard(tmp_path, max_pixels=56 * 56), "one tower"),
    ):
        found, name = other.reader.load(clip, tower)
        assert not isinstance(found, EncodedVideo)
        assert name != key
    copy = tmp_path / "copy.mp4"
    shutil.copyfile(file, copy)
    copy.write_bytes(b"A video")
    found, _ = one.reader.load(replace(clip, path=copy), "one tower")
    assert not isinstance(found, EncodedVideo)
