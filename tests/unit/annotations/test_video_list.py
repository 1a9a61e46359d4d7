from pathlib import Path

import pytest

from rbft.annotations.video_list import find_videos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MOV", "deep/c.webm", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_files_folders_and_lists_in_order(folder: Path) -> None:
    (folder / "list.txt").write_text("deep/c.webm\n\n  gone, but listed.mp4\n/x/-y.mp4\n")
    (folder / "list.csv").write_text("id,video_path\nfirst,b.mp4\n,a.MOV\n")
    given = [folder / "b.mp4", folder, folder / "list.txt", folder / "list.csv"]
    found, notes = find_videos(given)
    paths = [path for _, path in found]
    assert paths == [
        folder / "b.mp4",
        *(folder / name for name in ("a.MOV", "b.mp4", "deep/c.webm")),
        *(folder / "deep/c.webm", folder / "gone, but listed.mp4", Path("/x/-y.mp4")),
        *(folder / "b.mp4", folder / "a.MOV"),
    ]
    assert notes == [
        f"--videos {folder}: left alone 3 files that are no videos: 1 .csv, 1 .txt, 1 .md (first: "
        f"{folder}/list.csv).",
        f"--videos names 4 files again (first: {folder}/b.mp4); each counts once.",
    ]
    found, notes = find_videos([folder / "list.csv"])
    assert notes == []
    names = [name for name, _ in found]
    assert names == ["first", str(folder / "a.MOV")]


def test_what_cannot_be_found(folder: Path) -> None:
    (folder / "list.csv").write_text("id,file\n1,b.mp4\n")
    (folder / "list.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"list\.csv, line 2: no column path or file_name or"):
        find_videos([folder / "list.csv"])
    with pytest.raises(ValueError, match=r"^--videos holds no video files; looked for those that"):
        find_videos([folder / "list.txt"])
    with pytest.raises(ValueError, match=r"^--videos .*/gone does not exist\. Give video files"):
        find_videos([folder / "gone"])
    (folder / "empty").mkdir()
    (folder / "empty/a.jpg").touch()
    with pytest.raises(ValueError, match=r"empty holds 1 images and no video\. Say what they are"):
        find_videos([folder / "empty"])
    (folder / "empty/a.jpg").rename(folder / "empty/a.txt")
    with pytest.raises(ValueError, match=r"empty: left alone 1 files that are no videos: 1 \.txt"):
        find_videos([folder / "empty"])


def test_every_container_in_a_folder(tmp_path: Path) -> None:
    names = [f"a{ending}" for ending in (".3gp", ".gif", ".m2ts", ".mpg", ".ogv", ".ts", ".wmv")]
    for name in names:
        (tmp_path / name).touch()
    assert find_videos([tmp_path]) == ([(str(tmp_path / n), tmp_path / n) for n in names], [])


def test_patterns_where_the_shell_left_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "deep/[1].mp4").touch()

    def names(pattern: str) -> list[str]:
        found, _ = find_videos([folder / pattern])
        return [str(Path(str(path)).relative_to(folder)) for _, path in found]

    assert names("*.mp4") == ["b.mp4"]
    assert names("?.M*") == ["a.MOV"]
    assert names("*") == ["a.MOV", "b.mp4", "deep/[1].mp4", "deep/c.webm"]
    assert names("**/*.mp4") == ["b.mp4", "deep/[1].mp4"]
    assert names("**") == ["a.MOV", "b.mp4", "deep/[1].mp4", "deep/c.webm"]
    assert names("deep/[1].mp4") == ["deep/[1].mp4"]  # a file of this name
    assert names("*.md") == ["notes.md"]  # asked for by its ending
    assert find_videos([folder / "*"])[1] == [
        f"--videos {folder}/*: left alone 1 files that are no videos: 1 .md (first: "
        f"{folder}/notes.md)."
    ]
    (folder / "read.me").touch()
    assert find_videos([folder / "*"])[1] == [
        f"--videos {folder}/*: left alone 2 files that are no videos: 1 .md, 1 .me (first: "
        f"{folder}/notes.md)."
    ]
    with pytest.raises(ValueError, match=r"^--videos .*/\*\.avi: no file fits this pattern\.$"):
        names("*.avi")
    monkeypatch.setenv("HOME", str(folder))
    assert find_videos([Path("~/b.mp4")])[0] == [(str(folder / "b.mp4"), folder / "b.mp4")]


def test_addresses_are_no_files(folder: Path) -> None:
    said = r" is a URL, and videos are read from the disk\. Download it first and give the file\.$"
    with pytest.raises(ValueError, match=rf"^--videos https://x\.org/a/b\.mp4\?c=1{said}"):
        find_videos([Path("https://x.org/a/b.mp4?c=1")])
    (folder / "list.txt").write_text("b.mp4\ns3://bucket/a.mp4\n")
    with pytest.raises(ValueError, match=rf"list\.txt, line 2: s3://bucket/a\.mp4{said}"):
        find_videos([folder / "list.txt"])
    (folder / "list.csv").write_text("path\nhttp://x/a.mp4\n")
    with pytest.raises(ValueError, match=rf"list\.csv, line 2: http://x/a\.mp4{said}"):
        find_videos([folder / "list.csv"])
    with pytest.raises(ValueError, match=r"--videos C:/clips/a\.mp4 does not exist"):
        find_videos([Path("C:/clips/a.mp4")])


def test_comments_and_blank_lines_in_lists(folder: Path) -> None:
    (folder / "list.txt").write_text("# mine\n\nb.mp4\n  # a.MOV\n./#c.mp4\n")
    found, _ = find_videos([folder / "list.txt"])
    assert [path.name for _, path in found] == ["b.mp4", "#c.mp4"]


def test_files_that_are_named_twice_are_noted(folder: Path) -> None:
    given = [folder / "b.mp4", folder / "*.mp4", folder / "a.MOV", folder / "a.MOV"]
    _, notes = find_videos(given)
    assert notes == [f"--videos names 2 files again (first: {folder}/b.mp4); each counts once."]
    _, notes = find_videos(given[:2])
    assert notes == [f"--videos names 1 file again (first: {folder}/b.mp4); each counts once."]
