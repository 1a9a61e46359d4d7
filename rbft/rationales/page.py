"""One HTML page to read rationales in, beside the frames that they are about.

It needs no server and no network: styles, script and pictures stand in the file, and its content
security policy forbids all else, so that nothing that a model has written can run or be fetched.
"""

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from rbft.card import Card
from rbft.rationales.quality import Flag
from rbft.rationales.sample import STOPPED, Sample
from rbft.rationales.words import ClassWords, words
from rbft.runs.folder import TOLD
from rbft.runtime.files import write_text
from rbft.runtime.html import plain, security_policy

FRAMES = 8  # of a clip's film strip
HEIGHT = 128  # pixels of a frame in the file; it is shown 104 high
SHOWN_HEIGHT = 104  # as in page.css
WIDE = 1.2  # width over height from which on eight frames in a row are too small on a small screen
QUALITY = 80  # of JPEG, 1 to 95
NO_LABEL = "no label"
HUES = 6  # colours of classes in page.css
_NO_TEXT = '<p class="none">nothing was written about this clip</p>'
FLAG_NAMES = {
    "length": "length",
    "repetition": "repetition",
    "truncated": "truncated",
    "refusal": "refusal",
    "class_words": "class words",
    "language": "language",
    "near_duplicate": "near-duplicate",
    TOLD: "label-conditioned",
}


@dataclass(frozen=True)
class Picture:
    """A frame of a film strip.

    Attributes:
        jpeg: The encoded picture.
        width: In pixels.
        height: In pixels.
        seconds: When the frame stands in its clip, None where that is unknown.
    """

    jpeg: bytes
    width: int
    height: int
    seconds: float | None = None


@dataclass(frozen=True)
class PageRationale:
    """A rationale as the page shows it.

    Attributes:
        column: The prompt or store that it is from; one heading for all clips.
        sample: The rationale.
        writer: Who wrote it: a model's name, "human", or empty.
        flags: What the rules found about it.
        learnt: Whether training takes it; of several samples of a clip, one is taken.
    """

    column: str
    sample: Sample
    writer: str = ""
    flags: tuple[Flag, ...] = ()
    learnt: bool = True


@dataclass(frozen=True)
class PageClip:
    """A clip as the page shows it.

    Attributes:
        id: Its name.
        label: Its class's name, None where it is unknown.
        pictures: The film strip.
        rationales: What was written about it, in the order of the columns.
        note: What else is to be said, such as why there are no pictures.
    """

    id: str
    label: str | None
    pictures: tuple[Picture, ...]
    rationales: tuple[PageRationale, ...]
    note: str = ""


def film_strip(
    frames: UInt8[ndarray, "frames height width 3"],
    seconds: Sequence[float] | None = None,
    *,
    count: int = FRAMES,
    height: int = HEIGHT,
) -> tuple[Picture, ...]:
    """Evenly chosen frames, made small.

    Args:
        frames: All frames that the model is shown, RGB.
        seconds: When each stands in the clip.
        count: Frames to take; the first and the last are among them.
        height: Of the pictures in pixels; smaller frames stay as they are.
    """
    from PIL import Image

    places = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int).tolist()
    pictures = []
    for place in places:
        image = Image.fromarray(frames[place])
        if image.height > height:
            width = max(1, round(image.width * height / image.height))
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        buffer = BytesIO()
        image.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
        when = None if seconds is None else float(seconds[place])
        pictures.append(Picture(buffer.getvalue(), image.width, image.height, when))
    return tuple(pictures)


