import contextlib
import os

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.annotations.lookup import (
    VIDEO_SUFFIXES,
    VideoLookup,
    inside,
    leaves_root,
    list_videos,
    without_suffix,
)
from rbft.video.sampling import probe


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


@pytest.mark.parametrize("clip_id", ["a" * 256, "a\0b", "\ud800", "/".join(["abc"] * 1400)])
def test_ids_that_no_file_can_have(tmp_path, clip_id):
    with pytest.raises(ValueError, match=r"cannot be a file name: it is too long"):
        VideoLookup(tmp_path).find(clip_id)


@pytest.mark.parametrize("clip_id", ["a" * 255, "/".join(["a" * 250] * 16)])
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
    (root / "gone.mp4").symlink_to(root / "none.mp4")
    for name in ("in", "out", "folder/outside", "loop", "gone"):
        path = VideoLookup(root).find(name)
        assert path == root / f"{name}.mp4"
        if name != "out":
            assert leaves_root(root, path) == ""
    assert leaves_root(root, root / "out.mp4") == (
        f"is a symbolic link out of {root} (to {outside}); copy the video there, or link the "
        "folder that holds it"
    )
    # What a linked folder links to in turn may lie in it, no further.
    (tmp_path / "again.mp4").symlink_to(outside)
    far = touch(tmp_path.with_name(f"{tmp_path.name}_far") / "far.mp4")
    (tmp_path / "far.mp4").symlink_to(far)
    assert leaves_root(root, root / "folder/again.mp4") == ""
    assert leaves_root(root, root / "folder/far.mp4").startswith("is a symbolic link out of ")


def test_linked_folders_are_folders(tmp_path):
    elsewhere = touch(tmp_path / "elsewhere/deep/a.mp4").parent.parent
    root = tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(elsewhere)
    (root / "dog").symlink_to(elsewhere)
    # Links that lead in circles end, and are told.
    (elsewhere / "again").symlink_to(root / "cat")
    (elsewhere / "deep/up").symlink_to(root)
    content = list_videos(root)
    assert content.videos == [root / "cat/deep/a.mp4", root / "dog/deep/a.mp4"]
    circles = [path.relative_to(root).as_posix() for path in content.others]
    assert circles == ["cat/again", "cat/deep/up", "dog/again", "dog/deep/up"]


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
    names += ["a/n.TXT", "a/README"]
    for name in names:
        touch(tmp_path / name)
    content = list_videos(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in content.videos] == [
        "a/-y z.webm",
        "a/x.mp4",
        "b.MOV",
    ]
    assert content.others == [tmp_path / "a/README", tmp_path / "a/n.TXT", tmp_path / "notes.txt"]
    assert content.unused_videos() == (
        "5 files that are no videos: 2 .txt, 1 without ending, 2 hidden "
        f"(first: {tmp_path}/a/README)"
    )
    assert list_videos(tmp_path / "a/b").unused_videos() == "1 files that are no videos: 1 hidden"
    (tmp_path / "a/b/.hidden.mp4").unlink()
    assert list_videos(tmp_path / "a/b").unused_videos() == ""


# Endings that FFmpeg's demuxers claim and that are not, or hardly ever, of moving pictures.
NO_VIDEOS = """
    302 722 aa aa3 aac aax ac3 ac4 acm adf adp ads adx aea afc aix al ans ape apl apc aptx aptxhd
    aqt art asc ast avif avr bcstm bfstm binka bit bitpacked bonk brstm c2 cdata cdg cgi cif dat
    daud dfpwm diz dss dtk dts dtshd eac3 ec3 fap flac flm fsb fwse g722 g723_1 g728 g729 genh gsm
    hca heic heif iamf ice idf idx imx ircam ism isma j2k jxl laf lc3 m2a m4a m4b mac mca mcc mka
    mks mlp mp2 mp3 mpa mpc mpl2 mpo msbc msf mtaf musx mxg nfo nist nsp ogg oma omg osq paf pjs
    pvf qcif qoa rco rgb rka rsd rso rt sami sb sbc sbg scc sdns sdr2 sds sdx ser sf sga shn sln
    smi son sph ss2 stl str sub sup svag svs sw tak tco thd tta tty txt ub ul uw v v210 vag vb vpk
    vqe vqf vql vt vtt wa way webvtt wsd xl xmd xvag yuv yuv10
"""


def test_every_ending_that_the_reader_knows_is_known():
    """What FFmpeg's demuxers claim is a video of ours, or on the list of what is none."""
    claimed = set()
    for name in av.formats_available:
        with contextlib.suppress(ValueError):  # one that only writes
            claimed |= {f".{ending}" for ending in av.ContainerFormat(name, "r").extensions}
    none = {f".{ending}" for ending in NO_VIDEOS.split()}
    assert claimed - set(VIDEO_SUFFIXES) - none == set()
    assert not set(VIDEO_SUFFIXES) & none
    assert len(set(VIDEO_SUFFIXES)) == len(VIDEO_SUFFIXES)
    # The endings of those demuxers that go by content alone are not in FFmpeg's own lists.
    unlisted = ".ts .m2ts .mts .mpg .mpeg .vob .wmv .asf .ogv .mxf .gxf .rm .rmvb .wtv .ivf .swf"
    assert set(unlisted.split()) <= set(VIDEO_SUFFIXES)


WRITTEN = {
    "h264": ".mp4 .mov .mkv .flv .3gp .ts .m2ts .mts .f4v",
    "mpeg4": ".avi .divx .m4v .nut .3g2",
    "mpeg2video": ".mpg .mpeg .vob .m2v",
    "wmv2": ".wmv .asf",
    "libvpx": ".ogv .ogm",
    "gif": ".gif",
    "libvpx-vp9": ".webm .ivf",
}
MUXERS = {".divx": "avi", ".m2ts": "mpegts", ".mts": "mpegts", ".m4v": "mp4", ".f4v": "mp4"}
MUXERS |= {".mpg": "mpeg", ".mpeg": "mpeg", ".ogm": "ogg", ".ogv": "ogg", ".mkv": "matroska"}


@pytest.mark.parametrize("codec", WRITTEN)
def test_real_files_of_every_usual_container(tmp_path, codec):
    names = WRITTEN[codec].split()
    for ending in names:
        path = tmp_path / f"a{ending}"
        with av.open(str(path), "w", format=MUXERS.get(ending)) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for number in range(12):
                picture = np.full((64, 64, 3), 20 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture).reformat(format=stream.pix_fmt)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    found = list_videos(tmp_path).videos
    assert sorted(path.suffix for path in found) == sorted(names)
    assert {path.suffix: probe(path).width for path in found} == dict.fromkeys(names, 64)


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
