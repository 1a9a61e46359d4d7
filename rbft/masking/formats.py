"""How vision-language models write boxes, read and written."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rbft.masking.boxes import Box

FormatName = Literal["gemini", "qwen3", "qwen2.5", "qwen2", "paligemma", "florence2"]
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class Parsed:
    """What was found in a text.

    Attributes:
        boxes: The boxes, in the text's order.
        rejected: Boxes that are none: without area, outside the frame, or not four numbers.
        answered: Whether the text has a list of boxes at all, were it an empty one.
    """

    boxes: tuple[Box, ...]
    rejected: int
    answered: bool


@dataclass(frozen=True)
class BoxFormat:
    """A way of writing boxes.

    Corners may be swapped; boxes are cut off at the frame's edges. JSON may stand in a fence, in
    other text, and end in the middle.

    Attributes:
        name: As settings call it.
        steps: Steps into which each side of the frame is divided; None counts pixels.
        key: The key of the four numbers, in JSON.
        rows_first: Whether y stands before x.
        middle: Whether a step stands for its middle, not for where it begins.
    """

    name: FormatName
    steps: int | None
    key: str = ""
    rows_first: bool = False
    middle: bool = False

    def parse(self, text: str, size: Size) -> Parsed:
        """Finds the boxes in an answer.

        Args:
            text: The answer.
            size: Height and width of the picture as the model got it, where pixels are counted.
        """
        find = {"qwen2": _qwen2_tokens, "paligemma": _paligemma, "florence2": _florence2}
        found = find[self.name](text) if self.name in find else _json_boxes(text, self.key)
        boxes, rejected, some = [], 0, False
        for label, numbers in found:
            some = True
            box = self._box(label, numbers, size)
            rejected += box is None
            boxes += [] if box is None else [box]
        empty = bool(re.search(r"\[\s*\]", text)) if self.key else not text.strip()
        return Parsed(tuple(boxes), rejected, some or empty)

    def write(self, boxes: Sequence[Box], size: Size) -> str:
        """Boxes as the model would write them.

        Args:
            boxes: The boxes.
            size: As for `parse`.
        """
        parts = []
        for box in boxes:
            a, b, c, d = self._numbers(box, size)
            match self.name:
                case "qwen2":
                    label = f"<|object_ref_start|>{box.label}<|object_ref_end|>"
                    parts.append(f"{label}<|box_start|>({a},{b}),({c},{d})<|box_end|>")
                case "paligemma":
                    places = "".join(f"<loc{place:04d}>" for place in (a, b, c, d))
                    parts.append(f"{places} {box.label}")
                case "florence2":
                    places = "".join(f"<loc_{place}>" for place in (a, b, c, d))
                    parts.append(f"{box.label}{places}")
                case _:
                    parts.append(json.dumps({self.key: [a, b, c, d], "label": box.label}))
        if self.key:
            return f"```json\n[{', '.join(parts)}]\n```"
        return (" ; " if self.name == "paligemma" else "").join(parts)

    def _box(self, label: str, numbers: Sequence[float] | None, size: Size) -> Box | None:
        if numbers is None:
            return None
        a, b, c, d = ((number + 0.5 * self.middle) for number in numbers)
        if self.rows_first:
            a, b, c, d = b, a, d, c
        high, wide = size if self.steps is None else (self.steps, self.steps)
        return Box.clipped(a / wide, b / high, c / wide, d / high, label)

    def _numbers(self, box: Box, size: Size) -> list[int]:
        high, wide = size if self.steps is None else (self.steps, self.steps)
        exact = [box.x1 * wide, box.y1 * high, box.x2 * wide, box.y2 * high]
        if self.rows_first:
            exact = [exact[1], exact[0], exact[3], exact[2]]
        if self.middle:
            return [min(math.floor(place), (self.steps or 1) - 1) for place in exact]
        # Tokens count from 0 to one less than the steps; numbers may name the last edge as well.
        most = self.steps - 1 if self.steps is not None and not self.key else None
        places = map(round, exact)
        if self.name == "qwen2":
            return list(places)
        return [place if most is None else min(place, most) for place in places]


FORMATS: dict[FormatName, BoxFormat] = {
    one.name: one
    for one in (
        BoxFormat("gemini", 1000, "box_2d", rows_first=True),
        BoxFormat("qwen3", 1000, "bbox_2d"),
        # Pixels of the picture that the model sees, resized to multiples of 28.
        BoxFormat("qwen2.5", None, "bbox_2d"),
        BoxFormat("qwen2", 1000),
        BoxFormat("paligemma", 1024, rows_first=True),
        BoxFormat("florence2", 1000, middle=True),
    )
}

Found = Iterator[tuple[str, Sequence[float] | None]]


def _json_boxes(text: str, key: str) -> Found:
    """Label and numbers of each object with the key, wherever it stands.

    Each brace is tried, so that fences and what is said around do no harm, and of a list that was
    cut off all complete objects are found.
    """
    decoder, place = json.JSONDecoder(), 0
    while (place := text.find("{", place)) >= 0:
        try:
            found, place = decoder.raw_decode(text, place)
        except ValueError:
            place += 1
        else:
            yield from _with_key(found, key)


def _with_key(found: Any, key: str) -> Found:
    if isinstance(found, list):
        for one in found:
            yield from _with_key(one, key)
    elif isinstance(found, dict) and key in found:
        numbers = found[key]
        good = (
            isinstance(numbers, list)
            and len(numbers) == 4
            and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
        )
        yield str(found.get("label") or "").strip(), [float(n) for n in numbers] if good else None
    elif isinstance(found, dict):
        for one in found.values():
            yield from _with_key(one, key)


# Tokenizers that leave out special tokens leave (x1,y1),(x2,y2).
_QWEN2 = re.compile(
    r"(?:<\|object_ref_start\|>(?P<ref>.*?)<\|object_ref_end\|>|(?P<bare>[^()<>|,.;:\n]*))\s*"
    r"(?:<\|box_start\|>)?\((\d+)\s*,\s*(\d+)\)\s*,\s*\((\d+)\s*,\s*(\d+)\)(?:<\|box_end\|>)?"
)


def _qwen2_tokens(text: str) -> Found:
    label = ""
    for found in _QWEN2.finditer(text):
        # Several boxes may follow one name.
        label = (found["ref"] or found["bare"] or "").strip() or label
        yield label, [float(number) for number in found.groups()[2:]]


_PALIGEMMA = re.compile(r"((?:<loc\d{4}>){4})\s*([^<;\n]*)")


def _paligemma(text: str) -> Found:
    for found in _PALIGEMMA.finditer(text):
        yield found[2].strip(), [float(number) for number in re.findall(r"\d{4}", found[1])]


_FLORENCE = re.compile(r"([^<>\n]*)((?:<loc_\d{1,3}>){4,})")


def _florence2(text: str) -> Found:
    label = ""
    for found in _FLORENCE.finditer(text):
        label = found[1].strip() or label
        numbers = [float(number) for number in re.findall(r"<loc_(\d+)>", found[2])]
        for start in range(0, len(numbers) - 3, 4):  # several boxes may follow one name
            yield label, numbers[start : start + 4]
