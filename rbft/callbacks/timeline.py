"""What was predicted of the windows of a file, as a picture: probabilities over time."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rbft.analysis.multilabel import LABELS
from rbft.runtime.files import atomically
from rbft.runtime.fonts import drawable, drawable_classes, families

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 10  # classes with a curve and a colour of their own
OTHERS, FAILED, NO_CLASS = "#b8b8b8", "#000000", "#e8e8e8"
MARKED = 60  # windows up to which each has a dot
HOUR, MINUTE = 3600, 60
TICKS = 12  # times below the picture, at most
# Seconds: fractions of one, then what one reads easily as minutes and hours, up to days.
STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0)
STEPS += (3600.0, 7200.0, 14400.0, 21600.0, 43200.0, 86400.0, 604800.0)


def draw_timeline(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], title: str, picture: Path
) -> None:
    """Draws the probability of each class over the time of a file, and below it the class.

    The ten classes that are the likeliest on average have a colour each, the others share grey. A
    window whose frames could not be decoded is black. Where a window may have several classes,
    there are probabilities alone.

    Args:
        rows: The rows of the file's windows, in order of their start: start, end, label, and
            probabilities or an error, see `rbft.callbacks.predictions.PredictionWriter`.
        classes: Names of the classes, of any script.
        title: What stands above, such as the file's name.
        picture: The PNG to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    scored = [row for row in rows if row.get("probabilities")]
    colours = _colours(rows, scored, classes)
    names = dict(zip(classes, drawable_classes(classes), strict=True))
    figure = Figure(figsize=(11, 3.6 if scored else 1.8), dpi=110, layout="constrained")
    # Of several classes at once there is no band.
    banded = not any(LABELS in row for row in rows)
    heights = [5] * bool(scored) + [1] * banded or [1]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    if scored:
        _draw_curves(panels[0, 0], rows, classes, colours)
    band = panels[-1, 0]
    if banded:
        _draw_band(band, rows, colours)
    end = float(max(row["end"] for row in rows))
    band.set_xlim(rows[0]["start"], end)
    band.xaxis.set_major_locator(MultipleLocator(tick_step(end - rows[0]["start"])))
    band.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds, end)))
    band.tick_params(labelsize=8)
    said = {
        NO_CLASS: "(no class)" if any(_colour(row, colours) == NO_CLASS for row in rows) else "",
        FAILED: "(not decoded)" if any("error" in row for row in rows) else "",
    }
    said = said if banded else {}
    entries = [
        *((colour, names[name]) for name, colour in colours.items() if colour != OTHERS),
        *([(OTHERS, "other classes")] if OTHERS in colours.values() else []),
        *((colour, text) for colour, text in said.items() if text),
    ]
    top = drawable(title)
    figure.legend(
        handles=[Patch(color=colour, label=text) for colour, text in entries],
        loc="outside right upper",
        fontsize=8,
        frameon=False,
        prop={"family": families(text for _, text in entries), "size": 8},
    )
    style = {"fontfamily": families([top]), "parse_math": False}
    panels[0, 0].set_title(top, fontsize=9, loc="left", **style)
    with atomically(picture) as part:
        figure.savefig(part, format="png")


def clock(seconds: float, longest: float) -> str:
    """A time as `4.5`, `1:05` or `2:00:05`, by the longest that stands beside it.

    Args:
        seconds: The time.
        longest: In seconds as well; below two minutes, seconds are counted.
    """
    if longest < 2 * MINUTE:
        return f"{seconds:g} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, MINUTE)
    if longest < HOUR:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def tick_step(seconds: float) -> float:
    """Distance of the times that are written below a picture.

    Args:
        seconds: What the picture spans.
    """
    return next((step for step in STEPS if seconds / step <= TICKS), STEPS[-1])


def _colours(
    rows: Sequence[Mapping[str, Any]],
    scored: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> dict[str, str]:
    """Colour of each class, in the order of the classes."""
    if scored:
        weight = {
            name: sum(row["probabilities"].get(name, 0.0) for row in scored) for name in classes
        }
    else:
        weight = {name: float(sum(row.get("label") == name for row in rows)) for name in classes}
    chosen = set(sorted(classes, key=lambda name: -weight[name])[:SHOWN])
    own = iter(range(SHOWN))
    return {name: f"C{next(own)}" if name in chosen else OTHERS for name in classes}


def _draw_curves(
    axes: "Axes",
    rows: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    colours: Mapping[str, str],
) -> None:
    middles = np.array([(row["start"] + row["end"]) / 2 for row in rows])
    for name in sorted(classes, key=lambda name: colours[name] != OTHERS):  # grey ones below
        values = [(row.get("probabilities") or {}).get(name, np.nan) for row in rows]
        axes.plot(
            middles,
            values,
            color=colours[name],
            linewidth=1.3 if colours[name] != OTHERS else 0.6,
            marker="o" if len(rows) <= MARKED else None,
            markersize=3,
        )
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("probability", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)


def _draw_band(axes: "Axes", rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """The class of each window; where windows overlap, the later one covers that before it."""
    spans = [(row["start"], row["end"], _colour(row, colours)) for row in rows]
    for colour, same in groupby(spans, key=lambda span: span[2]):
        axes.broken_barh([(a, b - a) for a, b, _ in same], (0, 1), facecolors=colour)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel("class", fontsize=8)


def _colour(row: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    if "error" in row:
        return FAILED
    return NO_CLASS if row.get("label") is None else colours[row["label"]]
