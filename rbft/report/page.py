"""The report as one HTML page without a network: tables, figures, pictures, filters and sorting."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbft.report.attention import attended_clips
from rbft.report.content import Content
from rbft.report.curves import Curve
from rbft.report.figures import HUES, confusion_matrix, line_chart, reliability_diagram
from rbft.report.gather import GatheredRun
from rbft.report.mistakes import Mistake, Said, find_mistakes
from rbft.report.pictures import Budget, strip_image
from rbft.report.tables import Cell, Row, Section, Table
from rbft.report.videos import Videos, clip_frames, digests_of
from rbft.runtime.html import plain, security_policy
from rbft.stages import STAGES
from rbft.video.packet_index import VideoError

MB = 1_000_000
OPEN_CURVES = ("train/loss", "val/loss", "val/accuracy", "val/f1/macro")  # the others are folded
NAMED = 3  # pictures that a note names


@dataclass(frozen=True)
class Made:
    """The page, and what became of its pictures.

    Attributes:
        text: HTML.
        pictures: Pictures that it has.
        dropped: Pictures that did not fit.
        notes: What else to say about it.
    """

    text: str
    pictures: int
    dropped: int
    notes: tuple[str, ...]


def as_page(content: Content, title: str, max_bytes: int, videos: Videos | None) -> Made:
    """The page.

    Pictures come last, into what the tables leave of its size: attention strips, then the frames
    of the clips that runs were surest of and wrong about.

    Args:
        content: What the report says.
        title: The page's heading.
        max_bytes: Largest size; pictures are left out to keep it.
        videos: Where videos are; None shows no frames.
    """
    places = {run.name: place for place, run in enumerate(content.gathered.runs)}
    mistakes, wrong = find_mistakes(
        content.gathered, content.conditions, digests_of(content.gathered.runs)
    )
    budget = Budget(0)
    bare = _document(content, title, places, mistakes, wrong, budget, None)
    budget = Budget(max(0, max_bytes - len(bare.encode(errors="replace")) - 2000))
    text = _document(content, title, places, mistakes, wrong, budget, videos)
    notes = [f"Not shown: {', '.join(budget.lost[:NAMED])}"] if budget.lost else []
    size = len(text.encode(errors="replace"))
    if size > max_bytes:
        notes.append(
            f"Without any picture the page has {size / MB:.1f} MB, more than --max_mb "
            f"({max_bytes / MB:g}). Name fewer runs (--runs) to make it smaller."
        )
    return Made(text, budget.taken, budget.dropped, tuple(notes))


def _document(
    content: Content,
    title: str,
    places: Mapping[str, int],
    mistakes: Sequence[Mistake],
    wrong: int,
    budget: Budget,
    videos: Videos | None,
) -> str:
    figures = {
        "scores": _confusions(content, places),
        "calibration": _reliability(content, places),
        "attention": _attention(content, places, budget),
    }
    parts = {one.key: _section(one, places, figures.get(one.key, "")) for one in content.sections}
    titles = {one.key: one.title for one in content.sections}
    curves = _curves(content.gathered.runs, places)
    shown = _mistakes(mistakes, wrong, places, budget, videos)
    order: list[tuple[str, str, str]] = []
    for key, text in parts.items():
        order.append((key, titles[key], text))
        if key == "differences":
            order.append(("curves", "Learning curves", curves))
        if key == "calibration":
            order.append(("mistakes", "Surest mistakes", shown))
    missing = [
        f"<li>{plain(one.title)}: {plain(one.about)}</li>"
        for one in content.sections
        if not parts[one.key]
    ]
    missing += ["<li>Learning curves: no run has left any.</li>"] if not curves else []
    missing += [
        "<li>Surest mistakes: no final result on the test split has a wrong answer with a "
        "probability.</li>"
    ] * (not shown)
    if missing:
        body = f'<ul class="notes">{"".join(missing)}</ul>'
        order.append(("missing", "Not here", _framed("missing", "Not here", body)))
    order = [one for one in order if one[2]]
    note = ""
    if budget.dropped:
        note = (
            f'<p class="note" id="dropped">{budget.dropped} pictures are left out to keep the page '
            "within its size; --max_mb allows a larger one.</p>"
        )
    folder = Path(__file__).parent
    style, script = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    links = "".join(f'<a href="#{key}">{plain(name)}</a>' for key, name, _ in order)
    body = "".join(text for _, _, text in order)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{security_policy(style, script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{plain(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the tables</a>
<header>
<div class="title"><h1>{plain(title)}</h1> <span id="shown" role="status"></span></div>
{_filters(content.gathered.runs)}
<nav aria-label="Sections">{links}</nav>
</header>
<main id="main" tabindex="-1">
{note}{body}</main>
<script>{script}</script>
</body>
</html>
"""


