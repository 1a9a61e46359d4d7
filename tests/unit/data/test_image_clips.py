"""Images as clips of a data set: read, scanned, compared, kept, beside videos in a batch."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rbft.clip import Images
from rbft.data.content import describe_clips
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.data.videofolder import VideoFolder
from tests.examples import CARD, collator, prompt_of
from tests.recipe.runs import ROOT
from tests.videos import make_video, numbers, picture

SETTINGS: dict[str, Any] = {
    "fps": 1.0,
    "max_pixels": 56 * 84,
    "min_pixels": 28 * 28,
    "min_frames": 2,
    "max_frames": 16,
    "global_batch_size": 4,
    "rationale_ratio": 1.0,
    "test_fraction": 0.0,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    CARD.save(tmp_path / "card.yaml")
    return tmp_path / "clips"


def frames(folder: Path, shown: Sequence[int], size: tuple[int, int] = (56, 84)) -> list[Path]:
    """A folder of images that show frames of these numbers, called by their places."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for place, number in enumerate(shown, 1):
        made.append(folder / f"{place}.png")
        Image.fromarray(picture(number, *size)).save(made[-1])
    return made


def still(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number, 56, 84)).save(path)
    return path


def read(root: Path, **settings: Any) -> VideoFolder:
    cache = root.parent / "cache"
    return VideoFolder(
        root=root, card=root.parent / "card.yaml", cache_folder=cache, **{**SETTINGS, **settings}
    )


def table(root: Path, *rows: dict[str, Any]) -> Path:
    file = root.parent / "clips.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def test_rows_of_folders_lists_and_stills(root: Path) -> None:
    folder = frames(root / "walk.v1", range(12))
    one = still(root / "one.png", 77)
    make_video(root / "film.mkv", 30, 56, 84, codec="ffv1", pixels="bgr0", first=200)
    rows = [
        {"id": "walk", "path": "walk.v1", "label": "quiet", "fps": 4, "split": "train"},
        {
            "id": "uneven",
            "path": ["walk.v1/2.png", "walk.v1/9.png", "walk.v1/12.png"],
            "times": [5, 5.5, 20],
            "label": "alarm",
            "split": "train",
        },
        {"id": "one", "path": "one.png", "label": "alarm", "split": "train", "fps": "no use"},
        {
            "id": "film",
            "path": "film.mkv",
            "label": "quiet",
            "split": "train",
            "fps": "",
            "times": "whatever",
        },
    ]
    data = read(root, table=table(root, *rows))
    walk, uneven, single, film = data.all_clips
    assert [clip.id for clip in data.all_clips] == ["walk", "uneven", "one", "film"]
    assert walk.images == Images(root / "walk.v1", tuple(folder), 4.0)
    listed = (folder[1], folder[8], folder[11])
    assert uneven.images == Images(folder[1], listed, 0.133333333, (0.0, 0.5, 15.0))
    assert (single.images, single.path) == (None, one)
    assert film.images is None
    manifest = {row.id: row for row in data.files.manifest.rows}
    assert {row.status for row in manifest.values()} == {"ok"}
    facts = [(row.frames, row.fps, row.duration) for row in manifest.values()]
    assert facts[0] == (12, 4.0, 3.0)
    assert facts[1] == (3, 0.133333333, 22.5)
    assert facts[2] == (1, 1.0, 1.0)
    assert manifest["uneven"].path == str(folder[1])
    assert manifest["walk"].bytes == sum(file.stat().st_size for file in folder)
    shown = {clip.id: data.reader.decode(clip) for clip in data.all_clips}
    assert numbers(shown["walk"].frames) == shown["walk"].indices == [0, 11]
    assert numbers(shown["uneven"].frames) == [1, 11]
    assert numbers(shown["one"].frames) == [77, 77]
    assert numbers(shown["film"].frames) == [200, 229]
    for clip in data.all_clips:  # what is known beforehand is what is seen
        pairs, rows_, columns = data.files.grid(clip)
        video = shown[clip.id]
        assert (2 * pairs, 14 * rows_, 14 * columns) == (
            len(video.frames),
            *video.frames.shape[2:],
        )
        assert data.files.pair_times(clip).middles == pytest.approx(video.pair_times.middles)
        assert torch.equal(data.reader.decode(clip).frames, video.frames)  # from the cache
    assert len(list((root.parent / "cache/frames").iterdir())) == 4
    # Scanned again, nothing is opened.
    before = (root.parent / "cache/scans/yard.jsonl").read_bytes()
    assert read(root, table=root.parent / "clips.jsonl").files.manifest == data.files.manifest
    assert (root.parent / "cache/scans/yard.jsonl").read_bytes() == before


