"""From a video file to what the model takes: clips per second against the peers' path.

The peer path is what the public Qwen-VL trainers do for every clip in every epoch:
`fetch_video` of qwen-vl-utils, then transformers' video processor. rbft's is `decode_video`
through the frame cache, empty (cold) and full (warm), then the same processor. The paths take
turns within each round; before any timing, they must agree on grid and pixels.

Run: python benchmarks/input_pipeline.py --rounds 5 [--clips FOLDER]
"""

import argparse
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("FORCE_QWENVL_VIDEO_READER", "decord")

import torch

from rbft.runtime.console import print_rank_zero, table
from rbft.video.frame_cache import FrameCache
from rbft.video.frame_settings import FrameSettings

SAMPLING: dict[str, Any] = {"fps": 1.0, "min_pixels": 128 * 28 * 28, "max_pixels": 360 * 420}
LIBRARIES = ("torch", "transformers", "qwen-vl-utils", "decord", "av")


def render(path: Path, seconds: int = 60) -> Path:
    """A 1280 x 720 clip at 25 frames a second with moving shapes and noise, H.264."""
    import av
    import numpy as np

    generator = np.random.default_rng(0)
    grain = generator.integers(0, 24, (720, 1280, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for number in range(25 * seconds):
            picture = np.roll(grain, number * 3, axis=1) + 60
            x = number * 7 % 1100
            picture[200:380, x : x + 180] = (200, 80, 40)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def patches(frames: Any) -> tuple[torch.Tensor, list[list[int]]]:
    """The model's patches and grid, by transformers' processor, frames at their final size."""
    from transformers import Qwen2VLVideoProcessor

    processor = Qwen2VLVideoProcessor()
    made = processor(
        videos=[frames],
        do_resize=False,
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        return_tensors="pt",
    )
    return made["pixel_values_videos"], made["video_grid_thw"].tolist()


def peer(path: Path, cache: Path) -> tuple[torch.Tensor, list[list[int]]]:
    """qwen-vl-utils, then the processor."""
    from qwen_vl_utils.vision_process import fetch_video

    del cache
    return patches(fetch_video({"video": str(path), **SAMPLING}))


def rbft(path: Path, cache: Path) -> tuple[torch.Tensor, list[list[int]]]:
    """Our reader through its cache, then the processor."""
    settings = FrameSettings(**SAMPLING)
    return patches(FrameCache(cache, 1 << 34).get_or_decode(path, settings).frames)


def uncached(path: Path, cache: Path) -> tuple[torch.Tensor, list[list[int]]]:
    """The same with an empty cache: decodes, and writes the entry."""
    FrameCache(cache, 1 << 34).clear()
    return rbft(path, cache)


PATHS: dict[str, Callable[[Path, Path], Any]] = {
    "qwen-vl-utils + processor": peer,
    "rbft, cold": uncached,
    "rbft, warm": rbft,
}


def check_same_on_all_processes(path: Path, cache: Path) -> float:
    """Largest mean difference of pixels (of 255) over frames; the grids must be equal."""
    (theirs, their_grid), (ours, our_grid) = peer(path, cache), rbft(path, cache)
    if their_grid != our_grid:
        sys.exit(f"{path.name}: grids differ, {their_grid} and {our_grid}; nothing is timed.")
    difference = float((theirs - ours).abs().mean()) * 0.27 * 255  # the processor's scale
    if difference > 0.5:
        sys.exit(f"{path.name}: pixels differ by {difference:.2f} of 255; nothing is timed.")
    return difference


def seconds(function: Callable[[Path, Path], Any], clip: Path, cache: Path) -> tuple[float, float]:
    """Processor and wall seconds of one clip."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    function(clip, cache)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - start


def peak(name: str, clips: list[Path], cache: Path) -> float:
    """Peak memory in GB of a fresh process that takes the clips three times."""
    torch.set_num_threads(1)
    for _ in range(3):
        for clip in clips:
            PATHS[name](clip, cache)
    # Not ru_maxrss: a child starts with its parent's.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def main() -> None:
    """Renders, compares, times, prints."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all paths (default 5)")
    parser.add_argument("--clips", type=Path, help="folder of real .mp4 clips to time as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        cache = Path(made, "cache")
        clips = [render(Path(made, "render 60 s 720p.mp4"))]
        clips += sorted(given.clips.glob("*.mp4")) if given.clips else []
        packages = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        print_rank_zero(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        print_rank_zero(f"{packages}; {given.rounds} rounds, one thread, medians (lowest-highest)")
        rows = []
        for clip in clips:
            difference = check_same_on_all_processes(clip, cache)
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in PATHS}
            for _ in range(given.rounds):
                for name, function in PATHS.items():
                    taken[name].append(seconds(function, clip, cache))
            base = statistics.median(used for used, _ in taken["qwen-vl-utils + processor"])
            for name, times in taken.items():
                used, wall = (sorted(values) for values in zip(*times, strict=True))
                rows.append(
                    [
                        clip.stem if name == "qwen-vl-utils + processor" else "",
                        name,
                        f"{statistics.median(used):.3f} ({used[0]:.3f}-{used[-1]:.3f})",
                        f"{1 / statistics.median(wall):.2f}",
                        f"{base / statistics.median(used):.1f}x",
                    ]
                )
            print_rank_zero(
                f"{clip.stem}: same grid, pixels differ by {difference:.2f} of 255 on average"
            )
        print_rank_zero(table(rows, ["clip", "path", "CPU s a clip", "clips/s", "faster (CPU)"]))
        pool = get_context("spawn")
        for name in PATHS:
            with pool.Pool(1) as process:
                used = process.apply(peak, (name, clips, cache))
            print_rank_zero(f"peak memory of a worker, {name}: {used:.2f} GB")


if __name__ == "__main__":
    main()
