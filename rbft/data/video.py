from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Video:
    frames: Tensor
    indices: list[int]
    total_frames: int
    fps: float

    @property
    def sampled_fps(self):
        return len(self.indices) / self.total_frames * self.fps

    def seconds_per_pair(self, temporal_patch_size=2):
        return temporal_patch_size / self.sampled_fps


def decode_video(
    path,
    *,
    fps,
    num_frames,
    min_pixels,
    max_pixels,
    min_frames,
    max_frames,
    start,
    end,
    reader,
    factor=28,
):
    import av
    import torchvision.transforms.v2.functional as F
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

    with av.open(str(path)) as c:
        s = c.streams.video[0]
        rate = float(s.average_rate)
        fr = torch.stack(
            [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in c.decode(s)]
        ).permute(0, 3, 1, 2)
    n = len(fr)
    k = min(min(max(n / rate * fps, min_frames), max_frames), n)
    k = int(k // 2 * 2)
    idx = torch.linspace(0, n - 1, k).round().long()
    h, w = smart_resize(fr.shape[2], fr.shape[3], factor, min_pixels, max_pixels)
    return Video(
        F.resize(fr[idx], [h, w], interpolation=F.InterpolationMode.BICUBIC, antialias=True),
        idx.tolist(),
        n,
        rate,
    )
