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


def yard(work: Path, tower: str, **settings: Any) -> Yard:
    made = Yard(work / "card.yaml", {"train": 1}, feature_cache_gb=1.0, **settings)
    made.tower = tower
    return made


def test_each_tower_sees_a_clip_for_itself(tmp_path: Path, file: Path) -> None:
    clip = replace(clips(1)[0], path=file)
    one = yard(tmp_path, "one tower")
    frames, key = one.see(clip)
    assert not isinstance(frames, EncodedVideo)
    features = EncodedVideo(torch.ones(4, 2), [1, 2, 2], 1.0)
    one.feature_cache.put(key, features)
    again, same = yard(tmp_path, "one tower").see(clip)
    assert isinstance(again, EncodedVideo)
    assert torch.equal(again.features, features.features)
    assert same == key
    for other in (
        yard(tmp_path, "another tower"),
        yard(tmp_path, "one tower", fps=2.0),
        yard(tmp_path, "one tower", max_pixels=56 * 56),
    ):
        found, name = other.see(clip)
        assert not isinstance(found, EncodedVideo)
        assert name != key
    copy = tmp_path / "copy.mp4"
    shutil.copyfile(file, copy)
    copy.write_bytes(b"A video")
    found, _ = one.see(replace(clip, path=copy))
    assert not isinstance(found, EncodedVideo)
