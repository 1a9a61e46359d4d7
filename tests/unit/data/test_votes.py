"""Annotators' votes from the annotations to what training is given."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbft.card import Card
from rbft.clip import Clip
from rbft.data.content import describe_clips
from rbft.data.multihateclip import MultiHateClip
from rbft.data.sampler import SampleSlot
from rbft.data.smarthome import SmartHome
from rbft.data.videofolder import VideoFolder
from rbft.runs.record import clip_differences
from tests.examples import DATA_SETTINGS, Yard, fed, module

PUBLISHED = Path(__file__).parents[3] / "data/multihateclip/English_data"
CLASSES = ("cat", "dog")
HEADER = "file_name,split,n_cat,n_dog"
ROWS = ("a.mp4,train,3,0", "b.mp4,train,1,2", "c.mp4,train,0,0.5", "d.mp4,test,2,1")


def video_folder(folder: Path, text: str, **settings: Any) -> VideoFolder:
    words = {"cat": "feline", "dog": "canine"}
    Card("pets", "Vet", words, {"label": "?", "rationale": "?"}).save(folder / "card.yaml")
    (folder / "clips").mkdir(exist_ok=True)
    (folder / "table.csv").write_text(text, encoding="utf-8")
    given = {"columns": {"votes": "n_{label}"}, "table": folder / "table.csv", **settings}
    root, card = folder / "clips", folder / "card.yaml"
    return VideoFolder(root=root, card=card, **{**DATA_SETTINGS, **given})


def brief(clips: list[Clip]) -> list[tuple[Any, ...]]:
    return [(clip.id, CLASSES[clip.label or 0], clip.votes) for clip in clips]


def test_most_votes_make_the_label(tmp_path: Path) -> None:
    data = video_folder(tmp_path, "\n".join([HEADER, *ROWS]))
    assert brief(data.read()) == [
        ("a", "cat", (3, 0)),
        ("b", "dog", (1, 2)),
        ("c", "dog", (0, 0.5)),
        ("d", "cat", (2, 1)),
    ]
    assert len(data.notes) == 1


def test_a_label_beside_the_votes_wins(tmp_path: Path) -> None:
    lines = [f"{line},{label}" for line, label in zip(ROWS, ("", "cat", "dog", "feline"))]  # noqa: B905
    data = video_folder(tmp_path, "\n".join([f"{HEADER},label", *lines]))
    assert [clip.label for clip in data.read()] == [0, 0, 1, 0]
    assert data.notes[0] == (
        "VideoFolder: 1 clips have a label that is not what most of their votes say; they are "
        f"scored by it (first: {tmp_path}/table.csv, line 3)."
    )


def test_tied_votes(tmp_path: Path) -> None:
    text = "\n".join([HEADER, *ROWS, "e.mp4,train,2,2"])
    with pytest.raises(ValueError, match="the votes are tied") as error:
        video_folder(tmp_path, text).read()
    assert str(error.value) == (
        f"{tmp_path}/table.csv, line 6: the votes are tied between cat and dog, so the clip has no "
        "label. Decide in a column of labels (data.columns.label), or set data.soft_labels to "
        "true, which learns all of them by their share."
    )
    data = video_folder(tmp_path, text, soft_labels=True)
    assert brief(data.read())[-1] == ("e", "cat", (2, 2))
    assert data.notes[0] == (
        "VideoFolder: 1 clips have tied votes; they are scored by the first of the tied classes "
        f"on the card (first: {tmp_path}/table.csv, line 6)."
    )


def test_rows_are_votes(tmp_path: Path) -> None:
    rows = ["video,split,label", *(f"a.mp4,train,{one}" for one in ("dog", "cat", "dog"))]
    rows += ["b.mp4,train,cat", "c.mp4,test,dog", "c.mp4,test,cat"]
    settings = {"columns": None, "repeats": "votes"}
    with pytest.raises(ValueError, match="no majority among their votes: 'c': 1 cat, 1 dog"):
        video_folder(tmp_path, "\n".join(rows), **settings).read()
    data = video_folder(tmp_path, "\n".join(rows), **settings, soft_labels=True)
    found = [("a", "dog", (1, 2)), ("b", "cat", (1, 0)), ("c", "cat", (1, 1))]
    assert brief(data.read()) == found


@pytest.mark.parametrize(
    ("columns", "text", "message"),
    [
        (
            {"votes": "n_{label}"},
            f"{HEADER}\na.mp4,train,0,",
            r"line 2: no votes and no label; every row needs one of the two\.",
        ),
        (
            {"label": {"cat": "a"}},
            HEADER,
            r"data\.columns\.label is {'cat': 'a'}; it must be one column\. Only votes may have se",
        ),
        ({"vote": "x"}, HEADER, r"data\.columns has the key 'vote'; allowed are .*, votes\.$"),
    ],
)
def test_votes_that_cannot_be_read(
    tmp_path: Path, columns: dict[str, Any], text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        video_folder(tmp_path, text, columns=columns).read()


def test_rows_and_counts_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.columns\.votes names votes that are counted, an"):
        video_folder(tmp_path, HEADER, repeats="votes")


# Published benchmarks

MHC_HEADER = "Video_ID\tMajority_Voting\tLabel\tTarget_Victim\tComponent\tDuration"


def multi_hate_clip(folder: Path, **settings: Any) -> MultiHateClip:
    def rows(names: str, label: str, votes: list[str]) -> list[str]:
        return [f"{name * 11}\t{label}\t{votes}\t[]\t[]\t[]" for name in names]

    tables = {
        "train": [
            *rows("a", "Normal", ["Normal", "Counter Narrative", "Offensive"]),
            *rows("b", "Offensive", ["Hateful", "Offensive", "Offensive"]),
            *rows("c", "Hateful", ["Hateful", "Hateful"]),
            *rows("d", "Normal", ["Normal", "No"]),
        ],
        "valid": rows("e", "Normal", ["Normal", "Normal"]),
        "test": rows("f", "Offensive", ["Offensive", "Normal", "Offensive"]),
    }
    (folder / "annotation").mkdir(exist_ok=True)
    for name, lines in tables.items():
        text = "\n".join([MHC_HEADER, *lines])
        (folder / f"annotation/{name}.tsv").write_text(text, encoding="utf-8")
    videos = folder / "videos"
    return MultiHateClip(annotations=folder, videos=videos, **DATA_SETTINGS, **settings)


def test_votes_of_multihateclip(tmp_path: Path) -> None:
    every = [(2, 1, 0), (0, 2, 1), (0, 0, 2), (1, 0, 0), (2, 0, 0), (1, 2, 0)]
    assert [clip.votes for clip in multi_hate_clip(tmp_path).read()] == every
    joined = [clip.votes for clip in multi_hate_clip(tmp_path, labels="binary").read()]
    assert joined == [(normal, other + hate) for normal, other, hate in every]
    data = multi_hate_clip(tmp_path, soft_labels=True)
    data.read()
    assert data.notes[-1] == (
        "MultiHateClip: left out 1 votes that are none of Normal, Offensive, Hateful and Counter "
        f"Narrative (first: 'No', {tmp_path}/annotation/train.tsv, line 5)."
    )


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published annotations are not there")
def test_the_published_majority_is_that_of_the_votes() -> None:
    data = MultiHateClip(annotations=PUBLISHED, videos=Path("none"), **DATA_SETTINGS)
    clips = data.read()
    assert len(clips) == 1000
    assert sum(sum(map(bool, clip.votes or ())) > 1 for clip in clips) == 177
    for clip in clips:
        assert clip.votes is not None
        assert clip.label is not None
        assert [clip.votes.index(max(clip.votes)), clip.votes.count(max(clip.votes))] == [
            clip.label,
            1,
        ]


def smart_home(folder: Path, **settings: Any) -> SmartHome:
    header = ["Title", "Category", "Anomaly Tag", "Video Description"]
    tags = ("Normal", "Abnormal", "Vague Abnormal")
    rows = [[f"smartbench_{n}", "Security", tag, "A.", "B."] for n, tag in enumerate(tags)]
    with (folder / "Video_Annotation.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*header, "Reasoning behind Normality/Anomalies"], *rows])
    (folder / "split.csv").write_text("id,split\n" + "".join(f"{r[0]},train\n" for r in rows))
    given = {"annotations": folder / "Video_Annotation.csv", "split_file": folder / "split.csv"}
    return SmartHome(videos=folder / "videos", **given, **DATA_SETTINGS, **settings)


def test_vague_clips_of_smarthome_have_a_share_of_each_class(tmp_path: Path) -> None:
    assert [clip.votes for clip in smart_home(tmp_path).read()] == [None, None, None]
    assert [clip.votes for clip in smart_home(tmp_path, soft_labels=True).read()] == [
        None,
        None,
        (0.5, 0.5),
    ]
    clip = smart_home(tmp_path, soft_labels=True, vague_share=0.75).read()[2]
    assert (clip.label, clip.votes) == (1, (0.25, 0.75))
    assert clip.soft_label(2) == [0.25, 0.75]
    for vague in ("exclude", "class"):
        with pytest.raises(ValueError, match=r"^data\.soft_labels is true and data\.vague is"):
            smart_home(tmp_path, soft_labels=True, vague=vague)
    with pytest.raises(ValueError, match=r"^data\.vague_share \(1\.5\) must be from 0 to 1\.$"):
        smart_home(tmp_path, vague_share=1.5)


# What training is given


class VotedYard(Yard):
    votes: tuple[tuple[float, ...] | None, ...] = ((1.0, 3.0), None, (2.0, 0.0), (1.0, 1.0))

    def read(self) -> list[Clip]:
        clips = super().read()
        found = dict(zip((f"train_{n}" for n in range(4)), self.votes, strict=True))
        found["test_0"] = (1.0, 1.0)
        return [replace(clip, votes=found.get(clip.id)) for clip in clips]


def voted_yard(folder: Path, **settings: Any) -> VotedYard:
    return VotedYard(folder / "card.yaml", {"train": 4, "test": 2}, **settings)


def test_votes_count_where_they_are_asked_for(tmp_path: Path, qwen: Path) -> None:
    model = module(qwen, "label")
    quiet, alarm = map(len, model.collator.class_answers(model.stage))
    tokens, shares = {}, {}
    for soft in (False, True):
        data = fed(voted_yard(tmp_path, soft_labels=soft), model)
        loader = data.train_dataloader()
        sampler: Any = loader.batch_sampler
        tokens[soft] = sampler.answer_tokens
        slots = [slot for batch in sampler for slot in batch]
        made: Any = loader.dataset
        shares[soft] = {made[s].clip.id: made[s].soft_label for s in slots}
    assert tokens[False] == [quiet, alarm, quiet, alarm]
    assert tokens[True] == [
        0.25 * quiet + 0.75 * alarm, alarm, quiet, 0.5 * quiet + 0.5 * alarm
    ]  # fmt: skip
    assert set(shares[False].values()) == {None}
    assert shares[True] == {
        "train_0": [0.25, 0.75],
        "train_1": [0.0, 1.0],
        "train_2": [1.0, 0.0],
        "train_3": [0.5, 0.5],
    }


def test_a_clip_needs_its_rationale_all_the_same(tmp_path: Path, qwen: Path) -> None:
    model = module(qwen, "rationale_class")
    data = fed(voted_yard(tmp_path, soft_labels=True), model)
    texts: Any = data.feed.rationales
    texts.lost.add("train_1")  # could not be decoded when rationales were written
    loader: Any = data.train_dataloader()
    found = loader.dataset[SampleSlot(1)]
    assert found.clip.id == "train_3"  # of its class, with votes of its own
    assert found.soft_label == [0.5, 0.5]
    tokens = loader.batch_sampler.answer_tokens
    assert tokens[1] == tokens[3]
    assert found.draw.weight == 1.0


def test_what_is_said_of_the_votes(tmp_path: Path) -> None:
    data = voted_yard(tmp_path, soft_labels=True)
    data._check_votes()
    assert data.notes == [
        "VotedYard: 3 of 4 training clips have votes, 2 of them divided; the others count with "
        "their label."
    ]
    data = Yard(tmp_path / "card.yaml", {"train": 2, "test": 1}, soft_labels=True)
    with pytest.raises(ValueError, match="no training clip of Yard has votes") as error:
        data._check_votes()
    assert str(error.value) == (
        "data.soft_labels is true, but no training clip of Yard has votes. Say where they stand "
        "(VideoFolder: data.columns.votes, or data.repeats votes), or leave data.soft_labels out."
    )


def test_a_run_s_record_has_the_votes_that_it_learns(tmp_path: Path) -> None:
    without, with_votes = (
        describe_clips(voted_yard(tmp_path, soft_labels=soft)) for soft in (False, True)
    )
    assert all("votes" not in clip for clips in without.values() for clip in clips)
    assert with_votes["test"] == without["test"]  # so that scores stand in one table
    assert [clip.get("votes") for clip in with_votes["train"]] == [
        [0.25, 0.75],
        None,
        [1.0, 0.0],
        [0.5, 0.5],
    ]
    assert clip_differences(without, with_votes) == [
        "3 train clips have another share of votes (train_0: None -> [0.25, 0.75], train_2: None "
        "-> [1.0, 0.0], train_3: None -> [0.5, 0.5])"
    ]
