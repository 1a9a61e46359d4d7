"""The picture of what was predicted over a file's time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rbft.callbacks.timeline import FAILED, NO_CLASS, OTHERS, clock, draw_timeline, tick_step

CLASSES = ("quiet", "alarm")


def rows(labels: Sequence[str | None], every: float = 10) -> list[dict[str, Any]]:
    """Windows one after the other; `!` stands for an error, None for an answer that is no class."""
    made = []
    for number, label in enumerate(labels):
        row: dict[str, Any] = {"start": number * every, "end": (number + 1) * every, "label": label}
        if label == "!":
            row |= {"label": None, "error": "Video a.mp4 is damaged."}
        elif label is not None:
            row["probabilities"] = {name: 0.9 if name == label else 0.1 for name in CLASSES}
        made.append(row)
    return made


def band(picture: Path) -> np.ndarray:
    """Colours of the lowest panel from left to right."""
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    # The lowest line of pixels that is coloured or black for most of its width, a bit above it.
    filled = [(line != 255).any(-1).mean() > 0.6 for line in pixels]
    return pixels[len(filled) - 1 - filled[::-1].index(True) - 12]


def shares(line: np.ndarray, colours: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    counts = {name: float((line == colour).all(-1).sum()) for name, colour in colours.items()}
    return {name: count / sum(counts.values()) for name, count in counts.items()}


C0, C1 = (31, 119, 180), (255, 127, 14)  # matplotlib's first two


def test_the_band_has_the_colour_of_the_class(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.png"
    draw_timeline(rows(["quiet"] * 3 + ["alarm"]), CLASSES, "a.mp4", file)
    line = band(file)
    assert shares(line, {"quiet": C0, "alarm": C1}) == pytest.approx(
        {"quiet": 0.75, "alarm": 0.25}, abs=0.01
    )
    at = [place for place, colour in enumerate(line) if tuple(colour) == C1]
    assert min(at) > max(p for p, colour in enumerate(line) if tuple(colour) == C0)
    draw_timeline(rows(["quiet", None, "!", "!"]), CLASSES, "a.mp4", file)
    rgb = {name: tuple(bytes.fromhex(name[1:])) for name in (NO_CLASS, FAILED)}
    found = shares(band(file), {"quiet": C0, **rgb})
    assert found["quiet"] == pytest.approx(0.25, abs=0.01)
    assert found[FAILED] == pytest.approx(0.5, abs=0.02)  # the frame is black as well


def test_of_overlapping_windows_each_lasts_until_the_next(tmp_path: Path) -> None:
    made = rows(["quiet", "alarm", "alarm"])
    for row in made:
        row["end"] += 10
    draw_timeline(made, CLASSES, "a.mp4", tmp_path / "a.png")
    found = shares(band(tmp_path / "a.png"), {"quiet": C0, "alarm": C1})
    assert found == pytest.approx({"quiet": 0.25, "alarm": 0.75}, abs=0.01)


def test_of_several_classes_there_are_probabilities_alone(tmp_path: Path) -> None:
    made = rows(["quiet", "alarm", "!"])
    draw_timeline(made, CLASSES, "a.mp4", tmp_path / "one.png")
    for row in made:
        row["labels"] = None if row.pop("label") is None else ["quiet", "alarm"]
    draw_timeline(made, CLASSES, "a.mp4", tmp_path / "several.png")
    with Image.open(tmp_path / "several.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert ((pixels == C0).all(-1).sum(1) < pixels.shape[1] / 2).all()  # lines, and no band
    assert (pixels == C0).all(-1).sum() > 300
    draw_timeline(made[2:], CLASSES, "a.mp4", tmp_path / "none.png")  # nothing but errors


def test_between_windows_there_is_nothing(tmp_path: Path) -> None:
    made = rows(["quiet", "alarm"])
    made[1] |= {"start": 30, "end": 40}
    draw_timeline(made, CLASSES, "a.mp4", tmp_path / "a.png")
    line = band(tmp_path / "a.png")
    found = shares(line, {"quiet": C0, "alarm": C1, "none": (255, 255, 255)})
    assert found["quiet"] == pytest.approx(found["alarm"], abs=0.01)
    assert found["none"] > 0.45


def test_many_classes_names_of_any_script_and_written_answers(tmp_path: Path) -> None:
    names = [*(f"class {n}" for n in range(12)), "跌倒 $x", "סכנה"]
    made = [
        {
            "start": n,
            "end": n + 1,
            "label": names[n % 14],
            "probabilities": {name: 0.5 if name == names[n % 14] else 0.5 / 13 for name in names},
        }
        for n in range(20)
    ]
    draw_timeline(made, names, "a $ \ud800 b.mp4", tmp_path / "a.png")
    grey = tuple(bytes.fromhex(OTHERS[1:]))
    assert (band(tmp_path / "a.png") == grey).all(-1).sum() > 50  # the classes after the tenth
    with Image.open(tmp_path / "a.png") as image:
        whole = image.height
    for row in made:
        del row["probabilities"]
    draw_timeline(made, names, "a.mp4", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.height < whole  # no curves


@pytest.mark.parametrize(
    ("longest", "seconds", "expected"),
    [
        (100.0, (0.0, 7.5, 90.0), ["0 s", "7.5 s", "90 s"]),
        (3000.0, (0.0, 65.0, 754.9), ["0:00", "1:05", "12:35"]),
        (36000.0, (0.0, 65.0, 35999.0), ["0:00:00", "0:01:05", "9:59:59"]),
    ],
)
def test_times_are_read_easily(
    longest: float, seconds: tuple[float, ...], expected: list[str]
) -> None:
    assert [clock(one, longest) for one in seconds] == expected


def test_how_far_times_stand_apart() -> None:
    spans = (0.7, 9.0, 90.0, 3600.0, 36000.0, 7e6)
    assert [tick_step(one) for one in spans] == [0.1, 1.0, 10.0, 300.0, 3600.0, 604800.0]
