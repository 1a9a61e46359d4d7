import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.card import Card
from rbft.data.videofolder import VideoFolder
from tests.rights import folder_for_all, without_rights
from tests.videos import make_video

SETTINGS = {
    "fps": 1.0,
    "max_pixels": 360 * 420,
    "min_pixels": 28 * 28,
    "min_frames": 2,
    "max_frames": 16,
    "global_batch_size": 16,
    "rationale_ratio": 1.0,
}
CLASSES = ("cat", "dog")


SAID = []  # notes of the last folder that was read


@pytest.fixture
def said():
    SAID.clear()
    return SAID


@pytest.fixture
def root(tmp_path):
    words = {"cat": "feline", "dog": "canine"}
    Card("pets", "Vet", words, {"label": "?", "rationale": "?"}).save(tmp_path / "card.yaml")
    (tmp_path / "clips").mkdir()
    return tmp_path / "clips"


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def video_folder(root, **kwargs):
    return VideoFolder(root=root, card=root.parent / "card.yaml", **SETTINGS, **kwargs)


def read(root, **kwargs):
    data = video_folder(root, **kwargs)
    clips = data.read()
    data.note_unused_files(clip.path for clip in clips)
    SAID[:] = data.notes
    return clips


def brief(clips):
    return [(clip.id, CLASSES[clip.label], clip.split) for clip in clips]


def table(root, text, name="table.csv"):
    path = root.parent / name
    path.write_text(text, encoding="utf-8")
    return path


# Folders


def test_folder_per_class(root, said):
    touch(root, *(f"{name}/-{i} ü.mp4" for name in CLASSES for i in range(10)), "cat/notes.txt")
    clips = read(root)
    assert Counter((clip.label, clip.split) for clip in clips) == {
        (0, "train"): 8,
        (0, "test"): 2,
        (1, "train"): 8,
        (1, "test"): 2,
    }
    assert (clips[0].id, clips[0].path) == ("cat/-0 ü", root / "cat/-0 ü.mp4")
    notes = f"{root}/cat/notes.txt"
    assert said == [
        f"VideoFolder: {root}: left alone 1 files that are no videos: 1 .txt (first: {notes}).",
        f"VideoFolder: a folder per class in {root}: 20 clips ({_counts(clips)}).",
    ]
    assert Counter(clip.split for clip in read(root, test_fraction=0.0)) == {"train": 20}
    assert brief(read(root, split_seed=7)) != brief(clips)


def _counts(clips):
    counts = Counter(clip.split for clip in clips)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def test_folder_per_class_under_splits(root, said):
    touch(root, "train/cat/a.mp4", "train/canine/x/b.webm", "valid/cat/c.mp4", "Test/dog/a.mp4")
    assert brief(read(root)) == [
        ("Test/dog/a", "dog", "test"),
        ("train/canine/x/b", "dog", "train"),
        ("train/cat/a", "cat", "train"),
        ("valid/cat/c", "cat", "val"),
    ]
    assert said[-1].startswith(f"VideoFolder: a folder per split and class in {root}: 4 clips")
    touch(root, "evaluation/cat/d.mp4")
    assert ("evaluation/cat/d", "cat", "test") in brief(read(root))


def test_a_test_folder_alone_is_enough_for_scoring(root):
    touch(root, "test/cat/a.mp4")
    assert brief(read(root)) == [("test/cat/a", "cat", "test")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"clips holds no video \(it is empty\)\. Expected are a folder per class"),
        (["cat/a.jpg"], r"clips holds no video \(1 files that are no videos: 1 \.jpg \(first: /"),
        (["a.mp4"], r"clips/a\.mp4 lies in no class folder; expected is .*/clips/<class>/a\.mp4\."),
        (
            ["train/a.mp4"],
            r"train/a\.mp4 lies in no class folder; expected is .*/<split>/<class>/a",
        ),
        (
            ["cat/a.mp4", "cow/b.mp4"],
            r"cow/b\.mp4: label 'cow' is no class of card 'pets'; allowed a",
        ),
        (["cat/a.mp4", "train/dog/b.mp4"], r"train/dog/b\.mp4: label 'train' is no class"),
        (
            [f"cat/{i}.mp4" for i in range(5)],
            r"a folder per class in .*: class 'dog' has no training clip \(0 in validation",
        ),
        (
            ["train/cat/a.mp4", "test/dog/a.mp4"],
            r"class 'dog' has no training clip \(1 in validation and test\); .* has 1 cat, 0 dog\.",
        ),
        (
            ["cat/a.mp4", "dog/a.mp4"],
            r"test_fraction \(0\.2\) of 2 clips is no whole clip of any cl",
        ),
    ],
)
def test_bad_folders(root, names, message):
    touch(root, *names)
    with pytest.raises(ValueError, match=message):
        read(root)


def test_links_out_of_the_root(root):
    touch(root, "cat/a.mp4", "../secret.mp4")
    (root / "cat/b.mp4").symlink_to(root.parent / "secret.mp4")
    link = f"is a symbolic link out of {root} (to {root.parent}/secret.mp4); copy the video there, "
    link += "or link the folder that holds it"
    touch(root, "dog/c.mp4")
    path = table(root, "path,label\ncat/a.mp4,cat\ncat/b.mp4,cat\ndog/c.mp4,dog\n")
    for given_table in (None, path):
        clips = read(root, table=given_table, test_fraction=0.0)
        assert {clip.id: clip.refused for clip in clips} == {
            "cat/a": "",
            "cat/b": link,
            "dog/c": "",
        }


