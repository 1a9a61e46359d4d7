import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.annotations.columns import Columns, fill
from rbft.annotations.tables import TableRow

ROW = TableRow("a.csv, line 2", {"id": "-Ab_c", "from": "7", "to": "12.5", "n": 3, "empty": " "})


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("id", "-Ab_c"),
        ("{id}.mp4", "-Ab_c.mp4"),
        ("{id}_{from:06d}_{n:02d}.mp4", "-Ab_c_000007_03.mp4"),
        ("{id}_{to:.2f}", "-Ab_c_12.50"),
        ("{label}/{id} {{x}}", "Sky dive/-Ab_c {x}"),
        ("{table}-{id}", "list-Ab_c".replace("list", "list-")),
    ],
)
def test_texts_of_columns(pattern, text):
    assert fill(ROW, pattern, {"label": "Sky dive", "table": "list"}) == text


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{id:06d}", "a.csv, line 2: id is '-Ab_c'; data.columns writes it as '06d' in "
         "'{id:06d}', so it must be a whole number."),
        ("{to:06d}", "to is '12.5'; data.columns writes it as '06d' in '{to:06d}', so it must be"),
        ("{id:.1f}", "id is '-Ab_c'; data.columns writes it as '.1f' in '{id:.1f}', so it must be "
         "a number."),
        ("{empty}.mp4", "a.csv, line 2: empty is empty; every row needs one."),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_made(pattern, message):
    with pytest.raises(ValueError, match=r"^a\.csv, line 2: ") as error:
        fill(ROW, pattern, {})
    assert message in str(error.value)


def test_an_empty_column_may_have_a_default():
    assert fill(ROW, "empty", {}, default="d") == "d"


def test_what_a_table_must_have():
    columns = Columns({"path": "{label}/{id}_{from:d}", "label": "class", "split": "set"})
    assert columns.needed == ["id", "from", "class", "set"]
    assert not columns.has_places
    names = columns.of(["class", "url"])
    assert names["path"] == "{label}/{id}_{from:d}"
    assert (names["label"], names["url"], names["id"]) == ("class", "url", None)
    places = Columns({"path": "{label}/{1}", "label": "{table}", "split": 2})
    assert places.needed == ["1", "2"]
    assert places.has_places
    assert Columns({"path": "{1}"}).has_places


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"lable": "x"},
            r"^data\.columns has the key 'lable'; allowed are id, path, label, split, ",
        ),
        ({"path": 0}, r"^data\.columns\.path is 0; columns count from 1\.$"),
        (
            {"path": 1, "label": "class"},
            r"^data\.columns\.label is 'class', a name, but other colum",
        ),
        (
            {"path": "{id"},
            r"^data\.columns\.path '\{id' cannot be parsed: expected '\}' before end",
        ),
        (
            {"path": "{}.mp4"},
            r"'\{\}\.mp4' cannot be parsed: write a column's name in the braces, a",
        ),
        ({"path": "{id!r}"}, r"cannot be parsed: write a column's name in the braces"),
        ({"path": "{id:{n}}"}, r"cannot be parsed: write a column's name in the braces"),
        (
            {"path": "{id:06k}"},
            r"cannot be parsed: .*An example: '\{youtube_id\}_\{time_start:06d\}",
        ),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises(ValueError, match=message):
        Columns(given)


@given(
    pattern=st.text("{}:!id06df.n ", max_size=12),
    values=st.dictionaries(st.sampled_from(["id", "n", "0"]), st.text(max_size=5) | st.integers()),
)
def test_whatever_the_pattern_only_value_errors_come_out(pattern, values):
    try:
        columns = Columns({"path": pattern})
        fill(TableRow("x", values), str(columns.given["path"]), {})
    except ValueError:
        return
