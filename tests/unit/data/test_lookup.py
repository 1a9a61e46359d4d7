import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.data.lookup import VideoLookup, inside, list_videos, without_suffix


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("clip_id", "name"),
    [
        ("a", "a.mp4"),
        ("a", "a.WEBM"),
        ("a", "a/video.mkv"),
        ("a", "a/Some title.mov"),
        ("-Ab_c", "-Ab_c.avi"),
        ("-Ab_c", "-Ab_c/video.flv"),
        ("_a.b", "_a.b.mpeg"),
        ("ünï code", "ünï code.m4v"),
        ("sub/a", "sub/a.mp4"),
        ("video", "video.mp4"),
    ],
)
def test_accepted_layouts(tmp_path, clip_id, name):
    path = touch(tmp_path / name)
    touch(tmp_path / "other.mp4")
    touch(tmp_path / "a.mp4.part")
    touch(tmp_path / "a.txt")
    assert VideoLookup(tmp_path).find(clip_id) == path


def test_video_in_its_folder_may_have_company(tmp_path):
    path = touch(tmp_path / "a/video.mp4")
    touch(tmp_path / "a/preview.mp4")
    touch(tmp_path / "a/video.json")
    assert VideoLookup(tmp_path).find("a") == path


def test_nothing_found_is_a_missing_mp4(tmp_path):
    assert VideoLookup(tmp_path).find("-a") == tmp_path / "-a.mp4"
    assert VideoLookup(tmp_path / "none").find("a.b") == tmp_path / "none/a.b.mp4"
    (tmp_path / "a").mkdir()
    assert VideoLookup(tmp_path).find("a") == tmp_path / "a.mp4"
    os.mkfifo(tmp_path / "pipe.mkv")
    assert VideoLookup(tmp_path).find("pipe") == tmp_path / "pipe.mp4"


@pytest.mark.parametrize(
    "names", [("a.mp4", "a.webm"), ("a.mp4", "a/video.mp4"), ("a/x.mp4", "a/y.mp4")]
)
def test_ambiguity(tmp_path, names):
    paths = map(str, sorted(touch(tmp_path / name) for name in names))
    with pytest.raises(ValueError, match="id 'a': several videos could be meant: ") as error:
        VideoLookup(tmp_path).find("a")
    assert ", ".join(paths) in str(error.value)


@pytest.mark.parametrize("clip_id", ["../a", "a/../../b", "/etc/a", "..", ".", "", "/"])
def test_ids_that_leave_the_root(tmp_path, clip_id):
    with pytest.raises(ValueError, match=r"is no path below .*; ids and paths must lie there"):
        VideoLookup(tmp_path).find(clip_id)


@pytest.mark.parametrize("clip_id", ["a" * 241, "a\0b", "\ud800", "/".join(["abc"] * 400)])
def test_ids_that_no_file_can_have(tmp_path, clip_id):
    with pytest.raises(ValueError, match=r"cannot be a file name: it is too long"):
        VideoLookup(tmp_path).find(clip_id)


@pytest.mark.parametrize("clip_id", ["a" * 240, "/".join(["a" * 200] * 5)])
def test_the_longest_ids(tmp_path, clip_id):
    assert inside(tmp_path, clip_id) == tmp_path / clip_id
    with pytest.raises(ValueError, match=r"cannot be a file name: it is too long"):
        inside(tmp_path, f"{clip_id}a")


def test_absolute_paths_inside_the_root_are_accepted(tmp_path, monkeypatch):
    assert inside(tmp_path, str(tmp_path / "a/b.mp4")) == tmp_path / "a/b.mp4"
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert inside(tmp_path / "link", str(tmp_path / "real/b.mp4")) == tmp_path / "link/b.mp4"
    with pytest.raises(ValueError, match=r"is no path below .* must not hold '\.\.'\."):
        inside(tmp_path / "real", f"{tmp_path}/real/../b.mp4")


def test_links(tmp_path):
    outside = touch(tmp_path / "outside.mp4")
    root = tmp_path / "root"
    touch(root / "real.mp4")
    (root / "in.mp4").symlink_to(root / "real.mp4")
    (root / "out.mp4").symlink_to(outside)
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    (root / "folder").symlink_to(tmp_path)
    assert VideoLookup(root).find("in") == root / "in.mp4"
    with pytest.raises(ValueError, match=r"out\.mp4 is a symbolic link out of .*Copy the video"):
        VideoLookup(root).find("out")
    with pytest.raises(ValueError, match=r"outside\.mp4 is a symbolic link out of"):
        VideoLookup(root).find("folder/outside")
    assert VideoLookup(root).find("loop") == root / "loop.mp4"
    with pytest.raises(ValueError, match=r"out\.mp4 is a symbolic link out of"):
        list_videos(root)


def test_the_root_itself_may_be_a_link(tmp_path):
    path = touch(tmp_path / "real/a.mp4")
    (tmp_path / "root").symlink_to(path.parent)
    assert VideoLookup(tmp_path / "root").find("a") == tmp_path / "root/a.mp4"


def test_root_that_is_a_file(tmp_path):
    path = touch(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"Video folder .*a\.mp4 cannot be listed: Not a dir"):
        VideoLookup(path).find("a")
    with pytest.raises(ValueError, match=r"Folder .*none cannot be listed: No such file"):
        list_videos(tmp_path / "none")


def test_each_folder_is_listed_once(tmp_path, monkeypatch):
    for index in range(50):
        touch(tmp_path / f"{index}.mp4")
    calls = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: calls.append(path) or scandir(path))
    lookup = VideoLookup(tmp_path)
    assert all(lookup.find(str(index)).exists() for index in range(50))
    assert len(calls) == 1


def test_list_videos(tmp_path):
    names = ["a/x.mp4", "a/b/.hidden.mp4", "b.MOV", "notes.txt", ".git/c.mp4", "a/-y z.webm"]
    for name in names:
        touch(tmp_path / name)
    videos, others = list_videos(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in videos] == [
        "a/-y z.webm",
        "a/x.mp4",
        "b.MOV",
    ]
    assert others == [tmp_path / "notes.txt"]


def test_without_suffix():
    assert without_suffix("a/b.c.mp4") == "a/b.c"
    assert without_suffix("a/b.c") == "a/b.c"


@settings(max_examples=300, deadline=None)
@given(clip_id=st.one_of(st.text(max_size=20), st.text("./\\a-\0", max_size=12)))
def test_no_id_leads_out_of_the_root(tmp_path_factory, clip_id):
    root = tmp_path_factory.getbasetemp() / "root"
    try:
        path = VideoLookup(root).find(clip_id)
    except ValueError:
        return
    assert path.resolve().is_relative_to(root.resolve())
    assert not path.exists()
