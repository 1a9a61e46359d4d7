"""What the demo's page shows of a clip, and the page: frames, probabilities, rationale."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from rbft.runtime.html import plain
from rbft.video.packet_index import VideoError
from rbft.video_classifier import Prediction, SeenFrame, VideoClassifier

MOST_FRAMES = 48  # pictures on the page; longer clips show as many, evenly chosen
QUALITY = 90  # of JPEG
WAITING = "<p>Choose a clip, then Classify.</p>"
HOUR = 3600  # seconds; uploaded clips that are as old are deleted
STYLE = """
.rbft-model { opacity: 0.75; overflow-wrap: anywhere; }
.rbft-label { font-size: 1.6rem; font-weight: 600; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
.rbft-error { font-weight: 600; overflow-wrap: anywhere; }
.rbft-row { display: grid; grid-template-columns: minmax(5rem, 1fr) 3fr 4.5rem; gap: 0.75rem;
  align-items: center; margin: 0.35rem 0; }
.rbft-row > :first-child { overflow-wrap: anywhere; }
.rbft-row > :last-child { text-align: right; font-variant-numeric: tabular-nums; }
.rbft-track { background: var(--border-color-primary); border-radius: 4px; height: 0.9rem; }
.rbft-bar { background: var(--color-accent); border-radius: 4px; height: 100%; min-width: 2px; }
.rbft-frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
  gap: 0.75rem; align-items: end; }
.rbft-frames figure { margin: 0; }
.rbft-frames img { width: 100%; margin: 0; border-radius: 4px; }
.rbft-frames figcaption { text-align: center; font-variant-numeric: tabular-nums; }
/* To cut a clip, Gradio would fetch a program from elsewhere. */
#clip .icon-button-wrapper button:not([aria-label="Clear"]) { display: none; }
"""


@dataclass(frozen=True)
class Shown:
    """What the page shows of a clip.

    Attributes:
        result: The class and a bar for the probability of each, or what is wrong, as HTML.
        rationale: What the model wrote about the clip; empty where it was not asked.
        frames: The frames that it saw, with the second of each, as HTML.
    """

    result: str
    rationale: str = ""
    frames: str = ""


def show(model: VideoClassifier, video: str | None, *, rationale: bool) -> Shown:
    """Asks the model about a clip.

    Args:
        model: The model.
        video: The clip's file; None where none was chosen.
        rationale: Whether to have a rationale written.
    """
    if video is None:
        return Shown(_said("Choose a clip first."))
    try:
        frames = model.frames(video)
        found = model.predict(video, rationale=rationale)
    except VideoError as error:
        # The file lies where the page has put it, which tells nobody anything.
        return Shown(_said(f"{Path(video).name} {error.reason}"))
    except ValueError as error:
        return Shown(_said(str(error)))
    text = found.text if found.rationale is None else found.rationale
    return Shown(result(found), text.strip(), strip(frames))


def result(found: Prediction) -> str:
    """The class, or all classes, and a bar for the probability of each class, as HTML.

    Args:
        found: What the model says.
    """
    label = "no class" if found.label is None else found.label
    if found.labels is not None:
        label = ", ".join(found.labels) or "none of the classes"
    lines = [f'<p class="rbft-label">{plain(label)}</p>']
    if found.likeliest not in (None, found.label):
        lines.append(
            f"<p>The threshold that was chosen for {plain(label)} decides; likeliest is "
            f"{plain(str(found.likeliest))}.</p>"
        )
    lines += [_row(name, share) for name, share in found.probabilities.items()]
    if not found.probabilities:
        lines.append(f"<p>The model wrote: {plain(found.text)}</p>")
    return "".join(lines)


def _row(name: str, share: float) -> str:
    return (
        f'<div class="rbft-row"><span>{plain(name)}</span><div class="rbft-track">'
        f'<div class="rbft-bar" style="width: {100 * share:.2f}%"></div></div>'
        f"<span>{100 * share:.1f} %</span></div>"
    )


def _said(text: str) -> str:
    return f'<p class="rbft-error">{plain(text)}</p>'


def strip(frames: list[SeenFrame]) -> str:
    """Pictures with the second of each, and how many there are, as HTML.

    Args:
        frames: All frames of a clip; of many, some are taken, evenly chosen.
    """
    height, width, _ = frames[0].picture.shape
    shown = min(len(frames), MOST_FRAMES)
    last = len(frames) - 1
    chosen = [frames[round(n * last / max(1, shown - 1))] for n in range(shown)]
    more = f" {shown} of them are shown." if shown < len(frames) else ""
    figures = "".join(
        f'<figure><img src="data:image/jpeg;base64,{_jpeg(one.picture)}" '
        f'alt="frame at {one.seconds:.1f} s"><figcaption>{one.seconds:.1f} s</figcaption></figure>'
        for one in chosen
    )
    return (
        f"<p>The model sees {len(frames)} frames of {width} x {height} pixels, from "
        f"{frames[0].seconds:.1f} to {frames[-1].seconds:.1f} s.{more}</p>"
        f'<div class="rbft-frames">{figures}</div>'
    )


def _jpeg(picture: UInt8[ndarray, "height width 3"]) -> str:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=QUALITY, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode()


def build_page(model: VideoClassifier) -> tuple[Any, Mapping[str, Any]]:
    """The page, and what it is launched with; needs Gradio.

    Args:
        model: The model that is asked.
    """
    import gradio as gr  # pyright: ignore[reportMissingImports] (an extra)

    # Nothing is fetched from elsewhere: these fonts are the system's.
    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    name, *made = model.model.splitlines()
    with gr.Blocks(title="rbft demo", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.HTML(
            f"<h1>{plain(', '.join(model.classes[:-1]))} or {plain(model.classes[-1])}?</h1>"
            f'<p class="rbft-model">{plain(name)}<br>{plain("; ".join(made))}</p>'
        )
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Clip", sources=["upload"], height=320, elem_id="clip")
                wanted = gr.Checkbox(True, label="Also write a rationale", elem_id="wanted")
                ask = gr.Button("Classify", variant="primary", elem_id="ask")
            with gr.Column():
                said = gr.HTML(WAITING, elem_id="result")
                text = gr.Textbox(
                    label="Rationale", lines=6, interactive=False, elem_id="rationale"
                )
        frames = gr.HTML(elem_id="frames")

        def answer(clip: str | None, explain: bool) -> tuple[Any, ...]:
            found = show(model, clip, rationale=explain)
            return found.result, found.rationale, found.frames

        shown = [said, text, frames]
        ask.click(answer, [video, wanted], shown, api_name="classify")
        # What was said of another clip goes away.
        video.change(lambda: (WAITING, "", ""), None, shown, queue=False, api_visibility="private")
    options = {"theme": theme, "css": STYLE, "footer_links": [], "ssr_mode": False}
    return page, {**options, "share": False, "run_history": False, "enable_monitoring": False}
