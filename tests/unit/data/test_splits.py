import re
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.data.splits import (
    check_classes,
    check_known,
    count_classes,
    empty_classes,
    hold_out,
    read_splits,
    split_by_hash,
    split_name,
    strata,
)


@dataclass(frozen=True)
class Row:
    id: str
    label: int | None
    split: str = "train"
    labels: tuple[int, ...] | None = None


def rows(*counts):
    return [Row(f"{label}-{i}", label) for label, n in enumerate(counts) for i in range(n)]


def test_counts_are_exact_per_class():
    ids, labels = [f"c{i}" for i in range(1023)], ["n"] * 378 + ["a"] * 556 + ["v"] * 89
    splits = split_by_hash(ids, labels, {"train": 0.8, "test": 0.2})
    counts = Counter((splits[clip_id], label) for clip_id, label in zip(ids, labels, strict=True))
    assert counts == {
        ("train", "n"): 302,
        ("test", "n"): 76,
        ("train", "a"): 445,
        ("test", "a"): 111,
        ("train", "v"): 71,
        ("test", "v"): 18,
    }


def test_the_split_never_changes():
    ids = [f"c{i}" for i in range(10)]
    splits = split_by_hash(ids, [0] * 10, {"train": 0.7, "val": 0.1, "test": 0.2})
    assert [i for i in ids if splits[i] == "test"] == ["c1", "c8"]
    assert [i for i in ids if splits[i] == "val"] == ["c7"]
    other = split_by_hash(ids, [0] * 10, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=1)
    assert other != splits


@settings(max_examples=100, deadline=None)
@given(data=st.data(), labels=st.dictionaries(st.text(), st.integers(0, 2), max_size=30))
def test_the_input_order_does_not_matter_and_nothing_is_lost(data, labels):
    share = data.draw(st.floats(0, 1))
    shuffled = data.draw(st.permutations(list(labels)))
    fractions = {"train": 1 - share, "test": share}
    splits = split_by_hash(list(labels), list(labels.values()), fractions)
    assert splits == split_by_hash(shuffled, [labels[i] for i in shuffled], fractions)
    assert splits.keys() == labels.keys()
    for label, n in Counter(labels.values()).items():
        n_test = sum(splits[i] == "test" for i in labels if labels[i] == label)
        assert abs(n_test - share * n) <= 0.5 + 1e-6


def test_shares_must_sum_to_one():
    with pytest.raises(ValueError, match=re.escape("sum to 1; got [0.8, 0.3].")):
        split_by_hash([], [], {"train": 0.8, "test": 0.3})
    with pytest.raises(ValueError, match=re.escape("0 or more and sum to 1; got [1.5, -0.5].")):
        split_by_hash([], [], {"train": 1.5, "test": -0.5})


def test_carve_moves_a_stratified_share_of_train_only():
    clips = [*rows(40, 20), Row("t", 0, "test"), Row("p", None, "private")]
    carved = hold_out(clips, 0.1, seed=3)
    assert [clip.id for clip in carved] == [clip.id for clip in clips]
    assert Counter((clip.split, clip.label) for clip in carved) == {
        ("train", 0): 36,
        ("val", 0): 4,
        ("train", 1): 18,
        ("val", 1): 2,
        ("test", 0): 1,
        ("private", None): 1,
    }
    backwards = hold_out(clips[::-1], 0.1, seed=3)
    assert sorted(carved, key=lambda c: c.id) == sorted(backwards, key=lambda c: c.id)


def test_carve_refuses_nonsense():
    with pytest.raises(
        ValueError, match=r"\(0\.1\) of 4 training clips leaves 4 to train and 0 to"
    ):
        hold_out(rows(2, 2), 0.1)
    with pytest.raises(
        ValueError, match=r"\(0\.9\) of 2 training clips leaves 0 to train and 2 to"
    ):
        hold_out(rows(1, 1), 0.9)
    clips = [*rows(9, 9), Row("v", 0, "val")]
    with pytest.raises(
        ValueError, match=r"val_fraction is 0\.1, but there is .* of 1 clips already"
    ):
        hold_out(clips, 0.1)


def test_check_classes():
    clips = [*rows(2, 0), Row("t", 1, "test")]
    message = "here: class 'b' has no training clip (1 in validation and test); the training split"
    with pytest.raises(ValueError, match=re.escape(f"{message} has 2 a, 0 b.")):
        check_classes(clips, ("a", "b"), "here")
    check_classes([replace(clip, split="test") for clip in clips], ("a", "b", "c"), "here")


