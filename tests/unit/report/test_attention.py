"""What `attention` has left, on the page and in its tables."""

import json

import pytest

from rbft.report.attention import attended_clips, attention_section
from rbft.report.content import build_content
from rbft.report.gather import gather
from rbft.report.page import as_page
from tests.report_runs import answers, settings, write, write_attention, write_run


@pytest.fixture
def logs(tmp_path):
    for name in ("direct", "ours"):
        write_run(tmp_path, settings(name, ["label"]), answers(9, 0.9, 0))
    write_attention(tmp_path / "attention/direct-ours", ["direct", "ours"], "a.mp4")
    return tmp_path


def change(logs, **more) -> None:
    file = logs / "attention/direct-ours/attention.json"
    write(file, json.dumps({**json.loads(file.read_text()), **more}))


def test_means_and_differences_stand_with_interval_and_n(logs):
    scores, differences = attention_section(gather(logs)).tables
    assert [[cell.text for cell in row.cells] for row in scores.rows] == [
        ["direct", "2.25 [1.5, 3], n = 1"],
        ["ours", "2.25 [1.5, 3], n = 1"],
    ]
    assert [row.runs for row in scores.rows] == [("direct",), ("ours",)]
    assert scores.notes == (
        "Attention of the prompt's last token.",
        "lift: share of the map in boxes / share of the area (1: uniform)",
    )
    (row,) = differences.rows
    assert [cell.text for cell in row.cells] == ["ours", "direct", "+0.5 [-0.25, +1.25], n = 1"]
    assert row.runs == ("ours", "direct")


def test_controls_are_filtered_with_their_run(logs):
    figure = {"mean": 1.0, "interval": {"low": None, "high": None}, "n": 1}
    change(
        logs,
        controls={"ours": ["ours (redrawn)"]},
        scores={"ours (redrawn)": {"lift": figure}},
        differences=[{"a": "ours", "b": "ours (redrawn)", "scores": {"lift": figure}}],
    )
    scores, differences = attention_section(gather(logs)).tables
    (row,) = scores.rows
    assert [cell.text for cell in row.cells] == ["ours (redrawn)", "1, n = 1"]
    assert row.runs == ("ours",)
    assert differences.rows[0].runs == ("ours",)


def test_strips_are_those_of_each_run(logs):
    (clip,) = attended_clips(gather(logs))
    assert (clip.id, clip.label) == ("a.mp4", "abnormal")
    assert [(one.run, one.file.name, one.scores) for one in clip.strips] == [
        ("direct", "0.png", {"lift": 2.25}),
        ("ours", "1.png", {"lift": 2.25}),
    ]
    made = as_page(build_content(gather(logs)), "Runs", 5_000_000, None)
    assert made.pictures == 2
    assert 'alt="where ours looks in a.mp4"' in made.text


def test_maps_of_runs_that_are_not_shown_are_left_out(logs):
    assert len(gather(logs, ["ours"]).attention) == 1
    write_run(logs, settings("third", ["label"]), answers(9, 0.9, 0))
    assert gather(logs, ["third"]).attention == {}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"runs": "x", "scores": [], "clips": {}},
        {"clips": [3, {"id": "a"}, {"strips": {"ours": "gone.png"}, "scores": {"ours": 3}}]},
        {"scores": {"ours": {"lift": {"mean": None}}}, "differences": [3, {}]},
    ],
)
def test_a_file_of_another_form_ends_nothing(logs, content):
    write(logs / "attention/direct-ours/attention.json", json.dumps(content))
    as_page(build_content(gather(logs)), "Runs", 5_000_000, None)