def test_one_bad_link_is_one_bad_clip(root):
    touch(root, *(f"{name}/{i}.mp4" for name in CLASSES for i in range(4)), "../secret.mp4")
    for path in root.rglob("*.mp4"):
        make_video(path, frames=4)
    (root / "cat/bad.mp4").symlink_to(root.parent / "secret.mp4")
    settings = {"test_fraction": 0.25, "split_seed": 1, "cache_folder": root.parent / "cache"}
    data = video_folder(root, on_missing="skip", min_coverage=0.5, **settings)
    assert len(data.files.usable) == 8
    (row,) = [row for row in data.files.manifest.rows if row.status != "ok"]
    assert (row.id, row.status) == ("cat/bad", "unreadable")
    assert row.reason.startswith(f"is a symbolic link out of {root} (to ")
    with pytest.raises(ValueError, match=r"1 unreadable; first: bad\.mp4: is a symbolic link out"):
        assert video_folder(root, **settings).files.usable


def test_linked_class_folders(root):
    touch(root, "../elsewhere/cats/a.mp4", "../elsewhere/dogs/b.mp4")
    for link, name in (("cat", "cats"), ("dog", "dogs")):
        (root / link).symlink_to(root.parent / "elsewhere" / name)
    clips = read(root, test_fraction=0.0)
    assert brief(clips) == [("cat/a", "cat", "train"), ("dog/b", "dog", "train")]
    assert [clip.refused for clip in clips] == ["", ""]


def test_files_that_differ_by_their_ending_alone(root):
    touch(root, "cat/0.mp4", "cat/0.avi", "cat/1.mp4", "dog/0.ts")
    ids = [clip.id for clip in read(root, test_fraction=0.0)]
    assert ids == ["cat/0.avi", "cat/0.mp4", "cat/1", "dog/0"]
    path = table(root, "path,label\ncat/0.mp4,cat\ncat/0.avi,cat\ndog/0.ts,dog\n")
    ids = [clip.id for clip in read(root, table=path, test_fraction=0.0)]
    assert ids == ["cat/0.mp4", "cat/0.avi", "dog/0"]
    splits = table(root, "id,split\ncat/0.avi,train\ncat/0.mp4,test\ndog/0,train\n", "s.csv")
    assert [clip.split for clip in read(root, table=path, split_file=splits)] == [
        *("test", "train", "train")
    ]


def test_long_file_names(root):
    name = "x" * 237 + ".mp4"
    touch(root, f"cat/{name}", "dog/b.mp4")
    path = table(root, f"path,label\ncat/{name},cat\ndog/b.mp4,dog\n")
    for given_table in (None, path):
        first = read(root, table=given_table, test_fraction=0.0)[0]
        assert first.path == root / "cat" / name
        assert first.path.exists()


# Hugging Face metadata


def test_metadata_in_the_root(root, said):
    touch(root, "a.mp4", "b/c.mp4")
    (root / "metadata.csv").write_text(
        "file_name,label,split,text\na.mp4,cat,train,hello\nb/c.mp4,dog,train,\n"
    )
    clips = read(root)
    assert brief(clips) == [("a", "cat", "train"), ("b/c", "dog", "train")]
    assert [clip.text for clip in clips] == ["hello", ""]
    assert said == [f"VideoFolder: metadata {root}/metadata.csv: 2 clips (2 train)."]


def test_metadata_in_the_splits_folders(root):
    for split, names in (("train", "ab"), ("test", "a")):
        (root / split).mkdir()
        lines = [
            json.dumps({"file_name": f"x/{name}.mp4", "label": CLASSES[i]})
            for i, name in enumerate(names)
        ]
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    clips = read(root)
    assert brief(clips) == [
        ("test/x/a", "cat", "test"),
        ("train/x/a", "cat", "train"),
        ("train/x/b", "dog", "train"),
    ]
    assert clips[0].path == root / "test/x/a.mp4"
    (root / "metadata.csv").write_text("file_name,label\na.mp4,cat\n")
    with pytest.raises(
        ValueError, match=r"metadata\.csv and .* could both be the metadata of .*cli"
    ):
        read(root)


def test_metadata_in_parquet(root):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"file_name": ["a.mp4", "b.mp4"], "label": ["cat", "dog"], "split": ["train"] * 2}
    parquet.write_table(pyarrow.table(columns), root / "metadata.parquet")
    assert brief(read(root)) == [("a", "cat", "train"), ("b", "dog", "train")]


def test_bad_metadata(root):
    (root / "metadata.csv").write_text("file,label\na.mp4,cat\n")
    with pytest.raises(
        ValueError, match=r"metadata\.csv, line 2: missing is the column 'file_name' \(or one"
    ):
        read(root)
    (root / "metadata.csv").write_text("file_name,text\na.mp4,cat\n")
    with pytest.raises(
        ValueError, match=r"no column is known as the label; .*data\.columns\.label"
    ):
        read(root)
    (root / "train").mkdir()
    (root / "metadata.csv").rename(root / "train/metadata.csv")
    (root / "train/metadata.csv").write_text("file_name,label\n../../a.mp4,cat\n")
    with pytest.raises(
        ValueError, match=r"metadata\.csv, line 2: 'train/\.\./\.\./a\.mp4' is no path"
    ):
        read(root)


