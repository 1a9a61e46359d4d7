"""Fonts for texts of any script: which font has a character, and what is drawn where none has.

Matplotlib brings DejaVu Sans, which has Latin, Greek, Cyrillic, Arabic and Hebrew letters. Others,
such as Chinese and Hindi, are taken from the fonts that are installed.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

BASE = "DejaVu Sans"
# Tried first, by the beginnings of their names; whatever else is installed comes after them.
PREFERRED = ("Noto Sans", "Source Han Sans", "WenQuanYi", "Droid Sans", "Microsoft", "PingFang")
PLACEHOLDERS = ("Last Resort",)  # its glyphs are boxes
FORMATTING = "Cf"  # joiners and marks of direction, which have no picture of their own
VARIATION_SELECTORS = "".join(map(chr, range(0xFE00, 0xFE10)))
UNWRITTEN = ("Cc", "Cn", "Co", "Cs")  # control characters, surrogates and what is not assigned
Number = float | int


@dataclass(frozen=True)
class Font:
    """An upright font of regular weight.

    Attributes:
        name: Of its family, as matplotlib knows it.
        file: Its file.
    """

    name: str
    file: str

    def has(self, character: str) -> bool:
        """Whether it has a glyph for the character."""
        face = _face(self.file)
        return face is not None and face.get_char_index(ord(character)) != 0


@cache
def fonts() -> tuple[Font, ...]:
    """The fonts that are there, DejaVu Sans first."""
    from matplotlib import font_manager

    found = [
        Font(one.name, str(one.fname))
        for one in font_manager.fontManager.ttflist
        if one.style == "normal"
        and one.weight in (400, "normal", "regular", "book")
        and not one.name.startswith(PLACEHOLDERS)
    ]

    def place(font: Font) -> tuple[int, str]:
        if font.name == BASE:
            return -1, font.name
        known = [n for n, start in enumerate(PREFERRED) if font.name.startswith(start)]
        return (known[0] if known else len(PREFERRED)), font.name

    return tuple(sorted(dict.fromkeys(found), key=place))


def font_of(character: str) -> Font | None:
    """The first font that has the character; None where none has."""
    if unicodedata.category(character) in UNWRITTEN:
        return None
    return _font_with(character)


def drawable(text: str) -> str:
    r"""The text with escapes (`\u8dcc`) in the place of characters that no font has.

    Args:
        text: Any text; file names that are no UTF-8 hold surrogates, which no font has.
    """
    return "".join(
        one if font_of(one) else one.encode("unicode_escape").decode() for one in _visible(text)
    )


def drawable_classes(classes: Sequence[str]) -> list[str]:
    """Names of classes for a picture: "class 0" where no font has all of the name's characters.

    Args:
        classes: Names in the order of the card, which also numbers them, from 0.
    """
    return [
        shown if (shown := drawable(name)) == _visible(name) else f"class {number}"
        for number, name in enumerate(classes)
    ]


def families(texts: Iterable[str]) -> list[str]:
    """Families that together have all characters of some texts, for matplotlib's `fontfamily`.

    Args:
        texts: Texts of `drawable` or `drawable_classes`.
    """
    found = (font_of(character) for text in texts for character in text)
    return list(dict.fromkeys([BASE, *(font.name for font in found if font is not None)]))


@dataclass(frozen=True)
class Pen:
    """Draws lines of text with Pillow, each character in a font that has it.

    Attributes:
        size: Of the fonts in pixels.
        bold: Whether what DejaVu Sans has is drawn bold.
    """

    size: int
    bold: bool = False

    def length(self, text: str) -> float:
        """Width of a line in pixels."""
        return sum(font.getlength(part) for font, part in self._parts(text))

    def draw(self, picture: "ImageDraw", spot: tuple[Number, Number], text: str, ink: Any) -> None:
        """Draws a line.

        Args:
            picture: Where.
            spot: Its left end and its top, as Pillow counts it (the ascender of DejaVu Sans).
            text: What.
            ink: Its colour.
        """
        left, top = spot
        baseline = top + _truetype(_own(self.bold), self.size).getmetrics()[0]
        for font, part in self._parts(text):
            picture.text((left, baseline), part, ink, font, anchor="ls")
            left += font.getlength(part)

    def shortened(self, text: str, width: Number) -> str:
        """The line as it is, or with its middle left out, so that it is no wider.

        Args:
            text: The line.
            width: In pixels.
        """
        if self.length(text) <= width:
            return text

        def cut(kept: int) -> str:
            return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"

        # The first number of characters that is too many, among all.
        over = bisect_left(range(len(text)), True, key=lambda kept: self.length(cut(kept)) > width)
        return cut(max(0, over - 1))

    def _parts(self, text: str) -> "list[tuple[FreeTypeFont, str]]":
        """The line in pieces of one font."""
        parts: list[tuple[str, str]] = []
        for character in drawable(text):
            font = font_of(character)
            assert font is not None
            own = Font(BASE, _own(self.bold))
            file = own.file if font.name == BASE and own.has(character) else font.file
            # Digits, blanks and marks stay with the letters before them.
            if parts and not character.isalpha() and Font("", parts[-1][0]).has(character):
                file = parts[-1][0]
            if parts and parts[-1][0] == file:
                parts[-1] = (file, parts[-1][1] + character)
            else:
                parts.append((file, character))
        return [(_truetype(file, self.size), part) for file, part in parts]


def _visible(text: str) -> str:
    return "".join(
        one
        for one in text
        if unicodedata.category(one) != FORMATTING and one not in VARIATION_SELECTORS
    )


@cache
def _font_with(character: str) -> Font | None:
    return next((font for font in fonts() if font.has(character)), None)


@cache
def _face(file: str) -> Any:
    """The opened font; None where it is damaged, or is made of pictures of one size (emoji)."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(file)
    except (OSError, RuntimeError):
        return None
    return face if face.scalable else None


def _own(bold: bool) -> str:
    """Matplotlib's own file of DejaVu Sans, which is there wherever matplotlib is."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return f"{matplotlib.get_data_path()}/fonts/ttf/{name}"


@cache
def _truetype(file: str, size: int) -> "FreeTypeFont":
    from PIL import ImageFont

    return ImageFont.truetype(file, size)
