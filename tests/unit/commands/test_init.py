"""`init` reads the classes of a folder of videos, and what it writes can be used as it is."""

import re
from pathlib import Path

import pytest
import yaml

from rbft.card import Card
from rbft.commands.init import class_names, init
from rbft.data.class_folders import has_split_folders
from rbft.data.videofolder import VideoFolder
from tests.examples import DATA_SETTINGS


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def clips_of(experiment: Path) -> dict[str, tuple[str, str]]:
    """Class and split of each clip, as the experiment's benchmark reads them."""
    content = yaml.safe_load(experiment.read_text())
    assert content["data"]["class_path"] == "VideoFolder"
    options = {name: Path(value) for name, value in content["data"]["init_args"].items()}
    data = VideoFolder(**options, test_fraction=0.5, **DATA_SETTINGS)
    return {clip.id: (data.card.classes[clip.label or 0], clip.split) for clip in data.read()}


@pytest.mark.parametrize(
    ("files", "classes", "said"),
    [
        (
            ["yes/a.mp4", "yes/b.mp4", "no/c.mp4", "no/deep/d.mp4", "1/e.mp4", "1/f.mp4"],
            ("1", "no", "yes"),
            "it reads my videos: 6 videos.\n  1: 2\n  no: 2\n  yes: 2\n",
        ),
        (
            [
                *("train/fall/a.mp4", "Test/fall/b.mp4", "train/on: off/c.mp4"),
                *("eval/on: off/d.mp4", "train/fall/metadata.csv"),
            ],
            ("fall", "on: off"),
            "it reads my videos: 4 videos (2 test, 2 train).\n  fall: 2\n  on: off: 2\n",
        ),
        (
            ["train/a.mp4", "car/b.mp4", "train/c.mp4", "car/d.mp4", "notes.md", ".hidden/e.mp4"],
            ("car", "train"),  # one of them is no split
            "it reads my videos: 4 videos.\n  car: 2\n  train: 2\n",
        ),
    ],
)
def test_the_folders_are_the_classes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    classes: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "my videos", *files)
    init("front door", videos=Path("my videos"), output=Path("door.yaml"))
    assert Card.load(tmp_path / "door.yaml").words == {name: name for name in classes}
    assert capsys.readouterr().out == (
        "Wrote door.yaml: put your own words into it.\n"
        f"Wrote door_experiment.yaml: {said}"
        "Then: python -m rbft scan door_experiment.yaml\n"
    )
    found = clips_of(tmp_path / "door_experiment.yaml")
    assert {kind for kind, _ in found.values()} == set(classes)
    for name, (kind, split) in found.items():
        parts = name.split("/")
        assert kind in parts
        if parts[0] != kind:
            assert split == {"train": "train", "Test": "test", "eval": "test"}[parts[0]]


def test_classes_that_are_named_and_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "2024", "a.mp4", "metadata.csv")
    with pytest.raises(ValueError, match=r"metadata\.csv says which class a video has, not the fo"):
        init("front door", videos=Path("2024"))
    folder_of(tmp_path / "split", "train/a.mp4", "train/metadata.jsonl")
    with pytest.raises(ValueError, match=r"split/train/metadata\.jsonl says which class a video"):
        init("front door", videos=Path("split"))
    init("front door", classes="pass, fail", output=Path("plain.yaml"))
    assert "say there where your videos are (data.init_args.root)." in capsys.readouterr().out
    init("front door", classes="[yes, no, 1]", videos=Path("2024"))
    assert "Wrote card_experiment.yaml: it reads 2024.\n" in capsys.readouterr().out
    assert Card.load(tmp_path / "card.yaml").classes == ("yes", "no", "1")
    content = yaml.safe_load((tmp_path / "card_experiment.yaml").read_text())
    assert content["data"]["init_args"] == {"root": "2024", "card": "card.yaml"}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("pass,fail", ["pass", "fail"]),
        ("[pass, fail]", ["pass", "fail"]),
        ("[yes, no, 1]", ["yes", "no", "1"]),
        (
            "on,off,null,~,1.50,0x1f,2024-01-01",
            ["on", "off", "null", "~", "1.50", "0x1f", "2024-01-01"],
        ),
        ("[\"a, b\", 'c: d']", ["a, b", "c: d"]),
        (" front door , 动物 ", ["front door", "动物"]),
        ("pass", ["pass"]),
    ],
)
def test_names_stay_the_text_that_they_are(given, names):
    assert class_names(given) == names


@pytest.mark.parametrize(
    "given", ["[pass, fail", "a: b, c", "{a: b}", "pass,,fail", "[[a], b]", "a]"]
)
def test_what_is_no_list_of_names(given):
    said = f"--classes {given} is no list of names. Write pass,fail; put a name with a comma, a "
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        class_names(given)


def test_which_folders_are_splits():
    assert has_split_folders({"train", "Test"})
    assert not has_split_folders({"train", "car"})
    # Where they are known to be classes, even some of them.
    assert not has_split_folders({"train", "test"}, ("train", "test", "private"))
    assert has_split_folders({"train", "test"}, ("train", "car"))


def test_folders_that_say_no_classes(tmp_path):
    with pytest.raises(ValueError, match=r"^--videos .*gone is no folder\. Give the one that hol"):
        init("x", videos=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"empty holds no video \(it is empty\)\. Expected is a fo"
    ):
        init("x", videos=tmp_path / "empty")
    folder_of(tmp_path / "pictures", "a/1.jpg")
    with pytest.raises(
        ValueError, match=r"holds no video \(1 files that are no videos: 1 \.jpg \("
    ):
        init("x", videos=tmp_path / "pictures")
    folder_of(tmp_path / "flat", "a/1.mp4", "2.mp4")
    with pytest.raises(ValueError, match=r"flat/2\.mp4 lies in no class folder\. Expected is root"):
        init("x", videos=tmp_path / "flat")
    folder_of(tmp_path / "splits", "train/1.mp4", "test/2.mp4")
    with pytest.raises(ValueError, match=r"test/2\.mp4 lies in no class folder"):
        init("x", videos=tmp_path / "splits")
    folder_of(tmp_path / "one", "a/1.mp4")
    with pytest.raises(ValueError, match=r"words has 1 classes \(a\); classification needs at le"):
        init("x", videos=tmp_path / "one")
    with pytest.raises(ValueError, match="add --videos FOLDER, with a folder of clips for each cl"):
        init("x")
