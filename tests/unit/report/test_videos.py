"""Videos are found by content, where caches have noted them; frames of a clip."""

import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rbft.data.manifest import ManifestRow, scan
from rbft.report.videos import Videos, clip_frames
from rbft.runtime.digests import file_digest, hash_file
from rbft.video.sampling import VideoError, probe
from tests.videos import make_video, picture


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make_video(tmp_path / "a.mp4", 40, height=64, width=64, fps=10)


def test_a_video_is_found_by_what_a_digest_cache_has_noted(file, tmp_path):
    os.utime(file, ns=(10**18, 10**18))  # digests of files that have just changed are not kept
    digest = file_digest(file, tmp_path / "cache")
    assert Videos([], tmp_path / "cache").find(digest) == file.resolve()
    assert Videos([], tmp_path / "cache").find("0" * 32) is None
    assert Videos([], tmp_path / "nowhere").find(digest) is None


def test_a_video_is_found_by_what_a_scan_has_noted(file, tmp_path):
    from rbft.clip import Clip

    notes = tmp_path / "cache/scans/b.jsonl"
    (row,) = scan([Clip("a", file, 0, "test")], probe, notes, workers=1).rows
    assert isinstance(row, ManifestRow)
    assert row.digest == hash_file(file)
    videos = Videos([], tmp_path / "cache")
    assert videos.find(str(row.digest)) == file.absolute()
    with notes.open("ab") as stream:
        stream.write(b'{"file": "cut o')
    assert Videos([], tmp_path / "cache").find(str(row.digest)) == file.absolute()


@pytest.mark.parametrize("change", ["gone", "longer", "other content"])
def test_a_file_that_is_no_more_what_it_was_is_not_taken(file, tmp_path, change):
    os.utime(file, ns=(10**18, 10**18))
    digest = file_digest(file, tmp_path / "cache")
    videos = Videos([], tmp_path / "cache")
    content = bytearray(file.read_bytes())
    if change == "gone":
        file.unlink()
    elif change == "longer":
        file.write_bytes(content + b"x")
        os.utime(file, ns=(10**18, 10**18))
    else:
        content[100] ^= 1
        with file.open("r+b") as stream:  # the same inode, size and time
            stream.write(content)
        os.utime(file, ns=(10**18, 10**18))
    assert videos.find(digest) is None


def shown(jpeg: bytes) -> int:
    """The number of the frame in the picture, which has it in blocks of black and white."""
    image = np.asarray(Image.open(BytesIO(jpeg)).convert("RGB")).astype(int)
    height, width, _ = image.shape
    return min(
        range(40),
        key=lambda n: np.abs(picture(n, height, width).astype(int) - image).sum(),
    )


@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [
        (None, None, [0, 8, 16, 23, 31, 39]),
        (1.0, None, [10, 16, 22, 27, 33, 39]),
        (1.0, 2.0, [10, 12, 14, 16, 18, 20]),
        (None, -3.5, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_frames_are_evenly_chosen_from_the_clip(file, start, end, frames):
    found = clip_frames(file, start, end)
    assert [shown(jpeg) for jpeg, *_ in found] == frames
    assert [round(when, 1) for *_, when in found] == [
        round(n / 10 - (start or 0), 1) for n in frames
    ]
    assert all((width, height) == (64, 64) for _, width, height, _ in found)


def test_a_video_without_frames_says_so(file, tmp_path):
    with pytest.raises(VideoError, match=r"has no frame from 9 to 10 s\."):
        clip_frames(file, 9.0, 10.0)
    (tmp_path / "b.mp4").write_text(json.dumps("no video"))
    with pytest.raises(VideoError):
        clip_frames(tmp_path / "b.mp4", None, None)
