"""Pictures of maps: overlays on the frames, in strips and as a film, runs beside each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from rbft.attention.maps import Map
from rbft.masking.boxes import Box
from rbft.runtime.files import atomically
from rbft.runtime.fonts import Pen

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = UInt8[np.ndarray, "height width 3"]

Colours = Literal["viridis", "magma", "inferno", "plasma", "cividis"]  # perceptually uniform
FRAMES, WIDEST = 8, 1600  # frames that a strip shows, evenly chosen, and pixels that they may take
LEAST = 168  # pixels of a shown frame's height
STRIP_MOST, FILM_MOST = 192, 260
STRENGTH = 0.5  # of the colours over the frame
GAP, MARGIN = 8, 16
BAR = 14  # width of the colour bar
INK, FAINT = (24, 24, 28), (96, 96, 104)
FILM_FPS = 2


@dataclass(frozen=True)
class RunMap:
    """A run's map of a clip, and what it answers.

    Attributes:
        run: Name of the run.
        values: The map.
        answer: What is said about its answer: "prediction: abnormal (0.91)".
    """

    run: str
    values: Map
    answer: str


@dataclass(frozen=True)
class ShownClip:
    """A clip as pictures show it.

    Attributes:
        id: Its name.
        label: Its class, None where it is unknown.
        frames: As the model sees them.
        seconds: When each frame is shown in the clip.
        slices: Which frames each slice of a map stands for.
        boxes: The objects in each frame; None where they are not known.
    """

    id: str
    label: str | None
    frames: UInt8[np.ndarray, "frames height width 3"]
    seconds: Sequence[float]
    slices: Sequence[Sequence[int]]
    boxes: Sequence[Sequence[Box] | None]

    @property
    def shown(self) -> list[tuple[int, int]]:
        """Each frame with the slice that it belongs to, without copies."""
        return [(n, place) for place, frames in enumerate(self.slices) for n in frames]

    @property
    def title(self) -> str:
        """Id and label."""
        return f"{self.id}   label: {self.label or 'unknown'}"


def scaled(values: Map) -> Map:
    """The map from 0 (its lowest value) to 1 (its highest); 0 everywhere where all are alike."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def overlay(
    frame: Picture, heat: Float[np.ndarray, "rows columns"], size: tuple[int, int], colours: Colours
) -> UInt8[np.ndarray, "high wide 3"]:
    """A frame with a slice of a map over it, in colours, bilinear between the tokens' middles.

    Args:
        frame: The frame.
        heat: The slice, from 0 to 1.
        size: Height and width of the picture.
        colours: Name of the colours.
    """
    from matplotlib import colormaps
    from PIL import Image

    height, width = size
    smooth = Image.fromarray(heat.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    paint = colormaps[colours](np.clip(np.asarray(smooth), 0, 1))[..., :3] * 255
    # The frame in grey: its own colours would be mistaken for the map's.
    grey = np.asarray(_resized(frame, size).convert("L"), dtype=float)[..., None]
    return (STRENGTH * paint + (1 - STRENGTH) * grey).round().astype(np.uint8)


def write_strip(
    path: Path, clip: ShownClip, maps: Sequence[RunMap], colours: Colours, *, plain: bool = False
) -> None:
    """Writes a PNG: a row of frames for each map, times below them, and a colour bar.

    Args:
        path: The file.
        clip: The clip.
        maps: The maps, each scaled from 0 to 1 by itself.
        colours: Name of the colours.
        plain: Show the frames without a map above.
    """
    from PIL import Image, ImageDraw

    size = shown_size(clip.frames.shape[1], clip.frames.shape[2], STRIP_MOST)
    height, width = size
    count = min(FRAMES, len(clip.shown), max(3, WIDEST // (width + GAP)))
    chosen = np.linspace(0, len(clip.shown) - 1, count).round().astype(int).tolist()
    columns = [clip.shown[place] for place in chosen]
    title, text, small = Pen(15, bold=True), Pen(13), Pen(11)
    head, line, foot = 26, 22, 20
    rows = len(maps) + plain
    bar_room = BAR + 64
    content = count * (width + GAP) - GAP
    least = max(
        [
            title.length(clip.title),
            *(text.length(_row_title(n, one, maps)) for n, one in enumerate(maps)),
        ]
    )
    total = MARGIN * 2 + max(content + bar_room, int(least) + 1)
    tall = MARGIN + head + rows * (line + height + GAP) + foot + MARGIN // 2
    picture = Image.new("RGB", (total, tall), "white")
    draw = ImageDraw.Draw(picture)
    title.draw(draw, (MARGIN, MARGIN - 4), clip.title, INK)
    top = MARGIN + head
    if plain:
        text.draw(draw, (MARGIN, top), "frames", FAINT)
        for column, (frame, _) in enumerate(columns):
            shown = np.asarray(_resized(clip.frames[frame], size))
            spot = (MARGIN + column * (width + GAP), top + line)
            picture.paste(_outlined(shown, clip.boxes[frame]), spot)
        top += line + height + GAP
    first = top + line
    for number, one in enumerate(maps):
        heat = scaled(one.values)
        text.draw(draw, (MARGIN, top), _row_title(number, one, maps), INK)
        for column, (frame, place) in enumerate(columns):
            shown = overlay(clip.frames[frame], heat[place], size, colours)
            spot = (MARGIN + column * (width + GAP), top + line)
            picture.paste(_outlined(shown, clip.boxes[frame]), spot)
        top += line + height + GAP
    for column, (frame, _) in enumerate(columns):
        time = _time(clip, frame)
        left = MARGIN + column * (width + GAP) + (width - small.length(time)) / 2
        small.draw(draw, (left, top - GAP + 2), time, FAINT)
    left = MARGIN + content + 2 * GAP
    _colour_bar(picture, (left, first), (BAR, top - GAP - first), colours)
    with atomically(path) as part:
        picture.save(part, format="PNG", optimize=True)


def write_film(path: Path, clip: ShownClip, maps: Sequence[RunMap], colours: Colours) -> None:
    """Writes an MP4 of the clip's frames with the maps over them, runs side by side.

    Two frames a second, whatever their distance in the clip; the time stands below.

    Args:
        path: The file.
        clip: The clip.
        maps: The maps, each scaled from 0 to 1 by itself.
        colours: Name of the colours.
    """
    import av

    pictures = list(_film_frames(clip, maps, colours))
    with atomically(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", Fraction(FILM_FPS), {"crf": "20"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _film_frames(clip: ShownClip, maps: Sequence[RunMap], colours: Colours) -> Iterator[Picture]:
    from PIL import Image, ImageDraw

    size = shown_size(clip.frames.shape[1], clip.frames.shape[2], FILM_MOST)
    height, width = size
    title, text = Pen(15, bold=True), Pen(13)
    heats = [scaled(one.values) for one in maps]
    lines = [_row_title(n, one, maps).split("   ") for n, one in enumerate(maps)]
    panel = max(width, *(int(text.length(part)) + 1 for parts in lines for part in parts))
    content = len(maps) * (panel + 2 * GAP) - 2 * GAP
    total = MARGIN * 2 + max(content + BAR + 64, int(title.length(clip.title)) + 1)
    above = MARGIN + 26 + 20 * max(map(len, lines))
    tall = above + height + 26 + MARGIN // 2
    base = Image.new("RGB", (total + total % 2, tall + tall % 2), "white")  # yuv420p: even sides
    draw = ImageDraw.Draw(base)
    title.draw(draw, (MARGIN, MARGIN - 4), clip.title, INK)
    for number, parts in enumerate(lines):
        for row, part in enumerate(parts):
            left = MARGIN + number * (panel + 2 * GAP)
            text.draw(draw, (left, MARGIN + 24 + 20 * row), part, INK)
    _colour_bar(base, (MARGIN + content + 2 * GAP, above), (BAR, height), colours)
    for frame, place in clip.shown:
        picture = base.copy()
        for number, heat in enumerate(heats):
            shown = overlay(clip.frames[frame], heat[place], size, colours)
            left = MARGIN + number * (panel + 2 * GAP)
            picture.paste(_outlined(shown, clip.boxes[frame]), (left, above))
        spot = (MARGIN, above + height + 6)
        text.draw(ImageDraw.Draw(picture), spot, _time(clip, frame), FAINT)
        yield np.asarray(picture)


def shown_size(height: int, width: int, most: int) -> tuple[int, int]:
    """Height and width that frames are shown in: small ones whole times larger, large ones less.

    Args:
        height: Of a frame.
        width: Of a frame.
        most: Greatest height that large ones are shown in.
    """
    if height < LEAST:
        times = -(-LEAST // height)
        return height * times, width * times
    high = min(height, most)
    return high, max(1, round(width * high / height))


def _row_title(number: int, one: RunMap, maps: Sequence[RunMap]) -> str:
    letter = f"({chr(ord('a') + number)}) " if len(maps) > 1 else ""
    return f"{letter}{one.run}   {one.answer}"


def _time(clip: ShownClip, frame: int) -> str:
    return f"{clip.seconds[frame]:.1f} s"


def _colour_bar(
    picture: Any, spot: tuple[int, int], size: tuple[int, int], colours: Colours
) -> None:
    from matplotlib import colormaps
    from PIL import Image, ImageDraw

    (left, top), (width, height) = spot, size
    ramp = colormaps[colours](np.linspace(1, 0, height))[:, None, :3]
    paint = (np.repeat(ramp, width, axis=1) * 255).round().astype(np.uint8)
    picture.paste(Image.fromarray(paint), spot)
    draw, small = ImageDraw.Draw(picture), Pen(11)
    for share, name in ((0.0, "1"), (0.5, "0.5"), (1.0, "0")):
        spot = (left + width + 5, top + round(share * (height - small.size)) - 2)
        small.draw(draw, spot, name, FAINT)


def _outlined(picture: Picture, boxes: Sequence[Box] | None) -> "Image":
    """The picture with boxes in white on black, to be seen on any colour."""
    from PIL import Image, ImageDraw

    made = Image.fromarray(picture)
    draw = ImageDraw.Draw(made)
    for box in boxes or ():
        left, right = (round(x * (made.width - 1)) for x in (box.x1, box.x2))
        top, bottom = (round(y * (made.height - 1)) for y in (box.y1, box.y2))
        draw.rectangle((left, top, right, bottom), outline="black", width=3)
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline="white", width=1)
    return made


def _resized(frame: Picture, size: tuple[int, int]) -> "Image":
    from PIL import Image

    height, width = size
    way = Image.Resampling.NEAREST if height % frame.shape[0] == 0 else Image.Resampling.LANCZOS
    return Image.fromarray(frame).resize((width, height), way)