def test_folders_say_the_split_of_metadata_above_them(root):
    lines = [f"{split}/{n}.mp4,{CLASSES[n % 2]}" for split in ("train", "eval") for n in range(5)]
    (root / "metadata.csv").write_text("\n".join(["video_file_name,label", *lines]))
    clips = read(root)
    assert [clip.split for clip in clips] == ["train"] * 5 + ["test"] * 5
    assert clips[0].path == root / "train/0.mp4"
    # Deeper folders too; a folder that is a class is none.
    card = Card(
        "pets", "Vet", {"cat": "feline", "test": "canine"}, {"label": "?", "rationale": "?"}
    )
    card.save(root.parent / "card.yaml")
    lines = ["data/Validation/test/a.mp4,test", "train/test/b.mp4,test", "train/cat/c.mp4,cat"]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    assert [clip.split for clip in read(root)] == ["val", "train", "train"]
    by_class = ["test/a.mp4,test", "cat/b.mp4,cat"]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *by_class]))
    assert [clip.split for clip in read(root, test_fraction=0.0)] == ["train", "train"]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *lines, "d.mp4,cat"]))
    with pytest.raises(ValueError, match="none of its folders") as error:
        read(root)
    assert str(error.value) == (
        f"{root}/metadata.csv, line 5: none of its folders is called like a split; 3 other clips "
        "have one. Say the split of every clip, or all of them in data.split_file."
    )
    splits = table(root, "id,split\nd,test\n", "s.csv")
    assert [clip.split for clip in read(root, split_file=splits)][-1] == "test"


def test_a_split_column_is_above_the_folders(root):
    path = table(root, "path,label,split\ntrain/a.mp4,cat,test\ntest/b.mp4,dog,test\n")
    assert [clip.split for clip in read(root, table=path)] == ["test", "test"]
    path = table(root, "path,label\ntrain/a.mp4,cat\ntrain/b.mp4,dog\ntest/b.mp4,dog\n")
    assert [clip.split for clip in read(root, table=path)] == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "a_file_name,b_file_name",
            r"line 2: a_file_name, b_file_name could all be the column 'fil",
        ),
        ("video_file_name,video2_file_name", r"video_file_name, video2_file_name could all be the"),
        (
            "path,b",
            r"line 2: missing is the column 'file_name' \(or one that ends in _file_name\); ",
        ),
    ],
)
def test_which_column_names_the_file(root, header, message):
    (root / "metadata.csv").write_text(f"{header},label\na.mp4,b.mp4,cat\n")
    with pytest.raises(ValueError, match=message):
        read(root)
    lists = table(root, "id,split\na,test", "splits.csv")
    clips = read(root, columns={"path": header.split(",")[0]}, split_file=lists)
    assert [clip.id for clip in clips] == ["a"]


def test_the_video_is_the_column_of_video_names(root):
    (root / "metadata.jsonl").write_text(
        '{"video_file_name": "a.mp4", "thumb_file_name": "a.png", "label": "cat"}\n'
        '{"video_file_name": "b.mp4", "thumb_file_name": "b.png", "label": "dog"}\n'
    )
    assert brief(read(root, test_fraction=0.0)) == [("a", "cat", "train"), ("b", "dog", "train")]


# Tables


def test_several_tables(root, said):
    one, two = "path,label\na.mp4,cat\nb.mp4,dog\n", "path,label\nc.mp4,cat\n"
    tables = {"train": table(root, one, "1.csv"), "validate": table(root, two, "2.csv")}
    expected = [("a", "cat", "train"), ("b", "dog", "train"), ("c", "cat", "val")]
    assert brief(read(root, tables=tables)) == expected
    assert said == [
        f"VideoFolder: table {root.parent}/1.csv and 1 others: 3 clips (2 train, 1 val)."
    ]
    # A split in the table itself is above that of its setting.
    table(root, "path,label,split\nc.mp4,cat,test\n", "2.csv")
    assert read(root, tables=tables)[-1].split == "test"
    both = dict.fromkeys(("train", "test"), tables["train"])
    with pytest.raises(
        ValueError, match=r"1\.csv, line 2: id 'a' stands twice \(first: .*line 2\)"
    ):
        read(root, tables=both)
    lists = table(root, "id,split\na,train\nb,train\n", "splits.csv")
    every = read(root, table=root.parent / "[12].csv", split_file=lists)
    assert [clip.split for clip in every] == ["train", "train", "excluded"]
    with pytest.raises(ValueError, match=r"^data\.table .*/x\*\.csv: no file matches\.$"):
        read(root, table=root.parent / "x*.csv")


def test_a_column_that_the_first_row_lacks(root):
    rows = [{"id": "a", "label": "cat"}, {"id": "b", "label": "dog", "split": "test"}]
    path = table(root, "\n".join(map(json.dumps, rows)), "t.jsonl")
    with pytest.raises(ValueError, match=r"line 1: split is empty; 1 other clips have one\."):
        read(root, table=path)
    rows = [{"id": "a", "label": None, "duration": 5, "split": "train"}]
    path = table(root, "\n".join(map(json.dumps, rows)), "t.jsonl")
    with pytest.raises(ValueError, match=r"line 1: label None is no class"):
        read(root, table=path)


