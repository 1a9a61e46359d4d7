"""Rows and folders that are images: which files they are, and when each is shown."""

from pathlib import Path
from typing import Any

import pytest

from rbft.annotations.images import (
    frames_per_second,
    images_in,
    images_of_row,
    is_frame_folder,
    listed_images,
    listed_times,
    with_images,
)
from rbft.annotations.lookup import VideoLookup, list_videos
from rbft.annotations.tables import TableRow
from rbft.annotations.video_list import find_videos
from rbft.clip import Images


def row(**values: Any) -> TableRow:
    return TableRow("a.csv, line 2", values)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_images_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["f10.jpg", "f2.JPG", "f1.png", "F3.webp", ".f0.jpg", "notes.txt", "a 007 b12.bmp"]
    folder = touch(tmp_path, *names, "a 7 b2.bmp")
    found = [path.name for path in images_in(folder)]
    assert found == ["a 7 b2.bmp", "a 007 b12.bmp", "f1.png", "f2.JPG", "F3.webp", "f10.jpg"]
    with pytest.raises(ValueError, match=r"^Folder .*/gone cannot be listed: No such file"):
        images_in(tmp_path / "gone")


def test_a_folder_of_frames_holds_neither_videos_nor_folders(tmp_path: Path) -> None:
    assert is_frame_folder(touch(tmp_path / "a", "1.jpg", "2.jpg", "notes.txt", ".DS_Store"))
    assert not is_frame_folder(touch(tmp_path / "b", "1.jpg", "x.mp4"))
    touch(tmp_path / "c" / "d", "1.jpg")
    touch(tmp_path / "c", "1.jpg")
    assert not is_frame_folder(tmp_path / "c")
    assert is_frame_folder(tmp_path / "c" / "d")
    assert not is_frame_folder(touch(tmp_path / "e", "notes.txt"))


def test_images_in_folders_are_clips_where_the_user_says_so(tmp_path: Path) -> None:
    touch(tmp_path / "walk", "x.mp4", "x.jpg")
    touch(tmp_path / "fall" / "one", "2.png", "10.png")
    plain = list_videos(tmp_path)
    assert with_images(plain, None) == plain
    stills = with_images(plain, "clips")
    assert [str(path.relative_to(tmp_path)) for path in stills.videos] == [
        *("fall/one/10.png", "fall/one/2.png", "walk/x.jpg", "walk/x.mp4"),
    ]
    assert stills.others == []
    frames = with_images(plain, "frames")
    assert [str(path.relative_to(tmp_path)) for path in frames.videos] == ["fall/one", "walk/x.mp4"]
    assert frames.others == [tmp_path / "walk/x.jpg"]


def test_a_list_of_images() -> None:
    names = ["a/1.jpg", "a/2.PNG"]
    assert listed_images(row(path=names), "path") == names
    assert listed_images(row(path='["a/1.jpg", "a/2.PNG"]'), "path") == names
    for one in ("a/1.jpg", "[a] b.mp4", "[1", None, ""):
        assert listed_images(row(path=one), "path") is None
    assert listed_images(row(), None) is None
    with pytest.raises(
        ValueError, match=r"^a\.csv, line 2: path is an empty list; a clip needs an"
    ):
        listed_images(row(path=[]), "path")
    for wrong in ("a.mp4", 3):
        with pytest.raises(
            ValueError, match=rf"path lists '?{wrong}'?, which is no image; allowed"
        ):
            listed_images(row(path=["a.jpg", wrong]), "path")


def test_when_images_are_shown() -> None:
    assert listed_times(row(times=[0, 1.5]), "times") == [0.0, 1.5]
    assert listed_times(row(times="[0, 1.5]"), "times") == [0.0, 1.5]
    assert listed_times(row(times=""), "times") is listed_times(row(), "times") is None
    for wrong in ("soon", [0, "x"], [0, True], ["nan"], "[0, NaN]", 3):
        with pytest.raises(
            ValueError, match=r"line 2: times is .*; it must be a list of seconds, o"
        ):
            listed_times(row(times=wrong), "times")
    assert frames_per_second(row(fps="2.5"), "fps") == 2.5
    assert frames_per_second(row(fps=3), "fps") == 3
    assert frames_per_second(row(fps=""), "fps") is frames_per_second(row(), None) is None
    for wrong in ("fast", 0, "-1", "inf"):
        with pytest.raises(
            ValueError, match=rf"line 2: fps is '{wrong}'; it must be images per se"
        ):
            frames_per_second(row(fps=wrong), "fps")


