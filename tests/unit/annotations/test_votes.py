import re

import pytest

from rbft.annotations.tables import TableRow
from rbft.annotations.votes import VoteColumns, leading
from rbft.card import Card

CARD = Card(
    "pets",
    "Vet",
    {"cat": "feline", "dog": "canine", "owl": "owl"},
    {"label": "?", "rationale": "?"},
)


def read(given, **values):
    return VoteColumns(given, CARD).read(TableRow("a.csv, line 2", values))


@pytest.mark.parametrize(
    ("given", "values", "votes"),
    [
        ({"cat": "c", "canine": "d", "owl": "o"}, {"c": "2", "d": " 1 ", "o": ""}, (2, 1, 0)),
        ({"dog": "d", "cat": "c", "owl": "o"}, {"c": 0.5, "d": 1, "o": None}, (0.5, 1, 0)),
        ({"cat": 2, "dog": 3, "owl": 4}, {"1": "x", "2": "1", "3": "0", "4": "5"}, (1, 0, 5)),
        ("n_{label}", {"n_cat": "1", "n_canine": "2", "n_owl": "0"}, (1, 2, 0)),
        (["a", "b", "c"], {"a": "cat", "b": "Feline.", "c": "dog"}, (2, 1, 0)),
        (["a", "b", "c"], {"a": "owl", "b": " ", "c": None}, (0, 0, 1)),
        ([1, 2], {"1": "cat", "2": "dog"}, (1, 1, 0)),
        ("v", {"v": '{"cat": 3, "canine": 1}'}, (3, 1, 0)),
        ("v", {"v": {"owl": 2, "dog": None}}, (0, 0, 2)),
        ("v", {"v": '["cat", "dog", "cat"]'}, (2, 1, 0)),
        ("v", {"v": "['cat', 'dog']"}, (1, 1, 0)),
        ("v", {"v": ["owl", "owl"]}, (0, 0, 2)),
        (3, {"3": "['owl']"}, (0, 0, 1)),
        ("v", {"v": ""}, None),
        ("v", {"v": "[]"}, None),
        ("v", {"v": None}, None),
        (["a"], {"a": ""}, None),
        ("n_{label}", {"n_cat": "0", "n_dog": "", "n_owl": 0}, None),
    ],
)
def test_forms(given, values, votes):
    assert read(given, **values) == votes


@pytest.mark.parametrize(
    ("given", "values", "message"),
    [
        (
            "n_{label}",
            {"n_cat": 1, "n_owl": 1},
            "a.csv, line 2: column 'n_dog' (data.columns.votes) is missing; the columns there are "
            "'n_cat', 'n_owl'.",
        ),
        (
            ["a", "b"],
            {"a": "cat"},
            "a.csv, line 2: column 'b' (data.columns.votes) is missing; the columns there are 'a'.",
        ),
        (
            "n_{label}",
            {"n_cat": "two", "n_dog": 1, "n_owl": 1},
            "a.csv, line 2: n_cat is 'two'; a number of votes must be 0 or more, or empty.",
        ),
        (
            {"cat": "c", "dog": "d", "owl": "o"},
            {"c": 1, "d": -1, "o": 1},
            "a.csv, line 2: d is -1; a number of votes must be 0 or more, or empty.",
        ),
        (
            "v",
            {"v": '{"cat": true}'},
            "a.csv, line 2, v: cat is True; a number of votes must be 0 or more, or empty.",
        ),
        (
            "v",
            {"v": {"cat": float("inf")}},
            "a.csv, line 2, v: cat is inf; a number of votes must be 0 or more, or empty.",
        ),
        ("v", {"v": '["cow"]'}, "a.csv, line 2, v: label 'cow' is no class of card 'pets'"),
        (["a"], {"a": "cow"}, "a.csv, line 2, a: label 'cow' is no class of card 'pets'"),
        (
            "v",
            {"v": "2 cats"},
            "a.csv, line 2, v is '2 cats'; it must hold the votes as an object of counts, such as "
            '{"cat": 2}, or as a list of labels, such as ["cat"].',
        ),
        ("v", {"v": "7"}, "a.csv, line 2, v is '7'; it must hold the votes as an object of counts"),
    ],
)
def test_rows_that_cannot_be_counted(given, values, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read(given, **values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"cat": "c", "dog": "d"},
            "data.columns.votes has no column for owl; the classes are cat, dog, owl. Name a "
            "column of counts for each of them, once.",
        ),
        (
            {"cat": "c", "feline": "f", "dog": "d", "owl": "o"},
            "data.columns.votes has a class twice; the classes are cat, dog, owl.",
        ),
        ({"cow": "c"}, "data.columns.votes: label 'cow' is no class of card 'pets'"),
        ([], "data.columns.votes is []; it must be a column of counts for each class"),
        ([0], "data.columns.votes is [0]; it must be a column of counts for each class"),
        (" ", "data.columns.votes is ' '; it must be a column of counts for each class"),
    ],
)
def test_settings_that_name_no_votes(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        VoteColumns(given, CARD)


def test_who_leads():
    assert leading((1.0, 3.0, 2.0)) == [1]
    assert leading((2.0, 0.0, 2.0)) == [0, 2]


def test_places_mean_no_header():
    assert VoteColumns([1, 2], CARD).has_places
    assert not VoteColumns("n_{label}", CARD).has_places