def test_a_file_whose_name_holds_a_wildcard(root):
    path = table(root, "path,label\na.mp4,cat\nb.mp4,dog\n", "list [1].csv")
    assert len(read(root, table=path, test_fraction=0.0)) == 2


SEGMENTS = "path,label,start,end\n" + "".join(
    f"{n}.mp4,{CLASSES[n % 2]},{10 * k},{10 * k + 5}\n" for n in range(10) for k in range(3)
)


def test_segments_of_a_video_stay_in_one_split(root, said):
    path = table(root, SEGMENTS)
    clips = read(root, table=path, repeats="segments")
    assert [clip.id for clip in clips[:4]] == ["0_0_5", "0_10_15", "0_20_25", "1_0_5"]
    assert said[0] == "VideoFolder: 30 segments of 10 videos."
    splits = {}
    for clip in clips:
        splits.setdefault(clip.path.name, set()).add(clip.split)
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(clip.split for clip in clips) == {"train": 24, "test": 6}
    # A list may name videos or segments.
    lists = table(root, "id,split\n0,train\n1.mp4,train\n2_0_5,test\n", "s.csv")
    named = {c.id: c.split for c in read(root, table=path, repeats="segments", split_file=lists)}
    assert (named["0_10_15"], named["1_0_5"], named["2_0_5"], named["2_10_15"]) == (
        *("train", "train", "test", "excluded"),
    )
    with pytest.raises(ValueError, match=r"line 3: id '0' stands twice .* data\.repeats segments"):
        read(root, table=path)
    twice = table(root, f"{SEGMENTS}0.mp4,cat,0,5\n")
    with pytest.raises(ValueError, match=r"line 32: id '0_0_5' stands twice \(first: .*line 2\)"):
        read(root, table=twice, repeats="segments")


def test_votes(root, said):
    path = table(root, "id,label\na,cat\nb,dog\na,cat\na,dog\n")
    clips = read(root, table=path, repeats="votes", test_fraction=0.0)
    assert brief(clips) == [("a", "cat", "train"), ("b", "dog", "train")]
    assert said[0] == "VideoFolder: 4 votes on 2 videos, 1 of which are not unanimous."
    path = table(root, "id,label\na,cat\na,dog\n")
    with pytest.raises(
        ValueError, match=r"1 of 1 videos have no majority .*: 'a': 1 cat, 1 dog \("
    ):
        read(root, table=path, repeats="votes")


def test_names_of_splits(root):
    path = table(root, "id,label,split\na,cat,1\nb,dog,Tr\nc,dog,validate\nd,cat,train\n")
    names = {1: "train", "Tr": "train", "train": "test"}
    splits = [clip.split for clip in read(root, table=path, split_names=names)]
    assert splits == ["train", "train", "val", "test"]
    with pytest.raises(ValueError, match=r"line 2: split '1' is unknown; allowed are train"):
        read(root, table=path)
    with pytest.raises(ValueError, match=r"^data\.split_names\.x: split 'tarin' is unknown; allow"):
        read(root, table=path, split_names={"x": "tarin"})
    with pytest.raises(
        ValueError, match=r"^data\.tables: split 'tarin' is unknown; allowed are tr"
    ):
        read(root, tables={"tarin": path})
    with pytest.raises(
        ValueError, match=r"^data\.table and data\.tables both name tables; set one"
    ):
        read(root, table=path, tables={"train": path})


def test_class_lists_and_label_patterns(root):
    numbers = table(root, "1 cat\n2 dog\n", "classes.txt")
    path = table(root, "x/a.mp4 1\nx/b.mp4 2\n", "list.txt")
    settings = {"table": path, "test_fraction": 0.0, "class_list": numbers}
    columns = {"path": 1, "label": 2}
    assert brief(read(root, columns=columns, **settings)) == [
        ("x/a", "cat", "train"),
        ("x/b", "dog", "train"),
    ]
    table(root, "x/a.mp4 1\nx/b.mp4 3\n", "list.txt")
    with pytest.raises(
        ValueError, match=r"list\.txt, line 2: label '3' is not in data\.class_list"
    ):
        read(root, columns=columns, **settings)
    with pytest.raises(
        ValueError, match=r"line 1: column '4' is missing; the columns there are '1'"
    ):
        read(root, columns={"path": 4}, **settings)
    # The pattern looks at the path, or at the column of the label, or at the id.
    table(root, "cat/v_a.mp4 x_dog\ndog/v_b.mp4 x_cat\n", "list.txt")
    pattern = r"(?P<label>cat|dog)"
    settings = {"table": path, "test_fraction": 0.0, "label_regex": pattern}
    for columns, labels in (({"path": 1}, [0, 1]), ({"path": 1, "label": 2}, [1, 0])):
        assert [clip.label for clip in read(root, columns=columns, **settings)] == labels
    assert [clip.label for clip in read(root, columns={"id": 2}, **settings)] == [1, 0]
    settings["label_regex"] = r"^(?P<label>cat)"
    with pytest.raises(ValueError, match=r"line 2: data\.label_regex .* finds nothing in 'dog/v_b"):
        read(root, columns={"path": 1}, **settings)


