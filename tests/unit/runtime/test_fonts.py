"""Class names of any script in pictures: in a font that has them, or not by their letters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont
from matplotlib import font_manager, get_data_path
from PIL import Image, ImageDraw

from rbft.inference.metrics import confusion_figure
from rbft.runtime import fonts
from rbft.runtime.fonts import BASE, Pen, drawable, drawable_classes, families, font_of

FALL, STAND = "跌倒", "站立"  # Chinese, of which DejaVu Sans has nothing
NAME = "Test Han"
UNKNOWN = "\U0003134f"  # a letter that hardly any font has


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with matplotlib's own fonts and no others."""
    own = [one for one in font_manager.fontManager.ttflist if get_data_path() in str(one.fname)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    _forget()
    yield
    monkeypatch.undo()
    _forget()


@pytest.fixture
def han(bare: None, tmp_path: Path) -> Iterator[Path]:
    """With a font of two Chinese letters besides, which look like A and B of DejaVu Sans."""
    font = TTFont(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    letters = {ord(FALL[0]): "A", ord(FALL[1]): "B"}
    for table in font["cmap"].tables:
        if table.isUnicode():
            table.cmap = dict(letters)
    for record in [*font["name"].names]:
        if record.nameID in (1, 4, 16):
            font["name"].setName(NAME, record.nameID, *place(record))
    file = tmp_path / "han.ttf"
    font.save(file)
    font_manager.fontManager.addfont(file)
    _forget()
    yield file
    font_manager.fontManager.ttflist.pop()


def place(record: Any) -> tuple[int, int, int]:
    """Which platform, encoding and language an entry of a font's names is for."""
    return record.platformID, record.platEncID, record.langID


def _forget() -> None:
    for cached in (fonts.fonts, fonts._font_with):
        cached.cache_clear()


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("text", ["normal", "Größe", "норма", "κανονικό", "طبيعي", "a b-1_(2)"])
def test_what_matplotlib_s_own_font_has_stays(text: str) -> None:
    assert drawable(text) == text
    assert drawable_classes([text]) == [text]
    assert families([text]) == [BASE]


@pytest.mark.usefixtures("bare")
def test_what_no_font_has_is_escaped_and_classes_are_numbered() -> None:
    assert drawable(f"Flur {FALL}") == r"Flur \u8dcc\u5012"
    assert drawable("a\udcff\n\u200db\ufe0f") == r"a\udcff\nb"
    assert drawable_classes(["stand", FALL, f"{STAND} 2"]) == ["stand", "class 1", "class 2"]
    assert font_of(FALL[0]) is None


def test_an_installed_font_is_taken(han: Path) -> None:
    font = font_of(FALL[0])
    assert font is not None
    assert (font.name, font.file) == (NAME, str(han))
    assert drawable_classes([FALL, STAND]) == [FALL, "class 1"]
    assert families([FALL, "normal"]) == [BASE, NAME]


def test_a_line_is_drawn_piece_by_piece(han: Path) -> None:
    """The made-up letters look like A and B, and stand where these would stand."""

    def drawn(text: str) -> np.ndarray:
        picture = Image.new("L", (300, 40), 255)
        Pen(20).draw(ImageDraw.Draw(picture), (5, 3), text, 0)
        return np.asarray(picture)

    pen = Pen(20)
    np.testing.assert_array_equal(drawn(FALL), drawn("AB"))
    np.testing.assert_array_equal(drawn(f"x {FALL}"), drawn("x AB"))
    assert pen.length(f"{FALL}x") == pytest.approx(pen.length("ABx"), abs=1)
    assert (drawn(UNKNOWN) == drawn(r"\U0003134f")).all()
    assert (drawn("normal") < 128).any()


def test_a_line_that_is_too_long_loses_its_middle() -> None:
    pen = Pen(12)
    text = "living_room/2024-11-03/camera_2/clip_0017.mp4"
    assert pen.shortened(text, 1000) == text
    short = pen.shortened(text, 150)
    assert pen.length(short) <= 150 < pen.length(short) + 2 * pen.length("m")
    start, _, end = short.partition("…")
    assert text.startswith(start)
    assert text.endswith(end)
    assert abs(len(start) - len(end)) <= 1
    assert pen.shortened("word", 1) == "…"


@pytest.mark.parametrize("machine", ["bare", "han"])
def test_the_confusion_matrix_of_any_names_warns_of_nothing(
    machine: str, request: pytest.FixtureRequest
) -> None:
    """A warning is an error in these tests; matplotlib warns of each letter that it lacks."""
    request.getfixturevalue(machine)
    classes = ["normal", FALL, STAND, "$_$ 5"]
    figure = confusion_figure(torch.ones(4, 5, dtype=torch.long), classes)
    figure.savefig(request.getfixturevalue("tmp_path") / "confusion.png")
    (axes,) = figure.axes
    shown = ["normal", "class 1" if machine == "bare" else FALL, "class 2", "$_$ 5"]
    assert [label.get_text() for label in axes.get_yticklabels()] == shown
    assert [label.get_text() for label in axes.get_xticklabels()] == [*shown, "unparsed"]
