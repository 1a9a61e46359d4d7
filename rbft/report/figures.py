"""Curves, reliability diagrams and confusion matrices as small SVG and HTML, without a library.

Colours stand in the page's style, by class, so that they fit light and dark; no attribute `style`
is used, which the page's security policy would refuse.
"""

import math
from collections.abc import Mapping, Sequence

from rbft.report.curves import Curve, thinned
from rbft.report.results import Result
from rbft.runtime.html import plain

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
POINTS = 160  # of a curve; more cannot be told apart at this width
HUES = 8  # colours in page.css
SHADES = 10  # of a confusion matrix
Number = float | int


def line_chart(title: str, curves: Mapping[str, tuple[int, str, Curve]], ylabel: str) -> str:
    """Curves over optimiser steps.

    Args:
        title: What the chart shows, for those who cannot see it too.
        curves: By what the legend calls them: number of the colour, names for the filter, points.
        ylabel: Title of the vertical axis.
    """
    points = [point for _, _, curve in curves.values() for point in curve]
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return ""
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    ticks_x, ticks_y = _ticks(min(xs), max(xs), whole=True), _ticks(min(ys), max(ys))
    frame = _Frame(ticks_x, ticks_y)
    parts = [frame.axes("optimiser step", ylabel)]
    for name, (hue, runs, curve) in curves.items():
        shown = [(x, y) for x, y in thinned(curve, POINTS) if math.isfinite(y)]
        if not shown:
            continue
        drawn = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in shown)
        body = f'<polyline class="line hue{hue % HUES}" points="{drawn}"/>'
        if len(shown) < 3:
            body += "".join(
                f'<circle class="dot hue{hue % HUES}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="3"/>'
                for x, y in shown
            )
        parts.append(f'<g data-runs="{runs}"><title>{plain(name)}</title>{body}</g>')
    last = ", ".join(
        f"{name} ends at {curve[-1][1]:.4g}" for name, (_, _, curve) in curves.items() if curve
    )
    return _svg(f"{title} over optimiser steps: {last}.", "".join(parts))


def reliability_diagram(result: Result) -> str:
    """Accuracy of each bin over its mean confidence, with intervals; empty without probabilities.

    Args:
        result: Has the bins in its `calibration`.
    """
    found = result.content.get("calibration")
    if not isinstance(found, dict) or not found.get("bins"):
        return ""
    frame = _Frame([0, 0.25, 0.5, 0.75, 1], [0, 0.25, 0.5, 0.75, 1])
    parts = [frame.axes("probability of the likeliest class", "accuracy")]
    parts.append(
        f'<line class="even" x1="{frame.x(0)}" y1="{frame.y(0)}" x2="{frame.x(1)}" '
        f'y2="{frame.y(1)}"/>'
    )
    most = max(one["n"] for one in found["bins"])
    said = []
    for one in found["bins"]:
        x, y = frame.x(one["confidence"]), frame.y(one["accuracy"])
        low, high = (frame.y(one["interval"][end]) for end in ("low", "high"))
        radius = f"{2 + 4 * math.sqrt(one['n'] / most):.1f}"
        text = (
            f"{one['n']} clips with {100 * one['low']:.0f} to {100 * one['high']:.0f} %: mean "
            f"{100 * one['confidence']:.1f} %, right {100 * one['accuracy']:.1f} %"
        )
        said.append(text)
        parts.append(
            f'<g><title>{plain(text)}</title><line class="whisker" x1="{x}" y1="{low}" x2="{x}" '
            f'y2="{high}"/><circle class="dot hue0" cx="{x}" cy="{y}" r="{radius}"/></g>'
        )
    label = f"Reliability of {result.run}, {result.title}: {'; '.join(said)}."
    return _svg(label, "".join(parts))


def confusion_matrix(result: Result) -> str:
    """Clips by label and prediction, as an HTML table with the share of each row as its shade.

    Args:
        result: Has the counts.
    """
    counts, columns = result.confusion, [*result.classes, "no class"]
    if not counts[:, -1].sum():
        counts, columns = counts[:, :-1], columns[:-1]
    head = "".join(f'<th scope="col">{plain(name)}</th>' for name in columns)
    rows = []
    for name, row in zip(result.classes, counts.tolist(), strict=True):
        total = max(1, sum(row))
        shown = "".join(
            f'<td class="shade{round(SHADES * count / total)}">{count}'
            f"<small>{100 * count / total:.0f} %</small></td>"
            for count in row
        )
        rows.append(f'<tr><th scope="row">{plain(name)}</th>{shown}</tr>')
    return (
        f'<table class="confusion"><caption>{plain(_caption(result))}</caption><thead><tr>'
        f'<td class="corner">label ↓ prediction →</td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _caption(result: Result) -> str:
    return f"{result.run}: {result.title}, n = {result.n}"


class _Frame:
    """Axes between the first and the last tick."""

    def __init__(self, ticks_x: Sequence[Number], ticks_y: Sequence[Number]) -> None:
        self.ticks_x, self.ticks_y = ticks_x, ticks_y

    def x(self, value: Number) -> str:
        return self._place(value, self.ticks_x, LEFT, WIDTH - RIGHT)

    def y(self, value: Number) -> str:
        return self._place(value, self.ticks_y, HEIGHT - BOTTOM, TOP)

    def _place(self, value: Number, ticks: Sequence[Number], start: int, stop: int) -> str:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return f"{start + share * (stop - start):.1f}".removesuffix(".0")

    def axes(self, xlabel: str, ylabel: str) -> str:
        parts = []
        for tick in self.ticks_y:
            y = self.y(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"/>'
                f'<text class="tick end" x="{LEFT - 5}" y="{y}" dy="0.32em">{tick:.4g}</text>'
            )
        for tick in self.ticks_x:
            x = self.x(tick)
            parts.append(
                f'<text class="tick mid" x="{x}" y="{HEIGHT - BOTTOM + 13}">{tick:.6g}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) // 2
        parts.append(f'<text class="tick mid" x="{middle}" y="{HEIGHT - 5}">{plain(xlabel)}</text>')
        high = (TOP + HEIGHT - BOTTOM) // 2
        parts.append(
            f'<text class="tick mid" x="11" y="{high}" transform="rotate(-90 11 {high})">'
            f"{plain(ylabel)}</text>"
        )
        return "".join(parts)


def _svg(label: str, body: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{plain(label)}">{body}</svg>'
    )


def _ticks(low: Number, high: Number, *, whole: bool = False) -> list[float]:
    """Round numbers around a range, three to six of them."""
    if high - low <= 1e-12 * max(1.0, abs(high)):
        half = max(1.0, abs(high)) * (1 if whole else 0.05)
        low, high = low - half, high + half
        low = max(0.0, low) if whole else low
    size = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(size))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= size)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, max(last, first + 1) + 1)]