def test_videos_without_annotation_are_left_out_and_counted(root, said):
    database = {
        name: {"subset": "training", "duration": 5, "annotations": [{"label": label}] * bool(label)}
        for name, label in (("a", "cat"), ("b", ""), ("c", "dog"), ("d", ""))
    }
    path = table(root, json.dumps({"database": database}), "activity.json")
    assert [clip.id for clip in read(root, table=path)] == ["a", "c"]
    assert said[0] == f"VideoFolder: {path}: left out 2 videos without annotation."
    table(root, json.dumps({"database": {"b": database["b"]}}), "activity.json")
    with pytest.raises(ValueError, match=r"^table .*activity\.json: no row has a label\.$"):
        read(root, table=path)


def test_videos_that_no_row_names_are_told(root, said):
    touch(root, "a.mp4", "b.mp4", "deep/c.avi", "deep/d.mp4", "notes.txt")
    path = table(root, "path,label,split\na.mp4,cat,train\nb.mp4,dog,train\n")
    read(root, table=path)
    assert said[1] == (
        f"VideoFolder: {root}: left alone 2 videos that no labelled row names: 1 .avi, 1 .mp4 "
        f"(first: {root}/deep/c.avi)."
    )
    path.write_text("path,label,split\na.mp4,cat,train\nb.mp4,dog,train\n")
    for name in ("deep/c.avi", "deep/d.mp4"):
        (root / name).unlink()
    read(root, table=path)
    assert len(said) == 1  # what was found, and nothing else


def test_a_closed_folder_beside_the_named_videos():
    with folder_for_all() as folder:
        root = folder / "clips"
        touch(root, "a.mp4", "b.mp4", "closed/c.mp4")
        words = {"cat": "feline", "dog": "canine"}
        Card("pets", "Vet", words, {"label": "?", "rationale": "?"}).save(folder / "card.yaml")
        path = table(root, "path,label,split\na.mp4,cat,train\nb.mp4,dog,train\n")
        (root / "closed").chmod(0)
        data = video_folder(root, table=path)
        with without_rights():
            clips = data.read()
            data.note_unused_files(clip.path for clip in clips)
    assert len(clips) == 2
    assert data.notes[1] == (
        "VideoFolder: videos without annotation are not counted: "
        f"Folder {root}/closed cannot be listed: Permission denied."
    )


def test_table_with_a_column_map(root, said):
    touch(root, "-x/Any name.webm", "y.mp4")
    path = table(
        root,
        "\ufeff,youtube_id,category,set,from,to,title,why,link\r\n"
        '7,-x,cat,train,1.5,9,"Hi, you",A cat purrs.,https://x\r\n'
        "8,y,canine,valid,,,,,\r\n"
        "9,z,dog,train,,4,,,\r\n",
    )
    columns = {
        "id": "youtube_id",
        "label": "category",
        "split": "set",
        "start": "from",
        "end": "to",
        "text": "title",
        "reference": "why",
        "url": "link",
    }
    clips = read(root, table=path, columns=columns)
    assert brief(clips) == [("-x", "cat", "train"), ("y", "dog", "val"), ("z", "dog", "train")]
    assert [clip.path.name for clip in clips] == ["Any name.webm", "y.mp4", "z.mp4"]
    first, second, third = clips
    assert (first.start, first.end, first.text) == (1.5, 9.0, "Hi, you")
    assert (first.reference, first.url) == ("A cat purrs.", "https://x")
    assert (second.start, second.end, second.text) == (None, None, "")
    assert (second.reference, second.url) == (None, None)
    assert (third.start, third.end) == (None, 4.0)
    assert said == [f"VideoFolder: table {path}: 3 clips (2 train, 1 val)."]


def test_table_of_paths(root):
    text = f"video\tlabel\na/b c.mp4\tcat\n{root}/d.mkv\tdog\n"
    clips = read(root, table=table(root, text, "t.tsv"), test_fraction=0.0)
    assert brief(clips) == [("a/b c", "cat", "train"), ("d", "dog", "train")]
    assert clips[1].path == root / "d.mkv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,tag\na.mp4,cat\n",
            r"line 2: no column is known as the label; .* 'path', 'tag'\. Nam",
        ),
        ("file,label\na.mp4,cat\n", r"no column is known as the path; .*data\.columns\.path"),
        (
            "path,label\na.mp4,cow\n",
            r"table\.csv, line 2: label 'cow' is no class of card 'pets'; al",
        ),
        ("path,label\na.mp4,\n", r"table\.csv, line 2: label '' is no class"),
        (
            "path,label\na.mp4,cat|dog\n",
            r"line 2: label 'cat\|dog' is a list of classes, but with card 'pets'",
        ),
        ("path,label\na.mp4,cat\na.mp4,dog\n", r"line 3: id 'a' stands twice \(first: .*line 2\)"),
        ("id,label\n,cat\n", r"table\.csv, line 2: id is empty; every row needs one\."),
        (
            "path,label\n../a.mp4,cat\n",
            r"line 2: '\.\./a\.mp4' is no path below .*clips; ids and p",
        ),
        ("path,label\n/etc/a.mp4,cat\n", r"line 2: '/etc/a\.mp4' is no path below"),
        ("id,label\n../a,cat\n", r"table\.csv, line 2: '\.\./a' is no path below"),
        ("id,label,split\na,cat,tarin\n", r"line 2: split 'tarin' is unknown; allowed are train"),
        (
            "id,label,split\na,cat,train\nb,dog,\n",
            r"line 3: split is empty; 1 other clips have one",
        ),
        (
            "id,label,start\na,cat,-1\n",
            r"line 2: start -1\.0 and end None must be seconds with 0 <=",
        ),
        ("id,label,start,end\na,cat,3,2\n", r"line 2: start 3\.0 and end 2\.0 must be seconds"),
        ("id,label,end\na,cat,1:30\n", r"line 2: end is '1:30'; it must be a number of seconds"),
    ],
)
def test_bad_tables(root, text, message):
    with pytest.raises(ValueError, match=message):
        read(root, table=table(root, text))


