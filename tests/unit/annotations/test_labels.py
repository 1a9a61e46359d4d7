import re
from functools import partial
from pathlib import Path

import pytest

from rbft.annotations.labels import match_label, match_labels, name_class, read_class_list
from rbft.card import Card

CARD = Card(
    "t", "p", {"normal": "safe", "B1": "fight", "1": "one"}, {"label": "?", "rationale": "?"}
)


@pytest.mark.parametrize(
    ("value", "label"), [("normal", 0), (" safe ", 0), ("Fight.", 1), ("B1", 1), (1, 2), ("1", 2)]
)
def test_names_then_words(value, label):
    assert match_label(value, CARD, "x") == label


@pytest.mark.parametrize(
    "value", ["", "Normal", "not safe", "normal, so", "B-2", None, True, 1.5, {"a": 1}]
)
def test_unknown(value):
    message = (
        f"a.csv, line 3: label {value!r} is no class of card 't'; "
        "allowed are normal ('safe'), B1 ('fight'), 1 ('one'). Correct the label"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        match_label(value, CARD, "a.csv, line 3")


SCALE = Card(
    "t",
    "p",
    {"calm": "calm", "2": "so so", "wild": "wild"},
    {"label": "?", "rationale": "?"},
    values={"calm": 1, "2": 2.5, "wild": 3},
)


@pytest.mark.parametrize(
    ("value", "label"), [(1, 0), ("1.0", 0), (" 2.50 ", 1), ("2", 1), (3.0, 2), ("so so", 1)]
)
def test_names_then_words_then_values(value, label):
    assert match_label(value, SCALE, "x") == label


@pytest.mark.parametrize("value", [2.4, "4", "nan", True])
def test_numbers_between_the_levels(value):
    message = (
        f"x: label {value!r} is no class of card 't'; allowed are calm = 1, 2 ('so so') = 2.5, "
        "wild = 3. Correct the label"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        match_label(value, SCALE, "x")


@pytest.mark.parametrize("value", [["normal"], ["normal", "B1"], "normal, B1", "B1-1", "B1|normal"])
def test_several_labels(value):
    with pytest.raises(ValueError, match="is a list of classes") as error:
        match_label(value, CARD, "a.csv, line 3")
    assert str(error.value) == (
        f"a.csv, line 3: label {value!r} is a list of classes, but with card 't' a clip has one. "
        "Give it one class of the card, leave the clip out, or let clips have several by the "
        "card's key several (docs/own_clips.md)."
    )


ALL = Card(
    "t",
    "p",
    {"normal": "safe, so far", "B1": "fight", "1": "one"},
    {"label": "{word}?", "rationale": "?"},
    several={"yes": "yes", "no": "no"},
)


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ([], ()),
        ("", ()),
        (" ", ()),
        ("normal", (0,)),
        ("safe, so far", (0,)),  # a word is whole before it is parted
        ("fight; normal", (0, 1)),
        ("B1|1,normal", (0, 1, 2)),
        ("B1; B1;", (1,)),
        ([1, "Fight."], (1, 2)),
        (["normal"], (0,)),
        (1, (2,)),
    ],
)
def test_all_classes_of_a_clip(value, labels):
    assert match_labels(value, ALL, "x") == labels


def test_all_classes_by_number(tmp_path):
    names = {"0": "normal", "7": "B1"}
    named = partial(name_class, names=names, path=tmp_path / "list.txt", where="x")
    assert match_labels("7, 0", ALL, "x", named) == (0, 1)
    assert match_labels([], ALL, "x", named) == ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            None,
            "x: there is no label. Write an empty list for a clip with none of the classes, or "
            "leave the clip out.",
        ),
        (
            "normal; B2",
            "x: label 'B2' is no class of card 't'; allowed are normal ('safe, so far'), B1 "
            "('fight'), 1 ('one'). Correct the label or add the class to the card's words.",
        ),
    ],
)
def test_labels_that_are_none(value, message):
    with pytest.raises(ValueError, match=r"^x: ") as error:
        match_labels(value, ALL, "x")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("classInd.txt", "1 ApplyEyeMakeup\n2 Archery\n", {"1": "ApplyEyeMakeup", "2": "Archery"}),
        ("ids.txt", "Abuse 1\nNormal_Videos_event 8\n", {"1": "Abuse", "8": "Normal_Videos_event"}),
        ("label_map.txt", "abseiling\nair drumming\n\n", {"0": "abseiling", "1": "air drumming"}),
        ("kinetics.csv", 'id,name\n0,abseiling\n1,"air drumming"\n',
         {"0": "abseiling", "1": "air drumming"}),
        ("wind.txt", "\ufeff001\tair drumming\r\n002\tdog\r\n", {"1": "air drumming", "2": "dog"}),
        ("labels.json", '{"Closing something": "0", "Holding [something]": 1}',
         {"0": "Closing something", "1": "Holding [something]"}),
        ("labels.json", '{"0": "cat", "1": "dog"}', {"0": "cat", "1": "dog"}),
        ("labels.json", '["cat", "dog"]', {"0": "cat", "1": "dog"}),
    ],
)  # fmt: skip
def test_class_lists(tmp_path, name, text, names):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_list(tmp_path / name) == names


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n", r"^data\.class_list .*a\.txt names no class\.$"),
        ("a.txt", "1 cat\n1 dog\n", r"a\.txt: number 1 stands for 'cat' and for 'dog'\. Keep one"),
        (
            "a.json",
            '{"cat": "x"}',
            r"a\.json must be a list of names, or an object of names and num",
        ),
        ("a.json", "[1]", r"must be a list of names, or an object of names and numbers; got \[1\]"),
        ("a.json", "[", r"a\.json: no valid JSON"),
    ],
)
def test_bad_class_lists(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_class_list(tmp_path / name)


def test_names_behind_numbers():
    names, path = {"1": "cat", "2": "Holding something"}, Path("c.txt")
    for value in (1, "1", " 01 ", "cat"):
        assert name_class(value, names, path, "x") == "cat"
    assert name_class("Holding [something]", names, path, "x") == "Holding [something]"
    for value in (3, "cow", None, [1], "-1", "9" * 30):
        with pytest.raises(
            ValueError, match=r"^line 3: label .* is not in data\.class_list c\.txt"
        ):
            name_class(value, names, path, "line 3")
    with pytest.raises(ValueError, match=r"2 classes, from 1 \('cat'\) to 2 \('Holding somethi"):
        name_class(3, names, path, "x")


def test_templates_mean_the_class_without_brackets():
    words = {"Closing something": "closing", "Holding something": "holding something"}
    card = Card("t", "p", words, {"label": "?", "rationale": "?"})
    assert match_label("Closing [something]", card, "x") == 0
    assert match_label("holding [something].", card, "x") == 1
    with pytest.raises(ValueError, match=r"label 'Moving \[something\]' is no class"):
        match_label("Moving [something]", card, "x")
