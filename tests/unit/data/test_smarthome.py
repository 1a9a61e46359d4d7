import csv
import io
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.card import Card
from rbft.data import smarthome
from rbft.data.smarthome import SmartHome

SETTINGS = {
    "fps": 1.0,
    "max_pixels": 360 * 420,
    "min_pixels": 28 * 28,
    "min_frames": 2,
    "max_frames": 16,
    "global_batch_size": 16,
    "rationale_ratio": 1.0,
}
HEADER = [
    "Title",
    "Category",
    "Anomaly Tag",
    "Video Description",
    "Reasoning behind Normality/Anomalies",
]
# UTF-8 read as Mac Roman, as in a dozen published rows.
QUOTE, DASH = ("\N{SINGLE LOW-9 QUOTATION MARK}Ä" + last for last in "ôì")
ROWS = [
    ["smartbench_0001", "Wildlife", "Abnormal", ' A "bear", \nat night. ', " It is wild."],
    ["smartbench_0002", "Security, Pet Monitoring", "Normal", "A dog.", "It plays."],
    ["smartbench_0003", '{"choices":["Wildlife","Pet Monitoring"]}', "Vague Abnormal", "x", "y"],
    ["smartbench_0004", "Senior Care", "Normal", f"The turkey{QUOTE}s tail.", f"√ 2 {DASH}"],
    ["-smart 5", "Other Category", "Abnormal", f"A café {QUOTE}s sign 🙂.", "Root √ is meant."],
    ["smartbench_1024", "Security", "Abnormal", "Staff.", "Private."],
]
URLS = [
    ["Title", "URL"],
    ["smartbench_0001", "https://www.youtube.com/watch?v=aaaaaaaaaaa&t=6s"],
    ["smartbench_0002", "https://www.youtube.com/shorts/bbbbbbbbbbb "],
    ["smartbench_0003", "https://www.youtube.com/watch?v=-cccccccccc"],
    ["smartbench_0004", "https://www.youtube.com/watch?v=ddddddddddd"],
    ["-smart 5", "https://www.youtube.com/watch?v=eeeeeeeeeee"],
    ["smartbench_1024", "privacy url"],
]