def _filters(runs: Sequence[GatheredRun]) -> str:
    benchmarks = list(dict.fromkeys(run.benchmark for run in runs if run.benchmark))
    options = "".join(
        f'<option value="{plain(name)}">{plain(name)}</option>' for name in benchmarks
    )
    boxes = "".join(
        f'<label class="run"><input type="checkbox" name="run" value="{place}" '
        f'data-name="{plain(run.name)}" data-benchmark="{plain(run.benchmark)}" checked>'
        f'<span class="key hue{place % HUES}"></span>{plain(run.name)}</label>'
        for place, run in enumerate(runs)
    )
    return f"""<form autocomplete="off" hidden>
<label>runs <input id="text" type="search" placeholder="part of a name"></label>
<label>benchmark <select id="benchmark"><option value="">all</option>{options}</select></label>
<details id="choose"><summary>choose runs</summary>
<fieldset><legend>Runs</legend>{boxes}</fieldset></details>
<button type="reset">show all</button>
</form>"""


def _section(section: Section, places: Mapping[str, int], figures: str) -> str:
    """A section; empty where there is nothing to show."""
    if not section.tables and not figures:
        return ""
    about = f'<p class="about">{plain(section.about)}</p>' if section.about else ""
    tables = "".join(
        _table(one, f"{section.key}-{number}", places)
        for number, one in enumerate(section.tables, start=1)
    )
    return _framed(section.key, section.title, about + tables + figures)


def _framed(key: str, title: str, body: str) -> str:
    return (
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{plain(title)}'
        f"</h2>\n{body}</section>\n"
    )


