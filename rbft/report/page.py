"""The report as one HTML page without a network: tables, figures, pictures, filters and sorting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbft.report.clips_html import attention_html, mistakes_html
from rbft.report.content import Content
from rbft.report.figures import HUES
from rbft.report.figures_html import confusions_html, curves_html, reliability_html
from rbft.report.gather import GatheredRun
from rbft.report.markup import framed, section_html
from rbft.report.mistakes import Mistake, find_mistakes
from rbft.report.pictures import Budget
from rbft.report.videos import Videos, digests_of
from rbft.runtime.html import plain, security_policy

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
        "scores": confusions_html(content, places),
        "calibration": reliability_html(content, places),
        "attention": attention_html(content, places, budget),
    }
    parts = {
        one.key: section_html(one, places, figures.get(one.key, "")) for one in content.sections
    }
    titles = {one.key: one.title for one in content.sections}
    curves = curves_html(content.gathered.runs, places)
    shown = mistakes_html(mistakes, wrong, places, budget, videos)
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
        order.append(("missing", "Not here", framed("missing", "Not here", body)))
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