def as_csv(rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return b"\xef\xbb\xbf" + text.getvalue().encode()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Video_Annotation.csv").write_bytes(as_csv([HEADER, *ROWS]))
    (tmp_path / "Video_url.csv").write_bytes(as_csv(URLS))
    return tmp_path


def smart_home(folder, **kwargs):
    kwargs = {"annotations": folder / "Video_Annotation.csv", "videos": folder / "videos", **kwargs}
    return SmartHome(**SETTINGS, **kwargs)


def clips(folder, **kwargs):
    return {clip.id: clip for clip in smart_home(folder, **kwargs).read()}


def change(folder, row, column, value, file="Video_Annotation.csv"):
    rows = [list(cells) for cells in (URLS if file == "Video_url.csv" else [HEADER, *ROWS])]
    rows[row][column] = value
    (folder / file).write_bytes(as_csv(rows))


def test_a_row_becomes_a_clip(folder):
    clip = clips(folder)["smartbench_0001"]
    assert clip.path == folder / "videos/smartbench_0001.mp4"
    assert clip.label == 1
    assert clip.reference == 'A "bear", \nat night. It is wild.'
    assert clip.url == "https://www.youtube.com/watch?v=aaaaaaaaaaa&t=6s"
    assert (clip.start, clip.end, clip.text) == (None, None, "")


def test_videos_are_looked_up(folder):
    (folder / "videos").mkdir()
    (folder / "videos/-smart 5.webm").touch()
    assert clips(folder)["-smart 5"].path == folder / "videos/-smart 5.webm"


def test_private_clips(folder):
    private = clips(folder)["smartbench_1024"]
    assert (private.split, private.url, private.label) == ("private", None, 1)


def test_the_other_header(folder):
    expected = clips(folder)
    change(folder, 0, 2, "Label")
    assert clips(folder) == expected


def test_mojibake_is_repaired_per_field_and_counted(folder):
    data = smart_home(folder)
    found = {clip.id: clip for clip in data.read()}
    # The second field is half mojibake and half a root sign that was meant: left as it is.
    assert (
        found["smartbench_0004"].reference
        == f"The turkey\N{RIGHT SINGLE QUOTATION MARK}s tail. √ 2 {DASH}"
    )
    assert found["-smart 5"].reference == f"A café {QUOTE}s sign 🙂. Root √ is meant."
    assert data.notes[1:] == ["SmartHome: repaired 1 texts that were read as Mac Roman once."]


@pytest.mark.parametrize("rows", [1202, 1203, 1204])
def test_a_table_that_is_shorter_than_published_is_said_so(folder, rows):
    made = [[f"smartbench_{n:04}", "Security", "Normal", "A.", "B."] for n in range(rows)]
    (folder / "Video_Annotation.csv").write_bytes(as_csv([HEADER, *made]))
    urls = [[row[0], "https://www.youtube.com/watch?v=aaaaaaaaaaa"] for row in made]
    (folder / "Video_url.csv").write_bytes(as_csv([URLS[0], *urls]))
    data = smart_home(folder)
    assert len(data.read()) == rows
    said = [
        f"SmartHome: {folder}/Video_Annotation.csv has 1202 of the 1,203 published rows. If that "
        "is not on purpose, the file is cut; results on fewer clips are not comparable."
    ]
    assert data.notes == (said if rows < 1203 else [])


def test_a_link_out_of_the_videos_folder_is_one_bad_clip(folder):
    (folder / "videos").mkdir()
    (folder / "secret.mp4").touch()
    (folder / "videos/smartbench_0001.mp4").symlink_to(folder / "secret.mp4")
    refused = {name: clip.refused for name, clip in clips(folder).items() if clip.refused}
    assert list(refused) == ["smartbench_0001"]
    assert refused["smartbench_0001"].startswith(f"is a symbolic link out of {folder}/videos (to ")


@pytest.mark.parametrize(
    ("vague", "label", "used", "words"),
    [
        ("abnormal", 1, True, "normal or abnormal"),
        ("exclude", None, False, "normal or abnormal"),
        ("class", 2, True, "normal, abnormal or unclear"),
    ],
)
def test_vague(folder, vague, label, used, words):
    data = smart_home(folder, vague=vague)
    clip = {clip.id: clip for clip in data.read()}["smartbench_0003"]
    assert clip.label == label
    assert (clip.split != "excluded") == used
    assert words in data.card.prompt("label")


def many(folder, n):
    rows = [[f"c{i:04}", "Security", smarthome.TAGS[i % 3], "d", "r"] for i in range(n)]
    urls = [[row[0], "privacy url" if i % 10 == 9 else "https://x"] for i, row in enumerate(rows)]
    (folder / "Video_Annotation.csv").write_bytes(as_csv([HEADER, *rows]))
    (folder / "Video_url.csv").write_bytes(as_csv([URLS[0], *urls]))


def test_split_by_hash_is_stratified_and_the_same_whatever_becomes_of_vague_clips(folder):
    many(folder, 300)
    found = clips(folder)
    assert Counter(clip.split for clip in found.values()) == {
        "train": 216,
        "test": 54,
        "private": 30,
    }
    without = clips(folder, vague="exclude")
    assert all(clip.split in (found[i].split, "excluded") for i, clip in without.items())
    assert clips(folder, split_seed=1) != found
    (folder / "videos").mkdir()
    (folder / "videos/c0000.mp4").touch()
    assert {i: c.split for i, c in clips(folder).items()} == {i: c.split for i, c in found.items()}


def test_split_file(folder):
    path = folder / "splits.csv"
    path.write_text(
        "Title,split\nsmartbench_0001,train\nsmartbench_0002,absent\nsmartbench_0003,test\n"
    )
    splits = {i: clip.split for i, clip in clips(folder, split_file=path).items()}
    assert splits == {
        "smartbench_0001": "train",
        "smartbench_0002": "excluded",
        "smartbench_0003": "test",
        "smartbench_0004": "excluded",
        "-smart 5": "excluded",
        "smartbench_1024": "private",
    }
    (folder / "Video_url.csv").unlink()
    assert clips(folder, split_file=path)["smartbench_1024"].split == "excluded"
    path.write_text("Title,split\nsmartbench_9,train\n")
    with pytest.raises(
        ValueError, match=r"1 of 1 ids are not in the annotations \(first: 'smartbe"
    ):
        clips(folder, split_file=path)


def test_trim(folder):
    path = folder / "trim.csv"
    path.write_bytes(
        b"No.,Title,Time\r\n1,smartbench_0001,21\r\n2,smartbench_0002,-6\r\n3,smartbench_0003,0\r\n"
    )
    found = clips(folder, trim=path)
    spans = [(clip.start, clip.end) for clip in found.values()]
    assert spans[:4] == [(None, -21.0), (6.0, None), (None, None), (None, None)]
    path.write_text("Title,Time\nsmartbench_0001,soon\n")
    with pytest.raises(ValueError, match=r"trim\.csv, line 2: Time is 'soon'; it must be a number"):
        clips(folder, trim=path)
    path.write_text("Title,Time\nsmartbench_0001,\n")
    with pytest.raises(ValueError, match=r"trim\.csv, line 2: Time is empty; 0 keeps the whole"):
        clips(folder, trim=path)
    path.write_text("Title,Time\nx,1\n")
    with pytest.raises(
        ValueError, match=r"trim\.csv, line 2: Title 'x' is not in .*Annotation\.csv"
    ):
        clips(folder, trim=path)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (
            0,
            2,
            "Tag",
            r"Annotation\.csv, line 2: column 'Anomaly Tag' \(or 'Label'\) is missing; th",
        ),
        (0, 1, "Cat", r"Annotation\.csv, line 2: column 'Category' is missing; .* 'Title', 'Cat'"),
        (
            2,
            2,
            "normal",
            r"line 4: Anomaly Tag 'normal' is unknown; allowed are Normal, Abnormal, V",
        ),
        (2, 1, "Cats", r"line 4: Category 'Cats' is unknown; allowed are one or several of Secur"),
        (2, 1, '{"choices":[]}', r"line 4: Category '{\"choices\":\[\]}' is unknown"),
        (2, 1, '{"choices"', r"line 4: Category '{\"choices\"' is unknown"),
        (2, 3, " ", r"line 4: Video Description is empty; every row needs one\."),
        (
            2,
            0,
            "smartbench_0001",
            r"line 4: Title 'smartbench_0001' stands twice \(first: .*line 2\)",
        ),
        (2, 0, "../x", r"Video_url\.csv has no row for 1 of 6 clips \(first: '\.\./x'\)\. Use the"),
    ],
)
def test_bad_rows(folder, row, column, value, message):
    change(folder, row, column, value)
    with pytest.raises(ValueError, match=message):
        clips(folder)


