"""Figures of the page with their captions and legends."""

from collections.abc import Mapping, Sequence

from rbft.report.content import Content
from rbft.report.curves import Curve
from rbft.report.figures import HUES, confusion_matrix, line_chart, reliability_diagram
from rbft.report.gather import GatheredRun
from rbft.report.markup import Places, framed, run_numbers, shown_with
from rbft.runtime.html import plain
from rbft.stages import find_stage, is_stage

OPEN_CURVES = ("train/loss", "val/loss", "val/accuracy", "val/f1/macro")  # the others are folded


def confusions_html(content: Content, places: Places) -> str:
    """Confusion matrices of the final results."""
    made = "".join(
        f'<div class="figure"{shown_with((one.run,), places)}>{confusion_matrix(one)}</div>'
        for one in content.finals
    )
    if not made:
        return ""
    about = "Final results on the test split; the shade is the share of the label's clips."
    return f'<h3>Confusion matrices</h3><p class="about">{about}</p><div class="grid">{made}</div>'


def reliability_html(content: Content, places: Places) -> str:
    """Reliability diagrams of the final results."""
    made = "".join(
        f'<figure class="figure"{shown_with((one.run,), places)}>{drawn}'
        f"<figcaption>{plain(one.run)}: {plain(one.title)}</figcaption></figure>"
        for one in content.finals
        if (drawn := reliability_diagram(one))
    )
    if not made:
        return ""
    about = (
        "A point is a bin of clips, larger for more of them, with the 95 % interval of its "
        "accuracy; below the line the probabilities are too sure."
    )
    return f'<h3>Reliability</h3><p class="about">{about}</p><div class="grid">{made}</div>'


def curves_html(runs: Sequence[GatheredRun], places: Places) -> str:
    """A chart for each stage and tag, a line for each run."""
    found: dict[tuple[str, str], dict[str, tuple[int, str, Curve]]] = {}
    for run in runs:
        for stage in run.steps.values():
            for tag, curve in stage.curves.items():
                if tag.startswith(("test/", "hp_metric", "epoch", "step")) or not curve:
                    continue
                lines = found.setdefault((stage.name, tag), {})
                lines[run.name] = (places[run.name], str(places[run.name]), curve)
    # What was taken once is no curve; but of a short run, losses are shown all the same.
    found = {
        key: lines
        for key, lines in found.items()
        if key[1] in OPEN_CURVES or any(len(curve) > 1 for _, _, curve in lines.values())
    }
    if not found:
        return ""
    stages = list(dict.fromkeys(name for run in runs for name in run.steps))
    order = sorted(found, key=lambda one: (_first(one[1]), one[1], stages.index(one[0])))
    first = "".join(_chart(*one, found[one], runs) for one in order if one[1] in OPEN_CURVES)
    rest = "".join(_chart(*one, found[one], runs) for one in order if one[1] not in OPEN_CURVES)
    body = f'<div class="grid">{first}</div>' if first else ""
    if rest:
        summary = "<summary>learning rates, gradients, speed and others</summary>"
        body += f'<details>{summary}<div class="grid">{rest}</div></details>'
    return framed("curves", "Learning curves", body)


def _first(tag: str) -> int:
    return OPEN_CURVES.index(tag) if tag in OPEN_CURVES else len(OPEN_CURVES)


def _chart(
    stage: str,
    tag: str,
    lines: Mapping[str, tuple[int, str, Curve]],
    runs: Sequence[GatheredRun],
) -> str:
    paper = find_stage(stage).paper if is_stage(stage) else stage
    drawn = line_chart(f"{tag} of {paper}", lines, tag)
    if not drawn:
        return ""
    names = "".join(
        f'<li data-runs="{place}"><span class="key hue{place % HUES}"></span>{plain(name)}</li>'
        for name, (place, _, _) in lines.items()
    )
    by_place = run_numbers(lines, {run.name: place for place, run in enumerate(runs)})
    return (
        f'<figure class="figure" data-runs="{by_place}">{drawn}<figcaption>{plain(tag)}, '
        f'{plain(paper)}</figcaption><ul class="legend">{names}</ul></figure>'
    )
