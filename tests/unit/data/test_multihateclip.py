import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.card import Card
from rbft.data.multihateclip import MultiHateClip

SETTINGS = {
    "fps": 1.0,
    "max_pixels": 360 * 420,
    "min_pixels": 28 * 28,
    "min_frames": 2,
    "max_frames": 16,
    "global_batch_size": 16,
    "rationale_ratio": 1.0,
}
HEADER = "Video_ID\tMajority_Voting\tLabel\tTarget_Victim\tComponent\tDuration"
NORMAL = "['Normal', 'Counter Narrative']\t[]\t[]\t[]"
HATE = "['Hateful', 'Hateful']\t['Woman', None]\t['Vision component']\t[(0, 46), (0, 0)]"
TRAIN = [
    f"-aaaaaaaaaa\tNormal\t{NORMAL}",
    f"_bbbbbbbbbb\tHateful\t{HATE}",
    f"ccccccccccc\tOffensive\t{HATE}",
    f"ddddddddddd\tOffensive\t{NORMAL}",
]
VALID = [f"eeeeeeeeeee\tNormal\t{HATE}"]
TEST = [f"ddddddddddd\tOffensive\t{NORMAL}", f"BV1234567890\tHateful\t{HATE}"]
TEXTS = {
    row.split("\t")[0]: {"title": "", "transcript": "", "label": "Output: Hateful"}
    for row in TRAIN + VALID + TEST
}
TEXTS["-aaaaaaaaaa"] = {"title": " Hi {you} ", "transcript": "Well,\nhi."}
TEXTS["ccccccccccc"] = {"title": '<em class="keyword">Word</em>s', "transcript": "", "label": "x"}


def write(folder, train=TRAIN, valid=VALID, test=TEST, texts=TEXTS, header=HEADER):
    (folder / "annotation").mkdir(exist_ok=True, parents=True)
    for name, rows in (("train", train), ("valid", valid), ("test", test)):
        text = "\r\n".join([header, *rows])
        (folder / f"annotation/{name}.tsv").write_bytes(text.encode())
    (folder / "text.json").write_text(json.dumps(texts))
    return folder


def multi_hate_clip(folder, **kwargs):
    return MultiHateClip(**SETTINGS, annotations=folder, videos=folder / "videos", **kwargs)


def read(folder, **kwargs):
    return multi_hate_clip(folder, **kwargs).read()


def test_rows_become_clips(tmp_path):
    clips = read(write(tmp_path))
    assert [(clip.id, clip.split, clip.label) for clip in clips] == [
        ("-aaaaaaaaaa", "train", 0),
        ("_bbbbbbbbbb", "train", 2),
        ("ccccccccccc", "train", 1),
        ("eeeeeeeeeee", "val", 0),
        ("ddddddddddd", "test", 1),
        ("BV1234567890", "test", 2),
    ]
    assert clips[0].path == tmp_path / "videos/-aaaaaaaaaa.mp4"
    assert clips[0].url == "https://www.youtube.com/watch?v=-aaaaaaaaaa"
    assert clips[-1].url == "https://www.bilibili.com/video/BV1234567890"
    assert all(clip.text == "" and clip.reference is None for clip in clips)


def test_the_clip_in_train_and_test_is_dropped_from_train_and_named(tmp_path):
    data = multi_hate_clip(write(tmp_path))
    data.read()
    folder = tmp_path / "annotation"
    assert data.notes[1:] == [
        f"MultiHateClip: dropped ddddddddddd from train ({folder}/train.tsv, line 5); it stands in "
        f"{folder}/test.tsv, line 2 too."
    ]
    with pytest.raises(
        ValueError, match=r"train\.tsv, line 5: Video_ID 'd+' stands in .*test\.tsv"
    ):
        read(tmp_path, drop_duplicates="error")