def test_ids_that_leave_the_folder(folder):
    change(folder, 1, 0, "../x")
    change(folder, 1, 0, "../x", "Video_url.csv")
    with pytest.raises(ValueError, match=r"'\.\./x' is no path below .*videos; ids and paths must"):
        clips(folder)


def test_missing_files(folder):
    (folder / "Video_url.csv").unlink()
    with pytest.raises(
        ValueError, match=r"Video_url\.csv does not exist; without it .* data\.urls"
    ):
        clips(folder)
    with pytest.raises(ValueError, match=r"File .*other\.csv does not exist\."):
        clips(folder, urls=folder / "other.csv")
    with pytest.raises(ValueError, match=r"File none\.csv does not exist\."):
        clips(folder, annotations=Path("none.csv"))


def test_a_card_of_ones_own_must_fit(folder):
    card = Card(
        "mine", "p", {"abnormal": "alarm", "normal": "fine"}, {"label": "?", "rationale": "?"}
    )
    card.save(folder / "mine.yaml")
    found = clips(folder, card=folder / "mine.yaml")
    assert [clip.label for clip in found.values()] == [0, 1, 0, 1, 0, 0]
    with pytest.raises(
        ValueError,
        match=re.escape(
            "Card 'mine' has the classes abnormal, normal; SmartHome with data.vague=class needs "
            "normal, abnormal, vague"
        ),
    ):
        smart_home(folder, vague="class", card=folder / "mine.yaml")


