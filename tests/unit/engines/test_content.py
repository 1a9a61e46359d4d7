import base64
import io
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from rbft.engines.content import AsImages, AsVideo, frames_digest
from rbft.video.sampling import Video


def clip(frames: int = 4, size: tuple[int, int] = (56, 84)) -> Video:
    pixels = torch.randint(0, 256, (frames, 3, *size), dtype=torch.uint8)
    return Video(pixels, [7 + 30 * n for n in range(frames)], 150, 29.97)


def as_vllm_reads(parts: list[dict[str, Any]], fields: dict[str, Any]) -> tuple[Any, VideoMetadata]:
    """Frames and metadata as vLLM 0.33 takes them from a list of pictures (`load_base64`)."""
    [part] = parts
    assert part["type"] == "video_url"
    kind, data = part["video_url"]["url"].removeprefix("data:").split(",", 1)
    assert kind == "video/jpeg;base64"
    given = dict(fields["media_io_kwargs"]["video"])
    assert given.pop("num_frames") == -1
    assert given.pop("do_sample_frames") is False
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in data.split(",")]
    frames = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return frames, VideoMetadata(**given)


@pytest.mark.parametrize("size", [(56, 84), (28, 28), (336, 448)])
def test_a_video_arrives_bit_for_bit_with_its_times(size: tuple[int, int]) -> None:
    video = clip(size=size)
    content = AsVideo().content(video)
    frames, metadata = as_vllm_reads(content.parts, content.fields)
    assert np.array_equal(frames, video.frames.permute(0, 2, 3, 1).numpy())
    assert (metadata.fps, metadata.total_num_frames) == (29.97, 150)
    assert metadata.frames_indices == video.indices
    assert metadata.duration == pytest.approx(150 / 29.97)
    assert metadata.sampled_fps == pytest.approx(video.sampled_fps)


@pytest.mark.parametrize("frames", [2, 4, 5])
@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 1), (12, 16)])
def test_the_processor_of_the_model_leaves_the_size_alone(
    frames: int, grid: tuple[int, int], side: int
) -> None:
    """Against transformers: with the bounds that are sent, the resize is the identity."""
    video = clip(frames, (grid[0] * side, grid[1] * side))
    content = AsVideo(side).content(video)
    sent, metadata = as_vllm_reads(content.parts, content.fields)
    bounds = content.fields["mm_processor_kwargs"]
    if side == 32:  # as vLLM hands them on
        edges = {"shortest_edge": bounds["min_pixels"], "longest_edge": bounds["max_pixels"]}
        bounds = {"size": edges}
    kind = Qwen2VLVideoProcessor if side == 28 else Qwen3VLVideoProcessor
    processor = kind(cap_pixels_per_frame=False)
    pixels = torch.from_numpy(sent).permute(0, 3, 1, 2)
    with warnings.catch_warnings():  # of these names, which vLLM 0.33 takes, in transformers 5.23
        warnings.simplefilter("ignore", FutureWarning)
        made = processor([pixels], video_metadata=[metadata], do_sample_frames=False, **bounds)
    right = processor([video.frames], do_resize=False, do_sample_frames=False)
    assert torch.equal(made["pixel_values_videos"], right["pixel_values_videos"])
    assert torch.equal(made["video_grid_thw"], right["video_grid_thw"])
    tokens = int(made["video_grid_thw"].prod()) // processor.merge_size**2
    assert content.tokens == tokens


@pytest.mark.parametrize(("size", "side"), [((56, 60), 28), ((50, 56), 28), ((56, 56), 32)])
def test_frames_that_the_server_would_resize_are_refused(size: tuple[int, int], side: int) -> None:
    with pytest.raises(ValueError, match="resized") as error:
        AsVideo(side).content(clip(size=size))
    assert str(error.value) == (
        f"Frames of {size[1]}x{size[0]} pixels would be resized by the server: both sides must be "
        f"multiples of {side}, as those are that rbft takes for a backbone with such tokens. Set "
        "the side of the model's tokens, or send the frames as images."
    )


def test_images_arrive_bit_for_bit_in_order() -> None:
    video = clip(size=(30, 50))
    content = AsImages("low").content(video)
    assert content.fields == {}
    assert content.tokens is None
    for part, frame in zip(content.parts, video.frames, strict=True):
        assert part["type"] == "image_url"
        assert part["image_url"]["detail"] == "low"
        kind, data = part["image_url"]["url"].split(",")
        assert kind == "data:image/png;base64"
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert np.array_equal(picture, frame.permute(1, 2, 0).numpy())


def test_images_after_their_seconds() -> None:
    parts = AsImages(times=True).content(clip()).parts
    assert [part["text"] for part in parts[::2]] == ["0.2 s:", "1.2 s:", "2.2 s:", "3.2 s:"]
    assert {part["type"] for part in parts[1::2]} == {"image_url"}


def test_what_the_model_sees_is_said() -> None:
    assert AsVideo().content(clip()).shown == (
        "One video of 4 frames of 84x56 pixels, bit for bit those that rbft took, with their "
        "numbers in a file of 29.97 frames per second; the server neither samples nor resizes."
    )
    assert AsImages().content(clip()).shown == (
        "4 still pictures of 84x56 pixels in order, without their times, sent without loss "
        "(detail: high); the server resizes them by its own rules, and the model sees no video."
    )
    assert ", each after its second as text, " in AsImages(times=True).content(clip()).shown


def test_the_digest_follows_every_pixel_and_every_time() -> None:
    video = clip()
    assert frames_digest(video) == frames_digest(replace(video, frames=video.frames.clone()))
    strided = video.frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert frames_digest(replace(video, frames=strided)) == frames_digest(video)
    pixel = video.frames.clone()
    pixel[-1, -1, -1, -1] ^= 1
    others = [
        replace(video, frames=pixel),
        replace(video, frames=video.frames.reshape(4, 3, 84, 56)),
        replace(video, indices=[8, *video.indices[1:]]),
        replace(video, total_frames=151),
        replace(video, fps=30.0),
    ]
    digests = {frames_digest(one) for one in (video, *others)}
    assert len(digests) == 6
    assert {len(one) for one in digests} == {32}
