import json
import re
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbft.annotations.tables import TableRow, check_unique, read_table, shown


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,label\nx,1\ny,2\n"),
        ("bom_crlf.csv", b"\xef\xbb\xbfid,label\r\nx,1\r\ny,2"),
        ("old_mac.csv", "id,label\rx,1\ry,2\r"),
        ("semicolon.csv", "id;label\nx;1\n\ny;2\n"),
        ("tabs.txt", "id\tlabel\nx\t1\ny\t2\n"),
        ("a.tsv", "id\tlabel\nx\t1\ny\t2\n"),
        ("a.jsonl", '{"id": "x", "label": "1"}\n\n{"id": "y", "label": "2"}\r\n'),
        ("lines.json", '{"id": "x", "label": "1"}\n{"id": "y", "label": "2"}\n'),
        ("list.json", '\ufeff[{"id": "x", "label": "1"}, {"id": "y", "label": "2"}]'),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    rows = read_table(write(tmp_path, name, content), ["id", "label"], unique="id")
    assert [row.values for row in rows] == [{"id": "x", "label": "1"}, {"id": "y", "label": "2"}]


def test_parquet_gives_the_same_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": ["x", "y"], "label": [1, None]}), path)
    rows = read_table(path, ["id"], unique="id")
    assert [row.values for row in rows] == [{"id": "x", "label": 1}, {"id": "y", "label": None}]
    with pytest.raises(ValueError, match=r"b\.parquet cannot be read as parquet"):
        read_table(write(tmp_path, "b.parquet", "no parquet"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"a\.parquet: reading parquet needs pyarrow.*pip install"):
        read_table(tmp_path / "a.parquet")


def test_line_numbers_count_lines_of_the_file(tmp_path):
    text = 'id,text\nx,"two\nlines"\n\ny,one\n'
    rows = read_table(write(tmp_path, "a.csv", text))
    assert [row.where.removeprefix(str(tmp_path)) for row in rows] == [
        "/a.csv, line 2",
        "/a.csv, line 5",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv holds no rows\."),
        ("a.csv", "id,label\n", r"a\.csv holds no rows\."),
        (
            "a.csv",
            "id,tag\nx,1\n",
            r"a\.csv, line 2: column 'label' is missing; the columns there are 'id', 'tag'\.",
        ),
        ("a.csv", "id,label,id\nx,1,2\n", r"line 1: column 'id' stands twice in the header\."),
        ("a.csv", "id,label\nx\n", r"a\.csv, line 2: 1 cells, but the header has 2 columns\."),
        ("a.csv", "id,label\nx,1\n\nx,2\n", r"line 4: id 'x' stands twice \(first: .*line 2\)"),
        ("a.csv", "id,label\n ,1\n", r"a\.csv, line 2: id is empty; every row needs one\."),
        ("a.csv", 'id,label\nx,"1\ny,2\n', r"a\.csv, line 2: cannot be parsed: unexpected end"),
        ("a.csv", b"id,label\nx,\xff\n", r"a\.csv is not UTF-8 \(byte 11 is 0xff\)"),
        ("a.xlsx", "", r"the suffix '\.xlsx' is no table format; allowed are \.csv"),
        ("a.jsonl", '{"id": "x", "label": 1}\n{"id"\n', r"a\.jsonl, line 2: no valid JSON"),
        ("a.jsonl", '{"id": "x", "label": 1}\n[1]\n', r"line 2: must be a JSON object; got \[1\]"),
        ("a.json", "[" * 100_000, r"a\.json: no valid JSON: RecursionError"),
        ("a.jsonl", '{"id": "x", "label": ' + "9" * 9999 + "}", r"line 1: no valid JSON"),
        ("a.jsonl", '{"id": ["x"], "label": 1}', r"id is \['x'\]; it must be one text or number\."),
        ("a.jsonl", '{"id": "x", "label": 1}\n{"id": "y"}', r"line 2: column 'label' is missing"),
    ],
)
def test_bad_tables(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        read_table(path, ["id", "label"], unique="id")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "x.mp4 1\n\n y.mp4   2 \n"),
        ("a.txt", "x.mp4\t1\ny.mp4\t2\n"),
        ("a.csv", "x.mp4,1\r\ny.mp4,2\r\n"),
        ("a.csv", "\ufeffx.mp4;1\ny.mp4;2"),
        ("a.tsv", "x.mp4\t1\ny.mp4\t2\n"),
    ],
)
def test_tables_without_header(tmp_path, name, text):
    rows = read_table(write(tmp_path, name, text), ["1"], header=False)
    assert [row.values for row in rows] == [{"1": "x.mp4", "2": "1"}, {"1": "y.mp4", "2": "2"}]
    assert rows[0].where == f"{tmp_path}/{name}, line 1"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.txt",
            "x y.mp4 1\nz.mp4 2\n",
            r"line 2: 2 cells parted by blanks, but the first line h",
        ),
        (
            "a.csv",
            "x.mp4,1\nz.mp4\n",
            r"a\.csv, line 2: 1 cells, but the first line has 2 columns\.",
        ),
        ("a.txt", "x.mp4\n", r"a\.txt, line 1: column '2' is missing; the columns there are '1'\."),
        (
            "a.jsonl",
            "{}",
            r"a\.jsonl: \.jsonl files name their columns; a column's place \(1, 2, \.\.",
        ),
        ("a.txt", "\n", r"a\.txt holds no rows"),
    ],
)
def test_bad_tables_without_header(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, name, text), ["2"], header=False)