def test_multi_label_lists(root):
    text = json.dumps({"path": "a.mp4", "label": ["cat", "dog"]})
    with pytest.raises(ValueError, match=r"line 1: label \['cat', 'dog'\] is a list of classes"):
        read(root, table=table(root, text, "t.jsonl"))


def test_mapped_columns_must_be_there(root):
    path = table(root, "path,label\na.mp4,cat\n")
    with pytest.raises(
        ValueError, match=r"table\.csv, line 2: column 'tag' is missing; the columns"
    ):
        read(root, table=path, columns={"label": "tag"})
    with pytest.raises(
        ValueError, match=r"data\.columns has the key 'lable'; allowed are id, path"
    ):
        video_folder(root, table=path, columns={"lable": "tag"})


# Conversations


def record(name, answer, **more):
    turns = [{"from": "human", "value": "<video>\n?"}, {"from": "gpt", "value": answer}]
    return {"video": name, "conversations": turns, **more}


def test_conversations(root, said):
    records = [record("x/a.mp4", "Feline."), record(f"{root}/b.mp4", "dog", id=7)]
    path = table(root, json.dumps(records), "llava.json")
    clips = read(root, table=path, test_fraction=0.0)
    assert brief(clips) == [("x/a", "cat", "train"), ("7", "dog", "train")]
    assert [clip.path for clip in clips] == [root / "x/a.mp4", root / "b.mp4"]
    assert said == [f"VideoFolder: conversations {path}: 2 clips (2 train)."]


def test_swift_lines_with_splits(root):
    messages = [
        {"role": "user", "content": "<video>?"},
        {"role": "assistant", "content": "canine"},
    ]
    lines = [
        json.dumps({"messages": messages, "videos": [f"{split}.mp4"], "split": split})
        for split in ("test", "validation")
    ]
    clips = read(root, table=table(root, "\n".join(lines), "swift.jsonl"))
    assert brief(clips) == [("test", "dog", "test"), ("validation", "dog", "val")]


def test_bad_conversations(root):
    path = table(root, json.dumps([record("a.mp4", "cat"), {"video": "b.mp4"}]), "llava.json")
    with pytest.raises(
        ValueError, match=r"llava\.json, item 2: no key 'conversations', 'messages' or 'query'"
    ):
        read(root, table=path)
    path = table(root, json.dumps([record("../a.mp4", "cat")]), "llava.json")
    with pytest.raises(ValueError, match=r"llava\.json, item 1: '\.\./a\.mp4' is no path below"):
        read(root, table=path)
    path = table(root, json.dumps([record("a.mp4", "A cat sleeps.")]), "llava.json")
    with pytest.raises(
        ValueError, match=r"item 1, last assistant turn: label 'A cat sleeps\.' is no"
    ):
        read(root, table=path)


# Labels in file names


def test_label_regex(root, said):
    touch(root, "v=1#00_label_cat.mp4", "x/v2_label_dog-0-0.mp4")
    clips = read(root, label_regex=r"_label_(?P<label>[a-z]+)", test_fraction=0.0)
    assert brief(clips) == [
        ("v=1#00_label_cat", "cat", "train"),
        ("x/v2_label_dog-0-0", "dog", "train"),
    ]
    assert said[-1].startswith(f"VideoFolder: labels in file names of {root}: 2 clips")


def test_label_regex_under_splits(root):
    touch(root, "train/cat1.mp4", "train/dog1.mp4", "test/dog1.mp4")
    clips = read(root, label_regex=r"(?P<label>[a-z]+)\d")
    assert [clip.split for clip in clips] == ["test", "train", "train"]


def test_bad_label_regex(root):
    touch(root, "cat1.mp4", "Dog.mp4")
    with pytest.raises(
        ValueError, match=r"Dog\.mp4: data\.label_regex .* finds nothing in the file"
    ):
        read(root, label_regex=r"^(?P<label>[a-z]+)\d")
    with pytest.raises(ValueError, match=r"label_regex '\(cat' cannot be parsed: missing \)"):
        video_folder(root, label_regex="(cat")
    with pytest.raises(ValueError, match=r"label_regex '\(cat\)' has no group 'label'; write"):
        video_folder(root, label_regex="(cat)")


# Split lists


def test_split_lists(root):
    touch(root, "cat/a.mp4", "cat/b.mp4", "dog/c.mp4", "dog/d.mp4")
    lists = root.parent / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("cat/a.mp4\ndog/c\n")
    (lists / "test.txt").write_text("dog/d.mp4\n")
    assert brief(read(root, split_file=lists)) == [
        ("cat/a", "cat", "train"),
        ("cat/b", "cat", "excluded"),
        ("dog/c", "dog", "train"),
        ("dog/d", "dog", "test"),
    ]
    (lists / "val.txt").write_text("dog/d\n")
    with pytest.raises(ValueError, match=r"lists: id 'dog/d' stands twice"):
        read(root, split_file=lists)
    (lists / "val.txt").write_text("dog/e.mp4\n")
    with pytest.raises(ValueError, match=r"1 of 4 ids are not in the annotations \(first: 'dog/e'"):
        read(root, split_file=lists)