def test_images_and_videos_stand_in_one_batch(root: Path, qwen: Path) -> None:
    """Each has the tokens, positions and patches that it has alone."""
    frames(root / "walk", range(12))
    still(root / "one.png", 77)
    make_video(root / "film.mkv", 60, 56, 84, codec="ffv1", pixels="bgr0", first=200)
    one = make_video(root / "single.mkv", 1, 56, 84, codec="ffv1", pixels="bgr0", first=77)
    rows = [
        {"path": path, "label": "quiet", "split": "train", "fps": 2}
        for path in ("walk", "one.png", "film.mkv", one.name)
    ]
    rows[1]["label"] = "alarm"
    rows[0]["times"] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 50]
    data = read(root, table=table(root, *rows))
    made = [
        Example(clip, data.reader.decode(clip), None, SampleSlot(place))
        for place, clip in enumerate(data.all_clips)
    ]
    make = collator(qwen, prompt_stage="label")
    batch = make(made)
    prompt = prompt_of(batch)
    patches = 0
    for place, example in enumerate(made):
        alone = make([replace(example, draw=SampleSlot(0))])
        ids = prompt_of(alone).input_ids[0]
        assert prompt.input_ids[place, -len(ids) :].tolist() == ids.tolist()
        positions = prompt_of(alone).position_ids[:, 0]
        assert torch.equal(prompt.position_ids[:, place, -len(ids) :], positions)
        own = alone.video["pixel_values_videos"]
        assert torch.equal(batch.video["pixel_values_videos"][patches : patches + len(own)], own)
        patches += len(own)
    # A still is what a video of one frame is.
    assert prompt.input_ids[1].tolist() == prompt.input_ids[3].tolist()
    assert torch.equal(made[1].video.frames, made[3].video.frames)  # pyright: ignore


def test_images_below_class_folders(root: Path) -> None:
    for split, label, start in (
        ("train", "quiet", 0),
        ("train", "alarm", 50),
        ("test", "quiet", 9),
    ):
        still(root / split / label / "photo.png", start)
        frames(root / split / label / "frames", range(start, start + 4))
        make_video(root / split / label / "x.mp4", 20, 56, 84, first=start)
    plain = read(root)
    assert {clip.path.name for clip in plain.all_clips} == {"x.mp4"}
    assert "left alone 15 files that are no videos: 15 .png" in " ".join(plain.notes)
    stills = read(root, images="clips")
    assert len(stills.all_clips) == 3 + 3 + 12
    assert {clip.images for clip in stills.all_clips} == {None}
    assert len(stills.files.usable) == 18
    together = read(root, images="frames", image_fps=2.0)
    found = {clip.id: clip for clip in together.all_clips}
    assert sorted(found) == sorted(
        f"{split}/{label}/{name}"
        for split, label in (("test", "quiet"), ("train", "alarm"), ("train", "quiet"))
        for name in ("frames", "x")
    )
    images = found["train/alarm/frames"].images
    assert images is not None
    assert (len(images.files), images.fps) == (4, 2.0)
    assert together.card.classes[found["train/alarm/frames"].label or 0] == "alarm"
    with pytest.raises(
        ValueError, match=r"frames: .*/frames is 4 images, and nothing says when th"
    ):
        _ = read(root, images="frames").all_clips


def test_the_same_images_are_a_leak_whatever_their_names_and_times(root: Path) -> None:
    frames(root / "a", range(4))
    frames(root / "b", range(4))
    frames(root / "c", range(1, 5))
    still(root / "one.png", 60)
    still(root / "two.png", 60)
    rows = [
        {"path": "a", "fps": 1, "label": "quiet", "split": "train"},
        {"path": "b", "fps": 3, "label": "quiet", "split": "test"},
        {"path": "c", "fps": 1, "label": "alarm", "split": "test"},
        {"path": "one.png", "label": "alarm", "split": "train"},
        {"path": "two.png", "label": "alarm", "split": "test"},
    ]
    data = read(root, table=table(root, *rows))
    with pytest.raises(ValueError, match=r"^2 of 3 test clips of VideoFolder"):
        data.check(["label"])
    # What a run is made from tells the times as well.
    described = describe_clips(data)
    assert described["train"][0]["video"] != described["test"][0]["video"]
    assert described["train"][1]["video"] == described["test"][2]["video"]
    other = read(root, table=table(root, {**rows[0], "fps": 2}, *rows[1:]))
    assert describe_clips(other)["train"][0]["video"] != described["train"][0]["video"]