DATABASE = {
    "a": {
        "subset": "training",
        "duration": 9,
        "url": "https://x",
        "annotations": [{"segment": [0.5, 2], "label": "cat"}, {"label": "dog"}],
    },
    "b": {"subset": "testing", "annotations": []},
}


@pytest.mark.parametrize("indent", [None, 2])
def test_activitynet(tmp_path, indent):
    text = json.dumps({"version": "1.3", "database": DATABASE}, indent=indent)
    rows = read_table(write(tmp_path, "a.json", text), ["label", "start"])
    keys = ("id", "split", "label", "start", "end", "url", "duration")
    assert [tuple(row.values[key] for key in keys) for row in rows] == [
        ("a", "training", "cat", 0.5, 2, "https://x", 9),
        ("a", "training", "dog", None, None, "https://x", 9),
        ("b", "testing", None, None, None, None, None),
    ]
    assert rows[1].where == f"{tmp_path}/a.json, 'a', annotation 2"
    assert [row.labelled for row in rows] == [True, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"database": [1]}, r"a\.json: database must be a JSON object of ids; got \[1\]\."),
        (
            {"database": {"a": 1}},
            r"a\.json, 'a': must be an object with subset and annotations; got",
        ),
        (
            {"database": {"a": {"annotations": 1}}},
            r"'a': must be an object with subset and annotat",
        ),
        (
            {"database": {"a": {"annotations": [1]}}},
            r"'a', annotation 1: must be an object with la",
        ),
        (
            {"database": {"a": {"annotations": [{"label": "x", "segment": 1}]}}},
            r"'a', annotation 1: segment is 1; it must be start and end in seconds",
        ),
        (
            {"results": {}},
            r"one JSON object is no table\. Allowed are a list of objects, one object",
        ),
    ],
)
def test_bad_databases(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, "a.json", json.dumps(content, indent=1)), ["label"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"File {tmp_path}/none.csv does not exist.")):
        read_table(tmp_path / "none.csv")
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"folder\.csv cannot be read: Is a directory\."):
        read_table(folder)


def test_cells():
    row = TableRow(
        "a.csv, line 7", {"a": " x ", "n": 3, "t": "1.5", "empty": " ", "bad": "inf", "b": True}
    )
    assert row.text("a") == "x"
    assert row.text("n") == "3"
    assert row.text("empty", default="d") == row.text("absent", default="d") == "d"
    assert row.text(None, default="d") == "d"
    assert row.seconds("t") == 1.5
    assert row.seconds("empty") is row.seconds("absent") is None
    with pytest.raises(ValueError, match=r"a\.csv, line 7: bad is 'inf'; it must be a number of s"):
        row.seconds("bad")
    with pytest.raises(ValueError, match=r"a\.csv, line 7: b is True; it must be one text or numb"):
        row.text("b")


def test_shown_is_short_and_on_one_line():
    assert shown("é") == "'é'"
    assert shown("a\nb\x1b") == r"'a\nb\x1b'"
    assert len(shown("x" * 1000)) == 80


def test_check_unique_names_both_places():
    with pytest.raises(ValueError, match=r"line 3: id 'x' stands twice \(first: line 1\)\. Remove"):
        check_unique([("x", "line 1"), ("y", "line 2"), ("x", "line 3")], "id")


@settings(max_examples=500, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text("id,label\"'\n\r\t;x{}[]:0 \\", max_size=60).map(str.encode),
    ),
    suffix=st.sampled_from([".csv", ".tsv", ".txt", ".json", ".jsonl"]),
    header=st.booleans(),
)
@example(b'id,label\n"', ".csv", True)
@example(b'{"id":NaN}', ".json", True)
@example(b'{"database":{"":{}}}', ".json", True)
def test_whatever_the_file_holds_only_value_errors_come_out(
    tmp_path_factory, content, suffix, header
):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        rows = read_table(path, ["id" if header else "1"], unique="id", header=header)
    except ValueError:
        return
    assert rows


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"id": st.text(), "n": st.integers()}), min_size=1))
def test_json_lines_lose_nothing(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=True) for row in rows))
    assert [row.values for row in read_table(path)] == rows