# Settings


def test_bad_settings(root):
    with pytest.raises(
        ValueError, match=r"VideoFolder needs data\.card, .* Run: python -m rbft init"
    ):
        VideoFolder(root=root, **SETTINGS)
    with pytest.raises(ValueError, match=r"data\.test_fraction \(1\.5\) must be from 0 to 1\."):
        video_folder(root, test_fraction=1.5)
    with pytest.raises(ValueError, match=r"Folder none cannot be listed: No such file"):
        VideoFolder(root=Path("none"), card=root.parent / "card.yaml", **SETTINGS).read()


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_mutated_tables_raise_nothing_but_value_errors(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "mutated_folder/clips"
    root.mkdir(parents=True, exist_ok=True)
    words = {"cat": "feline", "dog": "canine"}
    Card("pets", "Vet", words, {"label": "?", "rationale": "?"}).save(root.parent / "card.yaml")
    rows = [
        {"id": f"{i}", "path": f"{i}.mp4", "label": CLASSES[i % 2], "start": i, "end": i + 1.5}
        for i in range(6)
    ]
    texts = {
        "t.csv": "\n".join(",".join(map(str, row)) for row in [rows[0], *map(dict.values, rows)]),
        "t.jsonl": "\n".join(map(json.dumps, rows)),
        "t.json": json.dumps([record(f"{i}.mp4", CLASSES[i % 2], id=i) for i in range(6)]),
        "t.txt": "\n".join(f"{i}.mp4 {i % 2}" for i in range(6)),
        "activity.json": json.dumps(
            {
                "database": {
                    str(i): {
                        "subset": "training",
                        "annotations": [{"label": CLASSES[i % 2], "segment": [i, i + 1.5]}],
                    }
                    for i in range(6)
                }
            }
        ),
    }
    kinds = {
        "t.csv": {"columns": {"path": "{label}/{id}_{start:03d}.mp4"}},
        "t.txt": {
            "columns": {"path": 1, "label": 2},
            "class_list": root.parent / "classes.txt",
        },
        "activity.json": {"columns": {"path": "v_{id}.mp4"}},
    }
    (root.parent / "classes.txt").write_text("cat\ndog\n")
    name = data.draw(st.sampled_from(sorted(texts)))
    content = texts[name].encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + 12)))
        edit = data.draw(
            st.sampled_from(
                [b"", b"\n", b",", b'"', b"\\ud800", b"\0", b"../", b"[", b"{}", b"null"]
            )
            | st.binary(max_size=3)
        )
        content = content[:start] + edit + content[stop:]
    (root.parent / name).write_bytes(content)
    try:
        clips = read(
            root,
            table=root.parent / name,
            test_fraction=0.34,
            repeats=data.draw(st.sampled_from(["error", "segments", "votes"])),
            **kinds.get(name, {}),
        )
    except ValueError:
        return
    assert len({clip.id for clip in clips}) == len(clips) > 0
    for clip in clips:
        assert clip.path.is_relative_to(root)
        assert ".." not in clip.path.parts


@pytest.mark.parametrize("inside", [True, False])
def test_paths_that_hold_the_root_already(root, monkeypatch, inside):
    """Such as `clips/a.mp4` below clips, which would be clips/clips/a.mp4."""
    rows = [f"clips/{name}.mp4,{label}" for label in CLASSES for name in (f"{label}1", f"{label}2")]
    (root.parent / "t.csv").write_text("\n".join(["path,label", *rows]))
    touch(root, *(row.partition("/")[2].partition(",")[0] for row in rows))
    if inside:
        monkeypatch.chdir(root.parent)
    with pytest.raises(ValueError, match=r"counts from data\.root") as error:
        read(root, table=root.parent / "t.csv", test_fraction=0.5)
    base = Path() if inside else root.parent
    assert str(error.value).endswith(
        f": path 'clips/cat1.mp4' counts from data.root ({root}), and there is no "
        f"{root}/clips/cat1.mp4; but there is {base / 'clips/cat1.mp4'}. Set data.root to {base}, "
        "or leave the folder out of the paths."
    )
    touch(root, "clips/dog2.mp4")  # one that is there says that the root is meant
    assert len(read(root, table=root.parent / "t.csv", test_fraction=0.5)) == 4


# Several classes a clip


@pytest.fixture
def several(root):
    words = {"cat": "feline", "dog": "canine"}
    prompts = {"label": "{word}?", "rationale": "?"}
    answers = {"yes": "yes", "no": "no"}
    Card("pets", "Vet", words, prompts, answers).save(root.parent / "card.yaml")
    return root


def labels(clips):
    return {clip.id: (clip.label, clip.labels, clip.split) for clip in clips}


def test_a_table_with_several_classes_a_clip(several, said):
    rows = "path,labels,split\na.mp4,cat;canine,train\nb.mp4,,test\nc.mp4,dog,train\n"
    expected = {
        "a": (None, (0, 1), "train"),
        "b": (None, (), "test"),
        "c": (None, (1,), "train"),
    }
    assert labels(read(several, table=table(several, rows))) == expected
    assert said[0].endswith("table.csv: 3 clips (2 train, 1 test), 1 with none of the classes.")
    lines = [
        {"path": "a.mp4", "label": ["dog", "cat"], "split": "train"},
        {"path": "b.mp4", "label": [], "split": "test"},
        {"path": "c.mp4", "label": ["canine"], "split": "train"},
    ]
    text = "\n".join(map(json.dumps, lines))
    assert labels(read(several, table=table(several, text, "t.jsonl"))) == expected
    numbers = table(several, "path,label,split\na.mp4,0|1,train\nb.mp4,,test\nc.mp4,1,train\n")
    names = table(several, "cat\ndog\n", "names.txt")
    assert labels(read(several, table=numbers, class_list=names)) == expected