@pytest.mark.parametrize(
    ("ids", "language", "published"),
    [
        ("{:011}", "English", {"train": 701, "valid": 100, "test": 200}),
        ("BV{:010}", "Chinese", {"train": 699, "valid": 101, "test": 200}),
    ],
)
def test_files_that_are_shorter_than_published_are_said_so(tmp_path, ids, language, published):
    write(tmp_path)
    folder = tmp_path / "annotation"
    for cut in (None, "train", "test"):
        for place, (name, rows) in enumerate(published.items()):
            header = (folder / f"{name}.tsv").read_text().splitlines()[0]
            lines = [
                f"{ids.format(1000 * place + n)}\tNormal\t{NORMAL}"
                for n in range(rows - (name == cut))
            ]
            (folder / f"{name}.tsv").write_text("\n".join([header, *lines]))
        data = multi_hate_clip(tmp_path)
        data.read()
        said = [
            f"MultiHateClip: fewer rows than published ({language}) in {folder}: {cut}.tsv has "
            f"{published[cut] - 1} of {published[cut]}. If that is not on purpose, files are cut; "
            "results on fewer clips are not comparable."
            for _ in [cut]
            if cut
        ]
        assert data.notes == said


def test_binary(tmp_path):
    data = multi_hate_clip(write(tmp_path), labels="binary")
    assert [clip.label for clip in data.read()] == [0, 1, 1, 0, 1, 1]
    assert data.card.words == {"normal": "normal", "harmful": "harmful"}


@pytest.mark.parametrize(
    ("text", "first", "third"),
    [
        ("none", "", ""),
        ("title", "Title of the video: Hi {you}", "Title of the video: Words"),
        ("transcript", "Transcript of the video: Well,\nhi.", ""),
        (
            "both",
            "Title of the video: Hi {you}\nTranscript of the video: Well,\nhi.",
            "Title of the video: Words",
        ),
    ],
)
def test_text_is_opt_in_and_the_machine_label_is_never_in_it(tmp_path, text, first, third):
    data = multi_hate_clip(write(tmp_path), text=text)
    clips = data.read()
    assert [clips[0].text, clips[1].text, clips[2].text] == [first, "", third]
    for name in ("label", "rationale"):
        prompt = data.card.prompt(name, clips[0].text)
        assert prompt.startswith(first)
        assert "Output" not in prompt
        assert prompt.endswith(data.card.prompt(name))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            f"x\tHate\t{NORMAL}",
            r"line 2: Majority_Voting 'Hate' is unknown; allowed are Normal, Of",
        ),
        (f"\tNormal\t{NORMAL}", r"train\.tsv, line 2: Video_ID is empty; every row needs one\."),
        ("x\tNormal\t['Normal'", r"line 2: 3 cells, but the header has 6 columns"),
        (
            "x\tNormal\t['Normal'\t[]\t[]\t[]",
            r"line 2: Label is \"\['Normal'\"; it must be a Python l",
        ),
        (
            "x\tNormal\t[1]\t[]\t[]\t[]",
            r"Label is '\[1\]'; it must be a Python list as published, s",
        ),
        ("x\tNormal\t'Normal'\t[]\t[]\t[]", r"Label is \"'Normal'\"; it must be a Python list"),
        (
            "x\tNormal\t[]\t[1]\t[]\t[]",
            r"Target_Victim is '\[1\]'; it must be .* \['Woman'\] or \[\]",
        ),
        ("x\tNormal\t[]\t[]\t['Sound']\t[]", r"Component is \"\['Sound'\]\"; it must be"),
        (
            "x\tNormal\t[]\t[]\t[]\t[(5, 2)]",
            r"Duration is '\[\(5, 2\)\]'; it must .* \[\(0, 46\)\] or",
        ),
        ("x\tNormal\t[]\t[]\t[]\t[(1.5, 2)]", r"Duration is '\[\(1\.5, 2\)\]'"),
        ("x\tNormal\t[]\t[]\t[]\t" + "[" * 9999, r"Duration is '\[\[\["),
        ("x\tNormal\t[]\t[]\t[]\topen('x')", r"Duration is \"open\('x'\)\""),
        (f"../x\tNormal\t{NORMAL}", r"'\.\./x' is no path below .*videos"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, train=[row]))


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"File .*annotation/train\.tsv does not exist\."):
        read(tmp_path)
    write(tmp_path, header=HEADER.replace("Majority_Voting", "Vote"))
    with pytest.raises(
        ValueError, match=r"column 'Majority_Voting' is missing; .*'Video_ID', 'Vote"
    ):
        read(tmp_path)
    write(tmp_path, valid=TEST)
    with pytest.raises(
        ValueError, match=r"test\.tsv, line 2: Video_ID 'd+' stands twice \(first: .*v"
    ):
        read(tmp_path)
    write(tmp_path, train=[TRAIN[0], TRAIN[0]])
    with pytest.raises(ValueError, match=r"train\.tsv, line 3: Video_ID '-a+' stands twice"):
        read(tmp_path)


