import io

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from rbft.runtime.console import print_rank_zero, table, width


def test_table() -> None:
    text = table(
        [["zero-shot", "55.10", "196"], ["after Stage II", "82.65", "196"]],
        ["", "accuracy", "clips"],
    )
    assert text.splitlines() == [
        "-------------------------------",
        "                accuracy  clips",
        "-------------------------------",
        "zero-shot          55.10    196",
        "after Stage II     82.65    196",
        "-------------------------------",
    ]


def test_alignment() -> None:
    assert table([["1", "x"]], ["number", "note"], align="rl").splitlines()[1:4] == [
        "number  note",
        "------------",
        "     1  x",
    ]


def test_wide_and_combining_characters_keep_the_columns() -> None:
    lines = table([["正常", "1"], ["cafe\u0301", "10"]], ["class", "clips"]).splitlines()

    assert {width(line) for line in lines} == {12}
    assert lines[3] == "正常       1"


def test_table_without_rows() -> None:
    assert table([], ["a", "b"]).splitlines() == ["----", "a  b", "----", "----"]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter than argument 1"):
        table([["a"]], ["one", "two"])


def test_say(capsys: pytest.CaptureFixture[str]) -> None:
    print_rank_zero("F1 of 正常")
    assert capsys.readouterr().out == "F1 of 正常\n"


def test_say_on_a_terminal_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    print_rank_zero("F1 of 正常")
    assert written.getvalue() == b"F1 of ??\n"


def test_other_processes_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    print_rank_zero("twice")
    assert capsys.readouterr().out == ""
