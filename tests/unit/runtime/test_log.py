"""The run's log file: what was said, with the time, and what ended it."""

import logging
import re
import warnings
from pathlib import Path

import pytest

from rbft.runtime import console
from rbft.runtime.console import logged_to, note, print_rank_zero


@pytest.fixture(autouse=True)
def nothing_said_before() -> None:
    console._early.clear()


def lines(file: Path) -> list[str]:
    written = file.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in written)
    return [line[21:] for line in written]


def test_all_that_is_said_stands_there_from_the_beginning(tmp_path, capsys) -> None:
    file = tmp_path / "run" / "log.txt"
    print_rank_zero("Two files are missing.")
    with logged_to(file, "rbft fit a.yaml", repr):
        print_rank_zero("a table\nof two lines")
        note("Stage I: step 1/4")
        logging.getLogger("rbft.module").warning("clip x was replaced")
        logging.getLogger("rbft.module").info("not this")
    print_rank_zero("of something else")
    assert lines(file) == [
        "rbft fit a.yaml",
        "Two files are missing.",
        "a table",
        "of two lines",
        "Stage I: step 1/4",
        "warning: clip x was replaced",
    ]
    with logged_to(file, "rbft fit a.yaml", repr):
        note("again")
    assert lines(file)[6:] == ["rbft fit a.yaml", "of something else", "again"]
    assert "Stage I" not in capsys.readouterr().out


def test_warnings_of_libraries_stand_there_and_on_the_screen(tmp_path, monkeypatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(
        warnings, "showwarning", lambda said, *rest, **more: shown.append(str(said))
    )
    show = warnings.showwarning
    with warnings.catch_warnings(record=False), logged_to(tmp_path / "log.txt", "fit", repr):
        warnings.simplefilter("always")
        warnings.warn("a library's", UserWarning, stacklevel=1)
    assert lines(tmp_path / "log.txt") == ["fit", "UserWarning: a library's"]
    assert shown == ["a library's"]
    assert warnings.showwarning is show


def test_what_ends_the_block_stands_there(tmp_path) -> None:
    file = tmp_path / "log.txt"
    with (
        pytest.raises(KeyboardInterrupt),
        logged_to(file, "fit", lambda error: "ended"),
    ):
        raise KeyboardInterrupt
    assert lines(file) == ["fit", "ended"]
    assert console._log is None


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with logged_to(blocked / "log.txt", "fit", repr):
        note("said")
    print_rank_zero("still here")
