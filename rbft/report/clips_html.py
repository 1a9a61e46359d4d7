"""Clips on the page: those that runs were surest of and wrong about, and where models look."""

from collections import Counter
from collections.abc import Sequence

from rbft.report.attention import attended_clips
from rbft.report.content import Content
from rbft.report.figures import HUES
from rbft.report.markup import Places, framed, shown_with
from rbft.report.mistakes import Mistake, Said
from rbft.report.pictures import Budget, strip_image
from rbft.report.videos import Videos, clip_frames
from rbft.runtime.html import plain
from rbft.video.packet_index import VideoError


def mistakes_html(
    mistakes: Sequence[Mistake],
    wrong: int,
    places: Places,
    budget: Budget,
    videos: Videos | None,
) -> str:
    """The section of the clips that runs were surest of and wrong about; empty without any.

    Args:
        mistakes: The clips.
        wrong: Wrong answers in all.
        places: Number of each run.
        budget: What pictures may take.
        videos: Where videos are; None shows no frames.
    """
    if not mistakes:
        return ""
    made, reasons = [], Counter[str]()
    for one in mistakes:
        text, reason = _mistake(one, places, budget, videos)
        made.append(text)
        reasons.update([reason] * bool(reason))
    about = (
        f"The {len(mistakes)} clips about which runs were surest and wrong, of {wrong} wrong "
        "answers in final results on the test split, with what every run that was scored alike "
        "said."
    )
    about += "".join(f" Without frames: {count}, {why}." for why, count in reasons.items())
    body = f'<p class="about">{plain(about)}</p><div class="pairs">{"".join(made)}</div>'
    return framed("mistakes", "Surest mistakes", body)


def _mistake(
    one: Mistake, places: Places, budget: Budget, videos: Videos | None
) -> tuple[str, str]:
    """A clip, and why it has no frames."""
    pictures, reason = _frames(one, budget, videos)
    strip = f'<div class="strip">{pictures}</div>' if pictures else ""
    said = "".join(_said(each, places) for each in one.said)
    text = ""
    if one.rationale:
        text = (
            "<details><summary>rationale written about this clip</summary>"
            f'<p dir="auto">{plain(one.rationale)}</p></details>'
        )
    wrong = [each.run for each in one.said if not each.right]
    made = (
        f'<article class="mistake"{shown_with(wrong, places)}><h3>{plain(one.id)}</h3>'
        f'<p>label <strong>{plain(one.label)}</strong> <span class="quiet">clips '
        f'{one.letter}</span></p>{strip}<ul class="said">{said}</ul>{text}</article>\n'
    )
    return made, reason


def _said(one: Said, places: Places) -> str:
    sure = "" if one.probability is None else f" {100 * one.probability:.1f}\u00a0%"
    verdict = "right" if one.right else "wrong"
    answer = one.prediction or "no class"
    text = ""
    if one.text and one.text != answer:
        text = f'<p class="wrote" dir="auto">{plain(one.text)}</p>'
    return (
        f'<li class="{verdict}"{shown_with((one.run,), places)}><span class="key '
        f'hue{places[one.run] % HUES}"></span>{plain(one.run)}: <strong>{plain(answer)}</strong>'
        f"{sure} <em>{verdict}</em>{text}</li>"
    )


def _frames(one: Mistake, budget: Budget, videos: Videos | None) -> tuple[str, str]:
    """Frames of a clip, and why there are none."""
    if videos is None:
        return "", ""
    if one.video is None or not one.video.get("video"):
        return "", "the run has not noted which video it is"
    path = videos.find(str(one.video["video"]))
    if path is None:
        return "", "the video is not where it was, or was never scanned on this machine"
    if budget.left <= 0:
        budget.dropped += 1
        return "", ""
    try:
        frames = clip_frames(path, one.video.get("start"), one.video.get("end"))
    except (VideoError, OSError) as error:
        budget.lost.append(one.id)
        return "", str(error).rstrip(".")
    made = [
        budget.image(jpeg, "jpeg", width, height, f"frame at {when:.1f} s")
        for jpeg, width, height, when in frames
    ]
    return "".join(made), ""


def attention_html(content: Content, places: Places, budget: Budget) -> str:
    """Strips of attention maps, those of a clip below each other.

    Args:
        content: What the report says.
        places: Number of each run.
        budget: What pictures may take.
    """
    made = []
    for clip in attended_clips(content.gathered):
        strips = []
        for one in clip.strips:
            try:
                data, width, height = strip_image(one.file)
            except OSError:
                budget.lost.append(str(one.file))
                note = f"{one.run}: {one.file.name} cannot be read."
                strips.append(f'<p class="note"{shown_with((one.run,), places)}>{plain(note)}</p>')
                continue
            figures = ", ".join(
                f"{name} {value:.3g}"
                for name, value in one.scores.items()
                if isinstance(value, int | float)
            )
            image = budget.image(data, "jpeg", width, height, f"where {one.run} looks in {clip.id}")
            caption = f'{plain(one.run)} <span class="quiet">{plain(figures)}</span>'
            strips.append(
                f'<figure class="attended"{shown_with((one.run,), places)}>'
                f"<figcaption>{caption}</figcaption>{image}</figure>"
            )
        label = f' <span class="quiet">label {plain(clip.label)}</span>' if clip.label else ""
        runs = shown_with((one.run for one in clip.strips), places)
        made.append(
            f'<article class="mistake"{runs}><h3>{plain(clip.id)}{label}</h3>'
            f"{''.join(strips)}</article>"
        )
    return "".join(made)
