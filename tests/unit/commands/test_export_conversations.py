import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from rbft.clip import Clip
from rbft.commands.export_conversations import export_conversations
from rbft.data.videofolder import VideoFolder
from rbft.stages import STAGES
from tests.examples import CARD, DATA_SETTINGS, Yard, clips, rationale
from tests.several import Pets
from tests.videos import make_video

FORMATS: dict[Literal["llava", "llamafactory", "swift"], str] = {
    "llava": "clips.json",
    "llamafactory": "clips.json",
    "swift": "clips.jsonl",
}


class Filmed(Yard):
    """Clips with real paths."""

    def read(self) -> list[Clip]:
        folder = self.cache_folder.parent
        return [replace(clip, path=folder / "videos" / clip.path) for clip in super().read()]


@pytest.fixture
def yard(tmp_path: Path) -> Filmed:
    return Filmed(tmp_path / "card.yaml", {"train": 4, "test": 2})


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("answers", ["label", "rationale"])
def test_rbft_reads_what_it_exports(
    yard: Filmed,
    tmp_path: Path,
    form: Literal["llava", "llamafactory", "swift"],
    answers: Literal["label", "rationale"],
) -> None:
    output = tmp_path / FORMATS[form]
    texts = None
    if answers == "rationale":
        texts = {clip.id: rationale(clip) for clip in yard.clips("train")[:3]}
    count = export_conversations(yard, STAGES[answers], texts, "train", form, output)
    expected = yard.clips("train")[:count]
    assert count == (4 if texts is None else 3)
    back = VideoFolder(
        tmp_path / "videos", output, card=tmp_path / "card.yaml", **DATA_SETTINGS
    ).read()
    wanted = [
        replace(c, text="", reference=None if texts is None else texts[c.id]) for c in expected
    ]
    assert back == wanted


def test_the_words_of_a_record(yard: Filmed, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export_conversations(yard, STAGES["label"], None, "test", "llava", folder / "a.json")
    assert json.loads((folder / "a.json").read_text())[1] == {
        "id": "test_1",
        "split": "test",
        "video": f"{tmp_path}/videos/test_1.mp4",
        "conversations": [
            {"from": "human", "value": "<video>\nIs it normal or abnormal? Clip 1."},
            {"from": "gpt", "value": "abnormal"},
        ],
    }
    texts = {clip.id: rationale(clip) for clip in clips(4)}
    for name in ("b", "c"):
        output = folder / f"{name}.json"
        export_conversations(yard, STAGES["rationale"], texts, "train", "llamafactory", output)
    assert json.loads((folder / "b.json").read_text())[1] == {
        "id": "train_1",
        "split": "train",
        "answers": "rationale",
        "ground_truth": "alarm",
        "messages": [
            {"role": "user", "content": "<video>You are a Guard. Describe it."},
            {"role": "assistant", "content": "A person walks on and on past the yard."},
        ],
        "videos": [f"{tmp_path}/videos/train_1.mp4"],
    }
    info: dict[str, Any] = json.loads((folder / "dataset_info.json").read_text())
    assert list(info) == ["b", "c"]
    assert info["b"]["file_name"] == "b.json"
    assert info["b"]["columns"] == {"messages": "messages", "videos": "videos"}
    (folder / "c.json").unlink()
    with pytest.raises(ValueError, match=r"dataset_info\.json has a data set 'c' already\."):
        export_conversations(
            yard, STAGES["rationale"], texts, "train", "llamafactory", folder / "c.json"
        )
    assert not (folder / "c.json").exists()


def test_what_cannot_be_exported(yard: Filmed, tmp_path: Path) -> None:
    def export(name: str = "a.jsonl", split: str = "train") -> None:
        export_conversations(yard, STAGES["label"], None, split, "swift", tmp_path / name)

    with pytest.raises(ValueError, match=r"a\.json must end in \.jsonl, which swift reads\."):
        export("a.json")
    with pytest.raises(ValueError, match=r"^Filmed has no val clips to export\. Choose another"):
        export(split="val")
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(ValueError, match=r"b\.jsonl exists\. Name a file that does not"):
        export("b.jsonl")
    yard.all_clips[0] = replace(yard.all_clips[0], end=-2.0)
    with pytest.raises(ValueError, match=r"^Clip train_0 is a part of its file \(None to -2.0 s\)"):
        export()
    yard.all_clips[0] = replace(yard.all_clips[0], end=None, text="a <video> of mine")
    with pytest.raises(ValueError, match=r"^Clip train_0: its text .* holds <video>, which stands"):
        export()
    assert not (tmp_path / "a.jsonl").exists()


def test_a_whole_way_with_real_files(tmp_path: Path) -> None:
    """Exported, read again and decoded."""
    CARD.save(tmp_path / "card.yaml")
    for name in ("quiet/a b.mp4", "alarm/-c.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        make_video(tmp_path / "videos" / name, frames=8)
    settings = {**DATA_SETTINGS, "card": tmp_path / "card.yaml", "cache_folder": tmp_path / "cache"}
    first = VideoFolder(tmp_path / "videos", test_fraction=0.0, **settings)
    export_conversations(first, STAGES["label"], None, "train", "swift", tmp_path / "a.jsonl")
    second = VideoFolder(tmp_path / "videos", tmp_path / "a.jsonl", **settings)
    assert second.clips("train") == first.clips("train")
    assert len(second.reader.decode(second.clips("train")[0]).frames) >= 2


def test_clips_with_several_classes_are_no_conversations(tmp_path: Path) -> None:
    data = Pets(tmp_path, {"train": 2})
    with pytest.raises(ValueError, match="key several") as error:
        export_conversations(data, STAGES["label"], None, "train", "llava", tmp_path / "a.json")
    assert str(error.value) == (
        "A file of conversations needs clips of one class, but card 'pets' has the key several: "
        "its clips may have several classes, or none."
    )