def test_the_images_of_a_row(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a", "1.jpg", "2.jpg", "3.jpg")
    files = tuple(folder / f"{n}.jpg" for n in (1, 2, 3))
    assert images_of_row(tmp_path, folder, None, None, 5.0) == Images(folder, files, 5.0)
    timed = images_of_row(tmp_path, folder, None, [3.0, 4.0, 8.0], 5.0)
    assert timed == Images(folder, files, 0.4, (0.0, 1.0, 5.0))
    first = tmp_path / "a/3.jpg"
    names = ["a/3.jpg", "a/1.jpg"]
    assert images_of_row(tmp_path, first, names, None, 2.0) == Images(
        first, (first, tmp_path / "a/1.jpg"), 2.0
    )
    assert images_of_row(tmp_path, first, ["a/3.jpg"], None, None) == Images(first, (first,), 1.0)
    for file in (first, tmp_path / "x.mp4", tmp_path / "gone"):
        assert images_of_row(tmp_path, file, None, None, None) is None
    with pytest.raises(
        ValueError, match=r"/a is 3 images, and nothing says when they are shown\. G"
    ):
        images_of_row(tmp_path, folder, None, None, None)
    with pytest.raises(ValueError, match=r"/a: 2 times for 3 images; each image needs one\.$"):
        images_of_row(tmp_path, folder, None, [0.0, 1.0], None)
    with pytest.raises(
        ValueError, match=r"/empty is a folder and holds no image; allowed are files"
    ):
        images_of_row(tmp_path, touch(tmp_path / "empty"), None, None, 1.0)
    with pytest.raises(ValueError, match=r"'\.\./1\.jpg' is no path below"):
        images_of_row(tmp_path, first, ["../1.jpg", "a/1.jpg"], None, 1.0)


def test_ids_find_images_where_the_user_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg", "both.mp4", "both.jpg", "two.jpg", "two.png")
    touch(tmp_path / "frames", "1.jpg")
    plain, stills, frames = (VideoLookup(tmp_path, one) for one in (None, "clips", "frames"))
    assert [one.find("x").name for one in (plain, stills, frames)] == ["x.mp4", "x.jpg", "x.mp4"]
    assert {one.find("both").name for one in (plain, stills, frames)} == {"both.mp4"}
    found = [one.find("frames").name for one in (plain, stills, frames)]
    assert found == ["frames.mp4", "frames.mp4", "frames"]
    with pytest.raises(ValueError, match=r"^id 'two': several images could be meant: .*two\.jpg, "):
        stills.find("two")
    assert plain.find("two").name == "two.mp4"


def test_images_among_the_videos_to_predict(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a", "1.jpg", "2.jpg")
    files = (folder / "1.jpg", folder / "2.jpg")
    assert find_videos([files[0]]) == ([(str(files[0]), files[0])], [])
    assert [path for _, path in find_videos([folder], "clips")[0]] == [*files]
    images = Images(folder, files, 4.0)
    assert find_videos([folder], "frames", 4.0)[0] == [(str(folder), images)]
    with pytest.raises(
        ValueError, match=r"^--videos .*/a holds 2 images and no video\. Say what t"
    ):
        find_videos([folder])
    with pytest.raises(ValueError, match=r"/a is 2 images, and nothing says when they are shown"):
        find_videos([folder], "frames")
    (tmp_path / "list.txt").write_text("a\na/1.jpg\n", encoding="utf-8")
    found, _ = find_videos([tmp_path / "list.txt"], None, 4.0)
    assert [source for _, source in found] == [images, files[0]]
    (tmp_path / "list.csv").write_text(
        'id,path,times,fps\none,a,"[0, 2]",\n,"[""a/2.jpg"", ""a/1.jpg""]",,8\n,a/1.jpg,,\n'
    )
    found, _ = find_videos([tmp_path / "list.csv"])
    listed = Images(files[1], files[::-1], 8.0)
    assert found == [
        ("one", Images(folder, files, 0.5)),
        (listed.name, listed),
        (str(files[0]), files[0]),
    ]
    (tmp_path / "wrong.csv").write_text("path\na\n")
    with pytest.raises(
        ValueError, match=r"^.*wrong\.csv, line 2: .*/a is 2 images, and nothing say"
    ):
        find_videos([tmp_path / "wrong.csv"])
    again = find_videos([files[0], tmp_path / "list.txt", folder], "frames", 4.0)[1]
    assert again == [f"--videos names 2 files again (first: {files[0]}); each counts once."]