def test_classes_in_several_rows(several, said):
    rows = "path,label,start,end\na.mp4,cat,0,5\na.mp4,dog,0,5\na.mp4,cat,5,9\nb.mp4,dog,,\n"
    found = read(several, table=table(several, rows), repeats="labels", test_fraction=0.0)
    assert labels(found) == {
        "a_0_5": (None, (0, 1), "train"),
        "a_5_9": (None, (0,), "train"),
        "b": (None, (1,), "train"),
    }
    assert said[0] == "VideoFolder: 4 rows with the classes of 3 clips."
    with pytest.raises(ValueError, match=r"id 'b' stands twice .* or labels \(of a clip with sev"):
        read(several, table=table(several, "path,label\nb.mp4,dog\nb.mp4,cat\n"))


def test_classes_in_file_names(several):
    touch(several, "train/1_cat,dog.mp4", "test/2_.mp4", "train/3_dog.mp4")
    found = read(several, label_regex=r"_(?P<label>.*)\.mp4")
    assert [clip.labels for clip in found] == [(), (0, 1), (1,)]


def test_splits_by_hash_keep_the_shares_of_the_rarest_classes(several):
    """Clips with a rare class are parted by it, whatever else they have."""
    rows = [f"r{n}.mp4,dog;cat" for n in range(10)] + [f"c{n}.mp4,cat" for n in range(20)]
    rows += [f"n{n}.mp4," for n in range(10)]
    text = "path,label\n" + "\n".join(rows) + "\n"
    found = read(several, table=table(several, text), test_fraction=0.2)
    assert Counter((clip.labels, clip.split) for clip in found) == {
        ((0, 1), "train"): 8,
        ((0, 1), "test"): 2,
        ((0,), "train"): 16,
        ((0,), "test"): 4,
        ((), "train"): 8,
        ((), "test"): 2,
    }


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        (
            ["cat/a.mp4"],
            {},
            "A folder for each class (ROOT) needs clips of one class, but card 'pets' has the key "
            "several: its clips may have several classes, or none. Name the classes of each clip "
            "in a table (data.table).",
        ),
        (
            [],
            {"table": "path,label\na.mp4,cat\n", "repeats": "votes"},
            "data.repeats votes needs clips of one class, but card 'pets' has the key several: its "
            "clips may have several classes, or none.",
        ),
        (
            [],
            {"table": "path,n_cat,n_dog\na.mp4,1,0\n", "columns": {"votes": "n_{label}"}},
            "data.columns.votes needs clips of one class, but card 'pets' has the key several: its "
            "clips may have several classes, or none.",
        ),
        (
            [],
            {"table": "path,label\na.mp4,cat\n"},
            "TABLE: class 'dog' has no training clip (0 in validation and test); the training "
            "split has 1 cat, 0 dog. Add clips, or take the class off the card's words.",
        ),
    ],
)
def test_what_several_classes_cannot_be(several, files, settings, message):
    touch(several, *files)
    given = {"test_fraction": 0.0, **settings}
    path = several.parent / "table.csv"
    if "table" in given:
        given["table"] = table(several, given["table"])
    with pytest.raises(ValueError, match="class") as error:
        read(several, **given)
    assert str(error.value) == message.replace("ROOT", str(several)).replace(
        "TABLE", f"table {path}"
    )


def test_conversations_have_one_class(several):
    line = {"messages": [{"role": "user", "content": "<video>?"}], "videos": ["a.mp4"]}
    with pytest.raises(ValueError, match="key several") as error:
        read(several, table=table(several, json.dumps(line), "talk.jsonl"))
    assert str(error.value) == (
        f"{several.parent / 'talk.jsonl'}, line 1: a conversation needs clips of one class, but "
        "card 'pets' has the key several: its clips may have several classes, or none. Name the "
        "classes of each clip in a table (data.table)."
    )


def test_rows_with_classes_need_a_card_that_lets_clips_have_several(root):
    with pytest.raises(ValueError, match=r"data\.repeats labels") as error:
        read(root, table=table(root, "path,label\na.mp4,cat\n"), repeats="labels")
    assert str(error.value) == (
        "data.repeats labels gives a clip the classes of all its rows, but with card 'pets' a clip "
        "has one. Add the key several to the card (docs/own_clips.md), or set data.repeats to "
        "segments or votes."
    )


def test_a_validation_split_of_clips_with_several_classes(several):
    rows = [f"r{n}.mp4,dog;cat" for n in range(10)] + [f"c{n}.mp4,cat" for n in range(10)]
    text = "path,label\n" + "\n".join(rows) + "\n"
    data = video_folder(several, table=table(several, text), test_fraction=0.0, val_fraction=0.2)
    counts = Counter((clip.labels, clip.split) for clip in data.all_clips)
    assert counts[(0, 1), "val"] == counts[(0,), "val"] == 2