def _table(table: Table, key: str, places: Mapping[str, int]) -> str:
    head = "".join(_header(name, table.sortable) for name in table.columns)
    rows = "".join(_row(one, places) for one in table.rows)
    notes = "".join(f"<li>{plain(note)}</li>" for note in table.notes)
    kind = ' class="sortable"' if table.sortable else ""
    body = (
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="{key}-title">'
        f"<table{kind}><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )
    title = f'<h3 id="{key}-title">{plain(table.title)}</h3>'
    if table.folded:
        return f"<details><summary>{title}</summary>{body}</details>\n"
    return f"<div>{title}{body}</div>\n"


def _header(name: str, sortable: bool) -> str:
    if not sortable:
        return f'<th scope="col">{plain(name)}</th>'
    return f'<th scope="col"><button type="button">{plain(name)}</button></th>'


def _row(row: Row, places: Mapping[str, int]) -> str:
    kind = f' class="{row.kind}"' if row.kind else ""
    first, *others = row.cells
    cells = f'<th scope="row"{_value(first)}>{plain(first.text)}</th>'
    cells += "".join(f"<td{_kind(one)}{_value(one)}>{plain(one.text)}</td>" for one in others)
    return f"<tr{kind}{_runs(row.runs, places)}>{cells}</tr>\n"


def _kind(cell: Cell) -> str:
    return ' class="number"' if cell.value is not None else ""


def _value(cell: Cell) -> str:
    known = cell.value is not None and math.isfinite(cell.value)
    return f' data-value="{cell.value:.9g}"' if known else ""


def _runs(names: Iterable[str], places: Mapping[str, int]) -> str:
    """By which runs a filter shows it; nothing is shown always."""
    found = _numbers(names, places)
    return f' data-runs="{found}"' if found else ""


def _numbers(names: Iterable[str], places: Mapping[str, int]) -> str:
    return " ".join(str(places[name]) for name in dict.fromkeys(names) if name in places)


def _confusions(content: Content, places: Mapping[str, int]) -> str:
    made = "".join(
        f'<div class="figure"{_runs((one.run,), places)}>{confusion_matrix(one)}</div>'
        for one in content.finals
    )
    if not made:
        return ""
    about = "Final results on the test split; the shade is the share of the label's clips."
    return f'<h3>Confusion matrices</h3><p class="about">{about}</p><div class="grid">{made}</div>'


def _reliability(content: Content, places: Mapping[str, int]) -> str:
    made = "".join(
        f'<figure class="figure"{_runs((one.run,), places)}>{drawn}'
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


def _curves(runs: Sequence[GatheredRun], places: Mapping[str, int]) -> str:
    """A chart for each stage and tag, a line for each run."""
    found: dict[tuple[str, str], dict[str, tuple[int, str, Curve]]] = {}
    for run in runs:
        for stage in run.steps.values():
            for tag, curve in stage.curves.items():
                if tag.startswith(("test/", "hp_metric", "epoch", "step")) or not curve:
                    continue
                lines = found.setdefault((stage.name, tag), {})
                lines[run.name] = (places[run.name], str(places[run.name]), curve)
    # A figure that was taken once, as that of a scored split, is no curve.
    found = {
        key: lines
        for key, lines in found.items()
        if any(len(curve) > 1 for _, _, curve in lines.values())
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
    return _framed("curves", "Learning curves", body)


def _first(tag: str) -> int:
    return OPEN_CURVES.index(tag) if tag in OPEN_CURVES else len(OPEN_CURVES)


def _chart(
    stage: str,
    tag: str,
    lines: Mapping[str, tuple[int, str, Curve]],
    runs: Sequence[GatheredRun],
) -> str:
    paper = STAGES[stage].paper if stage in STAGES else stage
    drawn = line_chart(f"{tag} of {paper}", lines, tag)
    if not drawn:
        return ""
    names = "".join(
        f'<li data-runs="{place}"><span class="key hue{place % HUES}"></span>{plain(name)}</li>'
        for name, (place, _, _) in lines.items()
    )
    by_place = _numbers(lines, {run.name: place for place, run in enumerate(runs)})
    return (
        f'<figure class="figure" data-runs="{by_place}">{drawn}<figcaption>{plain(tag)}, '
        f'{plain(paper)}</figcaption><ul class="legend">{names}</ul></figure>'
    )


def _mistakes(
    mistakes: Sequence[Mistake],
    wrong: int,
    places: Mapping[str, int],
    budget: Budget,
    videos: Videos | None,
) -> str:
    if not mistakes:
        return ""
    about = (
        f"The {len(mistakes)} clips about which runs were surest and wrong, of {wrong} wrong "
        "answers in final results on the test split, with what every run that was scored alike "
        "said."
    )
    made = "".join(_mistake(one, places, budget, videos) for one in mistakes)
    return _framed(
        "mistakes",
        "Surest mistakes",
        f'<p class="about">{plain(about)}</p><div class="pairs">{made}</div>',
    )


def _mistake(one: Mistake, places: Mapping[str, int], budget: Budget, videos: Videos | None) -> str:
    pictures, note = _frames(one, budget, videos)
    strip = f'<div class="strip">{pictures}</div>' if pictures else ""
    strip += f'<p class="note">{plain(note)}</p>' if note else ""
    said = "".join(_said(each, places) for each in one.said)
    text = ""
    if one.rationale:
        text = (
            "<details><summary>rationale written about this clip</summary>"
            f'<p dir="auto">{plain(one.rationale)}</p></details>'
        )
    wrong = [each.run for each in one.said if not each.right]
    return (
        f'<article class="mistake"{_runs(wrong, places)}><h3>{plain(one.id)}</h3>'
        f'<p>label <strong>{plain(one.label)}</strong> <span class="quiet">clips '
        f'{one.letter}</span></p>{strip}<ul class="said">{said}</ul>{text}</article>\n'
    )


def _said(one: Said, places: Mapping[str, int]) -> str:
    sure = "" if one.probability is None else f" {100 * one.probability:.1f} %"
    verdict = "right" if one.right else "wrong"
    answer = one.prediction or "no class"
    text = ""
    if one.text and one.text != answer:
        text = f'<p class="wrote" dir="auto">{plain(one.text)}</p>'
    return (
        f'<li class="{verdict}"{_runs((one.run,), places)}><span class="key '
        f'hue{places[one.run] % HUES}"></span>{plain(one.run)}: <strong>{plain(answer)}</strong>'
        f"{sure} <em>{verdict}</em>{text}</li>"
    )


def _frames(one: Mistake, budget: Budget, videos: Videos | None) -> tuple[str, str]:
    """Frames of a clip, and why there are none."""
    if videos is None:
        return "", ""
    if one.video is None or not one.video.get("video"):
        return "", "The run has not noted which video this is."
    path = videos.find(str(one.video["video"]))
    if path is None:
        return "", "The video is not where it was, or was never scanned on this machine."
    if budget.left <= 0:
        budget.dropped += 1
        return "", ""
    try:
        frames = clip_frames(path, one.video.get("start"), one.video.get("end"))
    except (VideoError, OSError) as error:
        budget.lost.append(one.id)
        return "", f"No frames: {error}"
    made = [
        budget.image(jpeg, "jpeg", width, height, f"frame at {when:.1f} s")
        for jpeg, width, height, when in frames
    ]
    return "".join(made), ""


def _attention(content: Content, places: Mapping[str, int], budget: Budget) -> str:
    """Strips of attention maps, those of a clip below each other."""
    made = []
    for clip in attended_clips(content.gathered):
        strips = []
        for one in clip.strips:
            try:
                data, width, height = strip_image(one.file)
            except OSError:
                budget.lost.append(str(one.file))
                note = f"{one.run}: {one.file.name} cannot be read."
                strips.append(f'<p class="note"{_runs((one.run,), places)}>{plain(note)}</p>')
                continue
            figures = ", ".join(
                f"{name} {value:.3g}"
                for name, value in one.scores.items()
                if isinstance(value, int | float)
            )
            image = budget.image(data, "jpeg", width, height, f"where {one.run} looks in {clip.id}")
            caption = f'{plain(one.run)} <span class="quiet">{plain(figures)}</span>'
            strips.append(
                f'<figure class="attended"{_runs((one.run,), places)}>'
                f"<figcaption>{caption}</figcaption>{image}</figure>"
            )
        label = f' <span class="quiet">label {plain(clip.label)}</span>' if clip.label else ""
        runs = _runs((one.run for one in clip.strips), places)
        made.append(
            f'<article class="mistake"{runs}><h3>{plain(clip.id)}{label}</h3>'
            f"{''.join(strips)}</article>"
        )
    return "".join(made)
