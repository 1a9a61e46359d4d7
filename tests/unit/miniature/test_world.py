from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from rbft.miniature.camera import film
from rbft.miniature.scene import GENERAL, TARGET, is_abnormal
from rbft.miniature.world import (
    FPS,
    SECONDS,
    cache_folder,
    draw_annotations,
    make_clips,
    read_annotations,
)

SIZES = {"train": 2, "val": 1, "test": 2}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("world") / "clips", sizes=SIZES)


def test_folder_holds_the_videos_and_their_annotations(clips):
    rows = read_annotations(clips)
    names = ["train-0000", "train-0001", "val-0000", "test-0000", "test-0001"]
    assert [row.id for row in rows] == [f"target-{name}" for name in names]
    assert [row.split for row in rows] == ["train", "train", "val", "test", "test"]
    files = {row.file for row in rows} | {"annotations.jsonl"}
    assert {path.name for path in clips.iterdir()} == files
    for row in rows:
        assert row.label == ("abnormal" if is_abnormal(row.factors) else "normal")
        assert row.caption.startswith(f"subjects : {row.factors.subject} , ")


def test_video_files_hold_what_was_filmed(clips: Path):
    row = read_annotations(clips)[0]
    with av.open(clips / row.file) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", FPS)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    filmed = film(row.factors, TARGET, np.linspace(0, 1, SECONDS * FPS).tolist())
    assert frames.shape == filmed.shape == (24, 84, 84, 3)
    # What the codec loses, in grey levels of 255.
    assert np.abs(frames.astype(float) - filmed).mean() < 6


def test_the_same_arguments_give_the_same_bytes(clips, tmp_path):
    again = make_clips(tmp_path / "again", sizes=SIZES)
    for path in clips.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_a_longer_split_begins_with_a_shorter_one():
    few = draw_annotations(TARGET, {"train": 3, "val": 0, "test": 2}, seed=5)
    many = draw_annotations(TARGET, {"train": 6, "val": 1, "test": 4}, seed=5)
    assert few[:3] == many[:3]
    assert few[3:] == many[7:9]


def test_the_general_domain_has_other_scenes_and_the_general_meaning_of_abnormal():
    rows = draw_annotations(GENERAL, {"test": 50}, seed=0)
    for row in rows:
        assert row.label == ("abnormal" if row.factors.action == "knocks over" else "normal")
    target = draw_annotations(TARGET, {"test": 50}, seed=0)
    assert [row.caption for row in rows] != [row.caption for row in target]


def test_several_callers_at_once_get_one_whole_folder(tmp_path):
    folder = tmp_path / "deep" / "clips"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: make_clips(folder, sizes=SIZES), range(3)))
    assert len(read_annotations(folder)) == 5
    assert [path.name for path in folder.parent.iterdir()] == ["clips"]


def test_a_stopped_call_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rbft.miniature.world.write_video", stop)
    with pytest.raises(KeyboardInterrupt):
        make_clips(tmp_path / "clips", sizes=SIZES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("domain", "sizes", "seed"),
    [("target", SIZES, 1), ("target", {"train": 3}, 0), ("general", SIZES, 0)],
)
def test_a_folder_of_other_clips_is_an_error(clips, domain, sizes, seed):
    message = (
        f"Folder {clips} holds something else than the clips that were asked for .*"
        "Name an empty or a new folder in data.clips_folder, or delete this one."
    )
    with pytest.raises(ValueError, match=message):
        make_clips(clips, domain, sizes=sizes, seed=seed)


def test_clips_are_cached_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RBFT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "miniature"
    assert make_clips(sizes=SIZES).name == "target-seed0-2-1-2-v1"
    monkeypatch.delenv("RBFT_CACHE")
    assert cache_folder().parts[-3:] == (".cache", "rbft", "miniature")
