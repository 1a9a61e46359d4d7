"""One line on a terminal, plain lines elsewhere, and in the log file in any case."""

import io
import os

import pytest

from rbft.runtime import progress as progress_module
from rbft.runtime.pace import Pace
from rbft.runtime.progress import ProgressLine, clock, fitted, speed, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch):
    def of(number: int) -> None:
        size = os.terminal_size((number, 24))
        monkeypatch.setattr(progress_module.shutil, "get_terminal_size", lambda: size)

    of(80)
    return of


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(progress_module, "note", lines.append)
    return lines


def step(number: int):
    return lambda: [(f"step {number}/40", 0)]


def test_off_a_terminal_there_are_few_lines_without_carriage_returns(seconds, noted) -> None:
    stream = io.StringIO()
    line = ProgressLine("Stage I", 40, stream=stream)
    line.say("loading the weights")  # for a terminal alone
    for number in range(1, 41):
        seconds[0] += 6
        line.update(number, step(number))
    line.close([("40 steps in 4:00", 0)])
    line.close([("again", 0)])
    tenths = [f"Stage I: step {number}/40" for number in (1, *range(4, 41, 4))]
    assert stream.getvalue().splitlines() == [*tenths, "Stage I: 40 steps in 4:00"] == noted
    assert "\r" not in stream.getvalue()


def test_quick_steps_have_no_lines_and_slow_ones_one_a_minute(seconds, noted) -> None:
    stream = io.StringIO()
    line = ProgressLine("Stage I", 1000, stream=stream)
    for number in range(1, 1001):
        seconds[0] += 0.001
        line.update(number, step(number))
    assert stream.getvalue() == "Stage I: step 1/40\n"
    slow = ProgressLine("Stage I", 1000, stream=(stream := io.StringIO()))
    for number in range(1, 11):
        seconds[0] += 30
        slow.update(number, step(number))
    assert stream.getvalue().splitlines() == [f"Stage I: step {n}/40" for n in (1, 3, 5, 7, 9)]


def test_what_is_said_is_asked_for_only_where_it_is_shown(seconds, columns, noted) -> None:
    asked: list[int] = []
    line = ProgressLine("Stage I", 1000, stream=Terminal())
    for number in range(1, 1001):
        seconds[0] += 0.001
        line.update(number, lambda number=number: asked.append(number) or [("x", 0)])
    assert 5 <= len(asked) <= 8  # a second, five looks and a line for the log
    assert noted == ["Stage I: x"]


def test_a_line_that_is_not_shown_is_in_the_log(seconds, noted, capsys) -> None:
    line = ProgressLine("Stage I", 40, shown=False)
    line.update(1, step(1))
    line.close()
    assert noted == ["Stage I: step 1/40"]
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_it_is_one_line_drawn_anew(seconds, columns, noted) -> None:
    stream = Terminal()
    line = ProgressLine("Stage I (rationales)", 40, stream=stream)
    line.say("loading the weights")
    seconds[0] += 1
    line.update(20, step(20))
    seconds[0] += 1
    columns(30)
    line.update(30, step(30))
    line.close([("40 steps in 0:02", 0)])
    shown = [text.rstrip() for text in stream.getvalue().split("\r")]
    assert "           Stage I (rationales): loading the weights" in shown
    assert "#####      Stage I (rationales): step 20/40" in shown
    assert "Stage I: step 30/40" in shown  # no room for the bar, nor for the brackets
    assert shown[-1] == "Stage I: 40 steps in 0:02"
    assert stream.getvalue().count("\n") == 1


def test_what_may_be_left_out_is_left_out_first(columns) -> None:
    facts = [("epoch 1/3", 3), ("step 12/48", 0), ("lr 1.0e-05", 1), ("3.2 clips/s", 2)]
    whole = "Stage I (rationales): epoch 1/3, step 12/48, lr 1.0e-05, 3.2 clips/s"
    assert fitted("Stage I (rationales)", facts, len(whole)) == whole
    less = [
        "Stage I: epoch 1/3, step 12/48, lr 1.0e-05, 3.2 clips/s",
        "Stage I: epoch 1/3, step 12/48, 3.2 clips/s",
        "Stage I: epoch 1/3, step 12/48",
        "Stage I: step 12/48",
    ]
    for longer, text in zip([whole, *less], less, strict=False):
        assert fitted("Stage I (rationales)", facts, len(longer) - 1) == text
    assert fitted("Stage I (rationales)", facts, 12) == "Stage I: ste"


def test_track_counts_what_takes_long_and_nothing_else(seconds, noted, capsys) -> None:
    assert list(track([1, 2], "Reading", 2, "clip")) == [1, 2]
    assert capsys.readouterr().err == ""

    def slow():
        for number in range(4):
            yield number
            seconds[0] += 3

    assert list(track(slow(), "Reading", 4, "clip", more=lambda: "1 missing")) == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [
        "Reading: 2/4 clips, 0.67 clips/s, 1 missing, 0:03 left",
        "Reading: 4/4 clips, 0.44 clips/s, 1 missing, 0:00 left",
        "Reading: 4 clips in 0:12",
    ]
    assert list(track(slow(), "Reading", 4, "clip", shown=False)) == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""


def test_times_and_rates_are_short() -> None:
    assert [clock(one) for one in (0.4, 59.6, 750.0, 3753.0, 93810.0)] == [
        "0:00",
        "1:00",
        "12:30",
        "1:02:33",
        "26:03:30",
    ]
    assert [speed(one) for one in (0.0532, 0.53, 3.21, 12.6, 120.0)] == [
        "0.053",
        "0.53",
        "3.2",
        "13",
        "120",
    ]


def test_the_rest_of_a_run_is_told_from_what_was_measured() -> None:
    pace = Pace(ahead={"train": 100, "score": 300})
    assert pace.rest() is None
    pace.seconds["score"] = 0.1
    assert pace.rest() == pytest.approx(100 * 0.3 + 300 * 0.1)  # a training step is three passes
    pace.seconds = {"train": 0.6}
    assert pace.rest() == pytest.approx(100 * 0.6 + 300 * 0.2)
    pace.ahead = {"train": 0, "answer": 10}
    assert pace.rest() is None  # how long an answer with a rationale is, nobody knows yet
    pace.seconds["write"] = 2.0
    assert pace.rest() == pytest.approx(20)
    pace.seconds["answer"] = 3.0
    assert pace.rest() == pytest.approx(30)
    assert Pace().rest() == 0