def test_classes_that_a_scored_split_has_no_clip_of():
    classes = ("a", "b", "c", "d")
    train = [Row(f"train{label}", label) for label in range(4)]
    assert empty_classes(train, classes, "here") == []
    tests = [Row(f"test{label}", label, "test") for label in range(4)]
    assert empty_classes([*train, *tests], classes, "here") == []
    assert empty_classes([*train, *tests[1:3], Row("v", 0, "val")], classes, "here") == [
        "here has no val clip of b, c, d: there is no F1 of that, and the macro F1 is the mean "
        "over a.",
        "here has no test clip of a, d: there is no F1 of that, and the macro F1 is the mean over "
        "b, c.",
    ]


@pytest.mark.parametrize("header", ["Title,split", "id,split", "id,more,split"])
def test_split_tables(tmp_path, header):
    path = tmp_path / "splits.csv"
    columns = header.split(",")
    lines = [("a", "train"), ("b", "valid"), ("-c", "Test"), ("d", "absent"), ("e", "private")]
    cells = [[i, *["?"] * (len(columns) - 2), split] for i, split in lines]
    path.write_text("\n".join([header, *map(",".join, cells)]))
    assert read_splits(path) == {
        "a": "train",
        "b": "val",
        "-c": "test",
        "d": "excluded",
        "e": "private",
    }


def test_split_lists(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\nb c\r\n\r\n")
    (tmp_path / "valid.txt").write_text("d")
    assert read_splits(tmp_path) == {"a": "train", "b c": "train", "d": "val"}


def test_bad_splits(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("id,split\na,train\na,test\n")
    with pytest.raises(ValueError, match=r"splits\.csv, line 3: id 'a' stands twice"):
        read_splits(path)
    path.write_text("name,split\na,train\n")
    with pytest.raises(
        ValueError, match=r"line 2: no column 'id' or 'Title'; .* 'name', 'split'\."
    ):
        read_splits(path)
    path.write_text("id,split\na,trian\n")
    with pytest.raises(
        ValueError, match=r"line 2: split 'trian' is unknown; allowed are train, tr"
    ):
        read_splits(path)
    folder = tmp_path / "lists"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"lists holds no id lists; expected are train\.txt"):
        read_splits(folder)
    (folder / "train.txt").write_text("a\n")
    (folder / "test.txt").write_text("b\na\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 1: id 'a' stands twice \(first: .*te"):
        read_splits(folder)
    (folder / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"readme\.txt: split 'readme' is unknown"):
        read_splits(folder)


def test_check_known(tmp_path):
    message = "data.split_file s.csv: 1 of 2 ids are not in the annotations (first: 'x'; an id ther"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_known({"a": "train", "x": "test"}, ["a", "b"], type(tmp_path)("s.csv"))


def test_split_names():
    assert split_name("Validation", "") == "val"


def several(*labels):
    return [Row(f"c{n}", None, labels=own) for n, own in enumerate(labels)]


def test_clips_with_several_classes_are_stratified_by_their_rarest():
    labels = [(0, 1), (0,), (0,), (0, 1, 2), (), (1, 2), (0, 2)]
    assert strata([None] * 7, labels) == [1, 0, 0, 1, None, 1, 2]
    assert strata([1, None, 0], [None] * 3) == [1, None, 0]
    clips = several(*[(0, 1)] * 10, *[(0,)] * 20, *[()] * 10)
    carved = hold_out(clips, 0.2)
    assert Counter((clip.split, clip.labels) for clip in carved) == {
        ("train", (0, 1)): 8,
        ("val", (0, 1)): 2,
        ("train", (0,)): 16,
        ("val", (0,)): 4,
        ("train", ()): 8,
        ("val", ()): 2,
    }


def test_a_clip_counts_for_each_of_its_classes():
    clips = [*several((0, 1), (1,), ()), Row("t", None, "test", (0,)), Row("v", None, "val", ())]
    assert count_classes(clips) == {0: 2, 1: 2}
    check_classes(clips, ("a", "b"), "here")
    with pytest.raises(ValueError, match="class 'c' has no training clip") as error:
        check_classes(clips, ("a", "b", "c"), "here")
    assert str(error.value) == (
        "here: class 'c' has no training clip (0 in validation and test); the training split has "
        "1 a, 2 b, 0 c. Add clips, or take the class off the card's words."
    )
    with pytest.raises(ValueError, match="class 'a' has no training clip"):
        check_classes(several((), ()), ("a", "b"), "here")
    assert empty_classes(clips, ("a", "b"), "here") == [
        "here has no val clip of a, b: there is no F1 of that, and no macro F1.",
        "here has no test clip of b: there is no F1 of that, and the macro F1 is the mean over a.",
    ]