def test_cards(folder):
    card, vague = smart_home(folder).card, smart_home(folder, vague="class").card
    assert card.persona == "Smart Home Security Expert"
    assert card.classes == ("normal", "abnormal")
    assert vague.classes == ("normal", "abnormal", "vague")
    assert vague.prompts == card.prompts
    assert set(card.prompts) == {"label", "rationale", "less", "least"}
    assert len(set(card.prompts.values())) == 4
    assert card.persona in card.prompt("rationale")
    for topic in ("Subjects", "Attributes", "Actions", "Scene", "step by step"):
        assert topic in card.prompt("rationale")
    assert "Contextual Property Observer" in card.prompt("less")
    assert "Atmospheric Journalist" in card.prompt("least")
    # The label is neither shown nor asked for while rationales are written.
    for name in ("rationale", "less", "least"):
        assert not re.search("normal|anomal", card.prompt(name), re.IGNORECASE)


@pytest.mark.skipif("RBFT_REAL_DATA" not in os.environ, reason="RBFT_REAL_DATA names no folder")
def test_the_published_files_give_the_papers_counts():
    folder = Path(os.environ["RBFT_REAL_DATA"]) / "smarthome_bench"
    split_file = folder / "rbft_split_ids.csv"
    found = clips(folder, split_file=split_file, trim=folder / "Trim_video_label.csv").values()
    assert Counter(
        (clip.split, clip.label) for clip in found if clip.split in ("train", "test")
    ) == {
        ("train", 0): 284,
        ("train", 1): 494,
        ("test", 0): 68,
        ("test", 1): 128,
    }
    assert Counter(clip.split for clip in found) == {
        "train": 778,
        "test": 196,
        "private": 180,
        "excluded": 49,
    }
    trimmed = Counter(clip.split for clip in found if clip.start or clip.end)
    assert (trimmed["train"], trimmed["test"]) == (302, 81)
    by_hash = Counter((clip.split, clip.label) for clip in clips(folder).values())
    assert by_hash["train", 0] + by_hash["test", 0] == 378
    assert (by_hash["test", 0], by_hash["test", 1]) == (76, 129)
    assert not any(QUOTE[:2] in (clip.reference or "") for clip in found)


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_mutated_files_raise_nothing_but_value_errors(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    files = {
        "Video_Annotation.csv": as_csv([HEADER, *ROWS]),
        "Video_url.csv": as_csv(URLS),
        "trim.csv": b"No.,Title,Time\r\n1,smartbench_0001,21\r\n2,smartbench_0002,-6\r\n",
        "splits.csv": b"Title,split\nsmartbench_0001,train\nsmartbench_0002,test\n",
    }
    victim = data.draw(st.sampled_from(sorted(files)))
    for name, content in files.items():
        (folder / name).write_bytes(mutated(content, data) if name == victim else content)
    split_file = data.draw(st.sampled_from([None, folder / "splits.csv"]))
    try:
        found = smart_home(folder, trim=folder / "trim.csv", split_file=split_file).read()
    except ValueError:
        return
    assert len({clip.id for clip in found}) == len(found) > 0
    for clip in found:
        assert clip.path.resolve().is_relative_to(folder.resolve())


def mutated(content, data):
    """One to three edits: bytes replaced, cut out, doubled or put in."""
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + 12)))
        edit = data.draw(
            st.sampled_from(
                [b"", b"\n", b",", b'"', b"\0", b"\xff", b"../", b"[", content[start:stop] * 2]
            )
            | st.binary(max_size=3)
            | st.text(max_size=3).map(str.encode)
        )
        content = content[:start] + edit + content[stop:]
    return content
