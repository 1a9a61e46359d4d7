import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.data.card import Card
from rbft.data.videofolder import VideoFolder

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
        f"VideoFolder: {root}: left 1 files alone that are no videos (first: {notes}).",
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


def test_a_test_folder_alone_is_enough_for_scoring(root):
    touch(root, "test/cat/a.mp4")
    assert brief(read(root)) == [("test/cat/a", "cat", "test")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"clips holds no video \(0 other files\)\. Expected are a folder per class"),
        (["cat/a.gif"], r"clips holds no video \(1 other files\)"),
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
        (["cat/a.mp4", "cat/a.webm"], r"a\.webm: id 'cat/a' stands twice \(first: .*/cat/a\.mp4\)"),
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
    with pytest.raises(ValueError, match=r"cat/b\.mp4 is a symbolic link out of"):
        read(root)
    path = table(root, "path,label\ncat/b.mp4,cat\n")
    with pytest.raises(
        ValueError, match=r"table\.csv, line 2: .*cat/b\.mp4 is a symbolic link out"
    ):
        read(root, table=path)


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
        ValueError, match=r"metadata\.csv, line 2: column 'file_name' is missing; th"
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


# Tables


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
            r"line 2: label 'cat\|dog' is a list of classes\. Clips wit",
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
        ValueError, match=r"llava\.json, item 2: no key 'conversations' or 'messages'"
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
    touch(root, "../t.csv")
    with pytest.raises(ValueError, match=r"data\.table and data\.label_regex both say"):
        video_folder(root, label_regex="(?P<label>.)", table=root.parent / "t.csv")


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
    }
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
        clips = read(root, table=root.parent / name, test_fraction=0.34)
    except ValueError:
        return
    assert len({clip.id for clip in clips}) == len(clips) > 0
    for clip in clips:
        assert clip.path.is_relative_to(root)
        assert ".." not in clip.path.parts