def test_an_image_in_the_place_of_another_is_seen(root: Path) -> None:
    """Of the same size and time of change, by all that knows the clip."""
    files = [still(root / f"a/{number}.bmp", number) for number in range(3)]
    row = {"id": "a", "path": "a", "fps": 1, "label": "quiet", "split": "train"}
    other = {**row, "id": "b", "path": "a/1.bmp", "label": "alarm"}

    def known() -> tuple[str, str, list[int]]:
        data = read(root, table=table(root, row, other))
        clip = data.all_clips[0]
        (scanned, _) = data.files.manifest.rows
        shown = numbers(data.reader.decode(clip).frames)
        return str(scanned.digest), data.files.content(clip), shown

    before = known()
    assert known() == before
    status = files[2].stat()
    still(files[2], 99)
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files[2].stat().st_size == status.st_size
    after = known()
    assert (before[2], after[2]) == ([0, 2], [0, 99])
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_what_is_wrong_with_images_is_said_by_name(root: Path) -> None:
    files = frames(root / "a", range(3))
    frames(root / "b", range(3))
    Image.new("RGB", (30, 30)).save(root / "b/3.png")
    frames(root / "c", range(2))
    (root / "c/2.png").write_bytes(b"x" * 99)
    rows = [
        {"id": name, "path": name, "fps": 1, "label": "quiet", "split": "train"}
        for name in ("a", "b", "c")
    ]
    rows[1]["label"] = "alarm"
    rows.append({**rows[0], "id": "d", "path": ["a/1.png", "a/9.png"]})
    data = read(root, table=table(root, *rows))
    found = {row.id: (row.status, row.reason) for row in data.files.manifest.rows}
    assert found == {
        "a": ("ok", ""),
        "b": (
            "unreadable",
            f"{root}/b/3.png is 30 x 30 pixels, but the first image of the clip 84 x 56. Images of "
            "one clip must have one size",
        ),
        "c": ("unreadable", f"{root}/c/2.png is no image that can be read (JPEG, PNG, WebP, BMP)"),
        "d": ("missing", f"no such file: {root}/a/9.png"),
    }
    outside = still(root.parent / "outside.png", 3)
    files[1].unlink()
    files[1].symlink_to(outside)
    clip = read(root, table=table(root, *rows[:2])).all_clips[0]
    assert clip.refused.startswith(f"{files[1]} is a symbolic link out of {root} (to {outside})")
    with pytest.raises(
        ValueError, match=r"line 1: .*/a is 3 images, and nothing says when they ar"
    ):
        _ = read(root, table=table(root, {**rows[0], "fps": None})).all_clips
    with pytest.raises(
        ValueError, match=r"line 1: fps is '0'; it must be images per second, above"
    ):
        _ = read(root, table=table(root, {**rows[0], "fps": 0})).all_clips
    with pytest.raises(
        ValueError, match=r"line 1: .*/a: 2 times for 3 images; each image needs on"
    ):
        _ = read(root, table=table(root, {**rows[0], "times": [0, 1]})).all_clips


def test_the_rows_of_the_docs(root: Path) -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    frames(root / "frames/walk", range(3))
    frames(root / "cam", range(20))
    for number in (7, 19, 20):
        (root / f"cam/{number}.png").rename(root / f"cam/{number:04d}.png")
    still(root / "photo.jpg", 3)
    file = root.parent / "clips.jsonl"
    file.write_text(block, encoding="utf-8")
    data = read(root, table=file)
    assert len(data.files.usable) == 3
    walk, door, photo = (data.reader.decode(clip) for clip in data.all_clips)
    assert (walk.fps, walk.times) == (5.0, None)
    assert door.indices == [0, 2]
    assert data.all_clips[1].images is not None
    assert data.all_clips[1].images.seconds == pytest.approx((0.0, 12.5, 13.1))
    assert photo.indices == [0, 0]
