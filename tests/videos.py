"""Small videos made on the spot, whose pictures tell their own frame number.

The picture is a grid of 4 x 4 blocks, black or white: the 16 bits of the frame number. A block
stays readable through lossy compression and resizing.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from av.audio import AudioStream
    from av.container import OutputContainer
    from av.video import VideoStream

GRID = 4


def picture(number: int, height: int, width: int) -> np.ndarray:
    """The picture of frame `number`, uint8 height x width x 3."""
    rows = np.arange(height) * GRID // height
    columns = np.arange(width) * GRID // width
    bits = number >> (rows[:, None] * GRID + columns) & 1
    # A coloured gradient on the blocks, so that colour and resize errors show up as well.
    ramp = np.stack(
        np.broadcast_arrays(
            np.linspace(0, 60, height)[:, None], np.linspace(60, 0, width), np.full((1, 1), 20.0)
        ),
        axis=-1,
    )
    return (bits[..., None] * 170 + ramp).astype(np.uint8)


def numbers(frames: Tensor) -> list[int]:
    """The frame number in each picture of "frames 3 height width"."""
    _, _, height, width = frames.shape
    rows = (np.arange(GRID) + 0.5) * height / GRID
    columns = (np.arange(GRID) + 0.5) * width / GRID
    red = frames[:, 0].float().numpy()
    bits = red[:, rows.astype(int)][:, :, columns.astype(int)] > 115
    return [int(frame.reshape(-1) @ (1 << np.arange(GRID * GRID))) for frame in bits]


def make_video(
    path: Path,
    frames: int = 40,
    height: int = 96,
    width: int = 128,
    fps: Fraction | int = 10,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    audio: bool = False,
    drop: int = 0,
    first: int = 0,
) -> Path:
    """Writes a video whose frame `i` shows `picture(first + i)`.

    Args:
        path: Where to; the ending chooses the container.
        frames: Frames; 0 leaves out the video stream.
        height: Height in pixels.
        width: Width in pixels.
        fps: Frames per second.
        codec: Encoder.
        pixels: Pixel format.
        options: Encoder options (`g`, `bf`, ...).
        container: Container options (`movflags`, ...).
        times: A time stamp per frame in milliseconds: a variable frame rate.
        rotation: Degrees that a player turns the picture clockwise by (a phone's display matrix).
        audio: Also write a stream of silence.
        drop: Leave out that many packets at the start, so that the file starts without a keyframe.
        first: Number in the first picture; files with other numbers have other content.
    """
    with av.open(str(path), "w", options=container or {}) as output:
        stream = cast("VideoStream | None", None)
        if frames:
            stream = cast("VideoStream", output.add_stream(codec, Fraction(fps), options or {}))
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            stream.codec_context.thread_count = 1
            if rotation:
                stream.set_display_rotation(-rotation)
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
        if audio:
            _write_silence(output, max(1, int(frames / fps)))
        packets = []
        if stream is not None:
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(first + number, height, width), "rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[number], Fraction(1, 1000)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        output.mux(packets[drop:])
    return path


def _write_silence(container: "OutputContainer", seconds: int) -> None:
    sound = cast("AudioStream", container.add_stream("aac", rate=16000, layout="mono"))
    for start in range(0, 16000 * seconds, 1024):
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate, silence.pts = 16000, start
        container.mux(sound.encode(silence))
    container.mux(sound.encode(None))