def write_page(
    path: Path, title: str, clips: Iterable[PageClip], card: Card, about: str = ""
) -> int:
    """Writes the page, atomically.

    It takes about 40 kB a clip with eight frames; a thousand clips stay usable, since a browser
    lays out and decodes only what is near.

    Args:
        path: The HTML file; an older one is replaced.
        title: The page's heading.
        clips: What to show, in order.
        card: Whose classes can be chosen, and whose class words are marked in the texts.
        about: Plain text that can be unfolded, such as the report of the rules.

    Returns:
        Number of clips written.

    Raises:
        ValueError: If there is no clip.
    """
    class_words = ClassWords.of(card)
    counts: dict[str, Counter[str]] = {"class": Counter(), "flag": Counter(), "column": Counter()}
    columns: list[str] = []
    lengths: Counter[str] = Counter()
    parts = []
    for number, clip in enumerate(clips, 1):
        columns += [one.column for one in clip.rationales if one.column not in columns]
        parts.append(_clip(number, clip, card.classes, class_words, columns))
        counts["class"][clip.label or NO_LABEL] += 1
        for one in clip.rationales:
            place = str(columns.index(one.column))
            counts["column"][place] += 1
            lengths[place] += len(one.sample.text)
            names = _flag_names(one)
            counts["flag"].update([*names, *(["any"] if names else ["none"])])
    if not parts:
        raise ValueError(
            f"There is no clip to show in {path}. Have rationales written first, or name another "
            "split."
        )
    folder = Path(__file__).parent
    style, script = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    style += _widths(lengths, counts["column"])
    policy = security_policy(style, script)
    classes = [name for name in (*card.classes, NO_LABEL) if counts["class"][name]]
    flags = ["any", "none", *(name for name in FLAG_NAMES if counts["flag"][name])]
    names = {str(place): name for place, name in enumerate(columns)}
    shown_flags = {"any": "any flag", "none": "no flag", **FLAG_NAMES}
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{plain(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<div class="title">
<h1>{plain(title)}</h1> <span id="shown" role="status">{len(parts)} clips</span>
<span class="keys"><kbd>j</kbd> next <kbd>k</kbd> back <kbd>/</kbd> search <kbd>Esc</kbd> all</span>
</div>
<form autocomplete="off">
<label>class {_select("class", "all", classes, {}, counts["class"])}</label>
<label>flag {_select("flag", "all", flags, shown_flags, counts["flag"])}</label>
<label>prompt {_select("column", "all", list(names), names, counts["column"])}</label>
<label>words <input id="least" type="number" min="0" aria-label="fewest words" placeholder="from">
<input id="most" type="number" min="0" aria-label="most words" placeholder="to"></label>
<label>text <input id="text" type="search" placeholder="in text or clip name"></label>
<button type="reset">show all</button>
</form>
{_about(about)}</header>
<main>
<noscript><p class="none">Pictures and filters need JavaScript; the texts do not.</p></noscript>
{"".join(parts)}<p id="nothing" hidden>No rationale is like that. Press Esc to see all.</p>
</main>
<script>{script}</script>
</body>
</html>
"""
    write_text(path, page)
    return len(parts)


def _clip(
    number: int,
    clip: PageClip,
    classes: Sequence[str],
    class_words: ClassWords,
    columns: list[str],
) -> str:
    label = clip.label or NO_LABEL
    note = f'<p class="none">{plain(clip.note)}</p>\n' if clip.note else ""
    texts = "".join(_rationale(one, class_words, columns) for one in clip.rationales)
    hue = str(classes.index(label) % HUES) if label in classes else ""
    wide = " wide" if any(one.width > WIDE * one.height for one in clip.pictures) else ""
    return f"""<section class="clip" data-class="{plain(label)}">
<div class="head"><span class="number">{number}</span>
<span class="class hue{hue}">{plain(label)}</span>
<h2>{plain(clip.id)}</h2></div>
{note}<div class="strip{wide}">{"".join(map(_picture, clip.pictures))}</div>
<div class="texts">
{texts or _NO_TEXT}</div>
</section>
"""


def _rationale(one: PageRationale, class_words: ClassWords, columns: list[str]) -> str:
    sample, names = one.sample, _flag_names(one)
    count = len(words(sample.text))
    facts = [f"{count} words"]
    facts += [f"{sample.tokens} tokens"] if sample.tokens is not None else []
    facts += [sample.finish] if sample.finish != STOPPED else []
    facts += [one.writer] if one.writer else []
    facts += [] if one.learnt else ["not learnt"]
    numbered = sample.number or not one.learnt
    number = f" <span>sample {sample.number + 1}</span>" if numbered else ""
    items = [
        f'<li class="{"dropped" if flag.dropped else "shown"}">'
        f"{FLAG_NAMES[flag.filter]}: {plain(flag.reason)}</li>"
        for flag in one.flags
    ]
    if sample.label_conditioned:
        items.insert(0, '<li class="told">label-conditioned: the writer was told the class</li>')
    flags = f'<ul class="flags">{"".join(items)}</ul>\n' if items else ""
    return f"""<article class="rationale" data-column="{columns.index(one.column)}"
 data-flags="{" ".join(names)}" data-words="{count}">
<h3>{plain(one.column)}{number}</h3> <div class="facts">{plain(" · ".join(facts))}</div>
{flags}<div class="text">{_paragraphs(sample.text, class_words)}</div>
</article>
"""


def _picture(one: Picture) -> str:
    # The width stands there before the picture does, so that nothing moves when it comes.
    width = round(one.width * SHOWN_HEIGHT / one.height)
    when = "" if one.seconds is None else f"{one.seconds:.1f} s"
    data = base64.b64encode(one.jpeg).decode()
    name = f"frame at {when}" if when else "frame"
    return (
        f'<img data-src="data:image/jpeg;base64,{data}" width="{width}" height="{SHOWN_HEIGHT}" '
        f'alt="{name}" title="{when}" loading="lazy" decoding="async">'
    )


def _flag_names(one: PageRationale) -> list[str]:
    """Names of what the rationale is flagged for, each once."""
    told = [TOLD] if one.sample.label_conditioned else []
    return list(dict.fromkeys([*told, *(flag.filter for flag in one.flags)]))


def _paragraphs(text: str, class_words: ClassWords) -> str:
    parts = re.split(r"\s*\n\s*\n\s*", text.strip())
    return "".join(f'<p dir="auto">{_marked(part, class_words)}</p>' for part in parts)


def _marked(text: str, class_words: ClassWords) -> str:
    """The text with the class words marked."""
    found, last = [], 0
    for start, stop, _ in class_words.find(text):
        found.append(f"{plain(text[last:start])}<mark>{plain(text[start:stop])}</mark>")
        last = stop
    return "".join([*found, plain(text[last:])])


def _select(
    name: str, everything: str, values: Sequence[str], shown: dict[str, str], counts: Counter[str]
) -> str:
    options = [
        f'<option value="{plain(value)}">{plain(shown.get(value, value))} ({counts[value]})'
        "</option>"
        for value in values
    ]
    return f'<select id="{name}"><option value="">{everything}</option>{"".join(options)}</select>'


def _widths(lengths: Counter[str], counts: Counter[str]) -> str:
    """Style that makes columns of long texts wider, the same for all clips."""
    means = {place: max(1.0, lengths[place] / counts[place]) for place in counts}
    rules = []
    for place, mean in means.items():
        grow = min(3.0, (mean / min(means.values())) ** 0.5)
        rules.append(f'.rationale[data-column="{place}"] {{ flex-grow: {grow:.2f}; }}\n')
    return "".join(rules)


def _about(text: str) -> str:
    if not text:
        return ""
    return f'<details class="about"><summary>rules</summary><pre>{plain(text)}</pre></details>\n'
