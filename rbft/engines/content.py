"""What is sent of a clip's frames, and what the model then sees of them.

rbft chooses and resizes frames itself. A server that samples or resizes them again shows the model
another clip than the one it was trained on, or than the one that other models were shown. `AsVideo`
gives vLLM the frames as one video, which it takes as they are; `AsImages` is for servers that take
no frames of videos.
"""

import base64
import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from rbft.video.sampling import Video
from rbft.video.times import TEMPORAL_PATCH

LENGTH = 32  # hexadecimal characters of a digest


QWEN3_SIDE = 32  # pixels per side of a token of Qwen3-VL


@dataclass(frozen=True)
class Content:
    """A clip as a chat request carries it.

    Attributes:
        parts: Parts of the user's message, before the prompt.
        fields: Fields of the request beside the messages.
        tokens: How many tokens of the prompt the clip is, where the form knows.
        shown: In words, what the model sees.
    """

    parts: list[dict[str, Any]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = 0
    shown: str = "No clip: the prompt alone."


@runtime_checkable
class Form(Protocol):
    """A way to send frames."""

    def facts(self) -> dict[str, Any]:
        """What determines the form: part of a request's key in the store."""
        ...

    def content(self, video: Video) -> Content:
        """The clip as a request carries it."""
        ...


@dataclass(frozen=True)
class AsVideo:
    """The frames as one video, as vLLM takes it (`--trust-request-mm-kwargs` where it asks for it).

    Each frame goes as a PNG, so without loss, with its number in the file and the file's frame
    rate, from which the model's time positions follow; the bounds for the pixels are the size that
    the frames have, so that the server's resize leaves them alone. The text of the data URL says
    `video/jpeg`, vLLM's name for a list of pictures, whatever their format.

    Args:
        side: Pixels that both sides must be a multiple of: patch size times merge size of the
            model's vision tower, 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL. The bounds for
            the pixels are those of a frame, for Qwen3-VL those of all frames together.
    """

    side: int = 28

    def facts(self) -> dict[str, Any]:
        """See `Form`."""
        return {"form": "video", "side": self.side}

    def content(self, video: Video) -> Content:
        """The frames as a `video_url` part and the fields that say how to read it.

        Raises:
            ValueError: If the server would have to resize the frames.
        """
        count, _, height, width = video.frames.shape
        if height % self.side or width % self.side:
            raise ValueError(
                f"Frames of {width}x{height} pixels would be resized by the server: both sides "
                f"must be multiples of {self.side}, as those are that rbft takes for a backbone "
                "with such tokens. Set the side of the model's tokens, or send the frames as "
                "images."
            )
        pixels = height * width * (count if self.side == QWEN3_SIDE else 1)
        url = "data:video/jpeg;base64," + ",".join(map(_base64, pngs(video.frames)))
        frames = {
            "num_frames": -1,
            "fps": float(video.fps),
            "frames_indices": [int(index) for index in video.indices],
            "total_num_frames": int(video.total_frames),
            "duration": video.total_frames / video.fps,
            "do_sample_frames": False,
        }
        return Content(
            parts=[{"type": "video_url", "video_url": {"url": url}}],
            fields={
                "media_io_kwargs": {"video": frames},
                "mm_processor_kwargs": {"min_pixels": pixels, "max_pixels": pixels},
            },
            tokens=-(-count // TEMPORAL_PATCH) * (height // self.side) * (width // self.side),
            shown=(
                f"One video of {count} frames of {width}x{height} pixels, bit for bit those that "
                f"rbft took, with their numbers in a file of {video.fps:g} frames per second; the "
                "server neither samples nor resizes."
            ),
        )


@dataclass(frozen=True)
class AsImages:
    """The frames as still pictures in order (PNG, so without loss), for any server with images.

    The model sees no video: no joined frames, no positions in time, and pictures in the size that
    the server's rules give them.

    Args:
        detail: How closely OpenAI's models look. "low" shrinks each picture.
        times: Put the second of each frame before it, as text.
    """

    detail: Literal["low", "high", "auto"] = "high"
    times: bool = False

    def facts(self) -> dict[str, Any]:
        """See `Form`."""
        return {"form": "images", "detail": self.detail, "times": self.times}

    def content(self, video: Video) -> Content:
        """The frames as `image_url` parts."""
        count, _, height, width = video.frames.shape
        parts: list[dict[str, Any]] = []
        for second, png in zip(video.seconds, pngs(video.frames), strict=True):
            if self.times:
                parts.append({"type": "text", "text": f"{second:.1f} s:"})
            url = "data:image/png;base64," + _base64(png)
            parts.append({"type": "image_url", "image_url": {"url": url, "detail": self.detail}})
        when = "each after its second as text" if self.times else "without their times"
        return Content(
            parts=parts,
            tokens=None,
            shown=(
                f"{count} still pictures of {width}x{height} pixels in order, {when}, sent without "
                f"loss (detail: {self.detail}); the server resizes them by its own rules, and the "
                "model sees no video."
            ),
        )


def pngs(frames: UInt8[Tensor, "frames 3 height width"]) -> list[bytes]:
    """Each frame as a PNG file."""
    from PIL import Image  # comes with torchvision

    made = []
    for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
        stream = io.BytesIO()
        # Level 1: a third of the time of the usual 6, for a tenth more bytes.
        Image.fromarray(frame).save(stream, "PNG", compress_level=1)
        made.append(stream.getvalue())
    return made


def frames_digest(video: Video) -> str:
    """Digest of what a model could see of a clip: every pixel and when each frame was.

    Returns:
        32 hexadecimal characters.
    """
    when = [list(map(int, video.indices)), int(video.total_frames), float(video.fps)]
    made = hashlib.sha256(json.dumps([list(video.frames.shape), when]).encode())
    made.update(np.ascontiguousarray(video.frames.numpy()).data)
    return made.hexdigest()[:LENGTH]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