def test_bad_texts(tmp_path):
    write(tmp_path, texts={})
    read(tmp_path)
    with pytest.raises(
        ValueError, match=r"text\.json has no entry for '-a+' \(.*train\.tsv, line 2"
    ):
        read(tmp_path, text="title")
    write(tmp_path, texts=[])
    with pytest.raises(
        ValueError, match=r"text\.json must be a JSON object of video ids; got \[\]"
    ):
        read(tmp_path, text="title")
    write(tmp_path, texts={**TEXTS, "-aaaaaaaaaa": {"title": ["x"]}})
    with pytest.raises(
        ValueError, match=r"text\.json, '-a+': title is \['x'\]; it must be one text"
    ):
        read(tmp_path, text="title")


def test_a_card_of_ones_own_must_fit(tmp_path):
    words = {"hateful": "h", "normal": "n", "offensive": "o"}
    Card("mine", "p", words, {"label": "?", "rationale": "?"}).save(tmp_path / "mine.yaml")
    clips = read(write(tmp_path), card=tmp_path / "mine.yaml")
    assert [clip.label for clip in clips] == [1, 0, 2, 1, 2, 0]
    with pytest.raises(
        ValueError, match=r"'mine' has the classes hateful, .* needs normal, harmful"
    ):
        read(tmp_path, card=tmp_path / "mine.yaml", labels="binary")
    with pytest.raises(
        ValueError, match=r"text is both, but prompts\.label of card 'mine' does not"
    ):
        read(tmp_path, card=tmp_path / "mine.yaml", text="both")


def test_cards(tmp_path):
    ternary = multi_hate_clip(tmp_path).card
    binary = multi_hate_clip(tmp_path, labels="binary").card
    assert ternary.classes == ("normal", "offensive", "hateful")
    assert binary.prompts["rationale"] == ternary.prompts["rationale"]
    for topic in ("Subjects", "Attributes", "Actions", "Scene", "step by step"):
        assert topic in ternary.prompt("rationale")
    assert not re.search("normal|offensive|hate", ternary.prompt("rationale"), re.IGNORECASE)
    assert ternary.prompt("label").startswith("Is this video normal, offensive or hateful?")


@pytest.mark.skipif("RBFT_REAL_DATA" not in os.environ, reason="RBFT_REAL_DATA names no folder")
def test_the_published_files_give_the_published_counts():
    folder = Path(os.environ["RBFT_REAL_DATA"]) / "multihateclip/English_data"
    data = multi_hate_clip(folder)
    clips = data.read()
    # 701 train rows, of which one stands in test too.
    (note,) = data.notes
    assert "from train" in note
    assert Counter((clip.split, clip.label) for clip in clips) == {
        ("train", 0): 464,
        ("train", 1): 179,
        ("train", 2): 57,
        ("val", 0): 65,
        ("val", 1): 26,
        ("val", 2): 9,
        ("test", 0): 133,
        ("test", 1): 51,
        ("test", 2): 16,
    }
    assert len({clip.id for clip in clips}) == 1000


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_mutated_files_raise_nothing_but_value_errors(tmp_path_factory, data):
    folder = write(tmp_path_factory.getbasetemp() / "mutated_hate")
    path = folder / data.draw(st.sampled_from(["annotation/train.tsv", "text.json"]))
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + 12)))
        edit = data.draw(
            st.sampled_from(
                [b"", b"\n", b"\t", b"'", b'"', b"\\", b"\0", b"../", b"[", b"{", b"1_"]
            )
            | st.binary(max_size=3)
        )
        content = content[:start] + edit + content[stop:]
    path.write_bytes(content)
    try:
        clips = read(folder, text="both")
    except ValueError:
        return
    assert len({clip.id for clip in clips}) == len(clips) > 0
