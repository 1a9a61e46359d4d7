from pathlib import Path

import pytest

from rbft.commands.prediction_summary import failures, first_rows, shorten
from rbft.runtime.console import width

MODEL = "lightning_logs/house/label/weights\nrun house, trained on rationale -> label"


def row(path, label="pass", share=0.9876):
    return {"path": path, "label": label, "probabilities": {"pass": share, "fail": 1 - share}}


def test_the_first_rows_and_whose_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rows = [row(str(tmp_path / "clips/a.mp4")), {"path": "b.mp4", "label": None, "error": "gone"}]
    rows += [row("c.mp4", "fail"), {"path": "d.mp4", "label": None, "text": "who knows"}]
    rows += [row(f"{n}.mp4") for n in range(9)]
    assert first_rows(rows, MODEL) == (
        "Weights: lightning_logs/house/label/weights\n"
        "         run house, trained on rationale -> label\n"
        "------------------------------------\n"
        "video        class       probability\n"
        "------------------------------------\n"
        "clips/a.mp4  pass             0.9876\n"
        "c.mp4        fail             0.0124\n"
        "d.mp4        (no class)\n"
        "0.mp4        pass             0.9876\n"
        "1.mp4        pass             0.9876\n"
        "------------------------------------"
    )


def test_eighty_columns_at_most(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    deep = str(Path("a folder") / ("b" * 90) / "clip_0001.mp4")
    long = "x" * 70 + "影片" * 30
    shown = first_rows([row(deep, "c" * 50), row(long)], f"{deep * 2}\n{long}")
    assert max(map(width, shown.splitlines())) == 80
    assert "clip_0001.mp4" in shown
    reason = f"Video {deep} is truncated: " + "the file ends before its index says. " * 5
    said = failures([{"path": deep, "error": reason}, row("a.mp4")]).splitlines()
    assert said[0] == "1 of 2 videos could not be predicted:"
    assert all(width(line) <= 80 for line in said if deep[9:40] not in line)
    assert " ".join("".join(said[1:]).split()) == " ".join(f"  {reason}".split()) or len(said) > 3


def test_windows_are_shown_with_their_seconds():
    rows = [{**row("a.mp4"), "start": 0.0, "end": 12.5}, row("b.mp4")]
    shown = first_rows(rows, MODEL).splitlines()
    assert shown[5].split("  ")[0] == "a.mp4, 0 to 12.5 s"
    assert shown[6].split("  ")[0] == "b.mp4"
    failed = [{"path": "a.mp4", "error": "Video a.mp4 ..."}]
    assert failures(failed, "windows").startswith("1 of 1 windows could not be predicted:")


def test_failures_say_which_and_why():
    rows = [row("a.mp4"), *({"path": f"{n}.mp4", "error": f"Video {n}.mp4 ..."} for n in range(7))]
    assert failures(rows) == (
        "7 of 8 videos could not be predicted:\n"
        "  Video 0.mp4 ...\n  Video 1.mp4 ...\n  Video 2.mp4 ...\n"
        "  Video 3.mp4 ...\n  Video 4.mp4 ...\n"
        "  and 2 more: see `error` in the file."
    )
    assert failures([row("a.mp4")]) == ""


@pytest.mark.parametrize(
    ("text", "columns", "short"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefghij", 9, "ab...ghij"),
        ("影片影片影片", 9, "影...影片"),
        ("abcdefghij", 5, "a...j"),
    ],
)
def test_the_end_of_a_name_tells_most(text, columns, short):
    assert shorten(text, columns) == short
    assert width(short) <= columns


def test_videos_with_several_classes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shares = {"cat": 0.9, "dog": 0.6, "bird": 0.1}
    rows = [{"path": "a.mp4", "labels": ["cat", "dog"], "probabilities": shares}]
    rows += [{"path": "b.mp4", "labels": [], "probabilities": shares}]
    assert first_rows(rows, "x").splitlines()[2:] == [
        "video  class                     probability",
        "--------------------------------------------",
        "a.mp4  cat, dog               0.9000, 0.6000",
        "b.mp4  (none of the classes)",
        "--------------------------------------------",
    ]
    many = {"path": "a/" * 60, "labels": list("abc"), "probabilities": dict.fromkeys("abc", 0.5)}
    assert max(map(width, first_rows([many], "x").splitlines())) == 80
