"""Whose frames are the file's: FFmpeg, qwen-vl-utils, decord and rbft on every kind of video.

The kinds are those of `tests/variants.py`: containers, codecs, clocks, turned pictures, and with
the program ffmpeg also what PyAV cannot write. FFmpeg's decoding of each file from start to end
is the truth. Every reader then takes its frames at 2 per second; they are right if each is the
truth's frame at the evenly spaced place, up to the rounding of colours and of resizing. A crash of
the process, and a reader that hangs, count as refused. Last come the processor seconds for
three long clips and any others. torchcodec takes part where it is installed.

Run: python benchmarks/frames_truth.py [--rounds 3] [--clips FILE ...] [--only NAME ...]
"""

import argparse
import os
import pickle
import shutil
import signal
import statistics
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"  # read at import
sys.path.insert(0, str(Path(__file__).parents[1]))

import av
import decord
import numpy as np
import torch
from qwen_vl_utils.vision_process import fetch_video
from table import machine, middle

from rbft.runtime.console import print_rank_zero, table
from rbft.video.frame_settings import FrameSettings
from rbft.video.packet_index import VideoInfo
from rbft.video.sampling import decode_video, plan_frames
from tests.variants import FROM_FFMPEG, MADE, UPRIGHT, decode_all, make_variant

SETTINGS: dict[str, Any] = {"fps": 2.0, "min_pixels": 28 * 28, "max_pixels": 150_000}
LONG: dict[str, Any] = {"fps": 1.0, "min_pixels": 128 * 28 * 28, "max_pixels": 360 * 420}
LIMIT = 120  # seconds after which a reader hangs
CLOSE = 4.0  # mean difference of 255 that colour conversion and resizing explain
Frames = torch.Tensor


def ffmpeg(path: Path, settings: dict[str, Any]) -> Frames:
    """All frames from start to end, then the evenly spaced ones."""
    pictures = decode_all(path)
    return torch.from_numpy(np.stack(pictures[:: max(1, len(pictures) // 8)])).permute(0, 3, 1, 2)


def qwen(path: Path, settings: dict[str, Any]) -> Frames:
    """`fetch_video` of qwen-vl-utils with decord, and no other reader after an error of that."""
    found: Any = fetch_video(
        {"video": str(path), **settings}, return_video_metadata=True, return_video_sample_fps=True
    )
    frames, metadata = found[0]
    assert metadata["video_backend"] == "decord"
    return frames


def by_decord(path: Path, settings: dict[str, Any]) -> Frames:
    """The library decord alone, at evenly spaced places among the frames that it counts."""
    video = decord.VideoReader(str(path), num_threads=1)
    height, width = video[0].shape[:2]
    info = VideoInfo(len(video), float(video.get_avg_fps()), width, height, 0.0)
    indices, _ = plan_frames(info, FrameSettings(**settings))
    return torch.from_numpy(video.get_batch(indices).asnumpy()).permute(0, 3, 1, 2)


def rbft(path: Path, settings: dict[str, Any]) -> Frames:
    """`decode_video`."""
    return decode_video(path, FrameSettings(**settings)).frames


def rbft_decord(path: Path, settings: dict[str, Any]) -> Frames:
    """`decode_video` with decord, where rbft lets it."""
    return decode_video(path, FrameSettings(**settings, reader="decord")).frames


def rbft_torchcodec(path: Path, settings: dict[str, Any]) -> Frames:
    """`decode_video` with torchcodec, where rbft lets it."""
    return decode_video(path, FrameSettings(**settings, reader="torchcodec")).frames


READERS = {"qwen-vl-utils": qwen, "decord": by_decord, "rbft": rbft, "rbft, decord": rbft_decord}
LIBRARIES = ["av", "decord", "qwen-vl-utils", "torch"]
if find_spec("torchcodec"):
    import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports]

    READERS["rbft, torchcodec"] = rbft_torchcodec
    LIBRARIES.append("torchcodec")


def apart(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a function gives in a process of its own, None if it fails, and its CPU seconds."""
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        signal.alarm(LIMIT)
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(sender, "wb") as stream:
                pickle.dump(work(), stream)
            status = 0
        finally:
            os._exit(status)
    os.close(sender)
    with os.fdopen(receiver, "rb") as stream:
        data = stream.read()
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    return (pickle.loads(data) if not status else None), seconds


def judge(truth: list[np.ndarray], frames: np.ndarray | None) -> str:
    """Right, wrong or refused."""
    if frames is None:
        return "refused"
    size = frames.shape[2:]
    places = torch.linspace(0, len(truth) - 1, len(frames)).round().long().tolist()
    for place, found in zip(places, frames, strict=True):
        given = torch.from_numpy(truth[place].copy()).permute(2, 0, 1)[None].float()
        if given.shape[2:] != size:
            given = torch.nn.functional.interpolate(given, size, mode="bicubic", antialias=True)
        if np.abs(given[0].clamp(0, 255).numpy() - found).mean() > CLOSE:
            return "wrong"
    return "right"


def compare(names: list[str], folder: Path) -> None:
    """The table of all kinds, and what it sums up to."""
    rows, counts = [], {reader: Counter() for reader in READERS}
    seconds = dict.fromkeys(("FFmpeg", *READERS), 0.0)
    for name in names:
        path = make_variant(name, folder)
        upright = UPRIGHT.get(name, lambda picture: picture)
        truth = [upright(picture) for picture in decode_all(path)]
        seconds["FFmpeg"] += apart(lambda path=path: ffmpeg(path, SETTINGS).numpy()[:1])[1]
        row = [name, str(len(truth))]
        for reader, read in READERS.items():
            found, used = apart(lambda read=read, path=path: read(path, SETTINGS).numpy())
            verdict = judge(truth, found)
            counts[reader][verdict] += 1
            seconds[reader] += used
            row.append(verdict)
        rows.append(row)
    print_rank_zero(table(rows, ["kind", "frames", *READERS], align="lr" + "l" * len(READERS)))
    sums = [["FFmpeg", str(len(names)), "0", "0", f"{seconds['FFmpeg']:.1f}"]]
    for reader, found in counts.items():
        figures = [str(found[verdict]) for verdict in ("right", "wrong", "refused")]
        sums.append([reader, *figures, f"{seconds[reader]:.1f}"])
    print_rank_zero(table(sums, ["reader", "right", "wrong", "refused", "CPU s"], align="lrrrr"))


def render(
    path: Path, seconds: int, rate: int, height: int, width: int, *, noise: bool = True
) -> Path:
    """A clip with moving shapes before noise, or before smooth waves, H.264."""
    if noise:
        ground = np.random.default_rng(0).integers(0, 24, (height, width, 3), dtype=np.uint8)
    else:
        rows, columns = np.mgrid[0:height, 0:width]
        waves = 40 * np.sin(columns / 37) + 30 * np.cos(rows / 23)
        ground = waves.astype(np.uint8)[..., None].repeat(3, 2)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(rate * seconds):
            picture = np.roll(ground, number * 3, axis=1) + 60
            x = number * 7 % (width * 6 // 7)
            picture[height // 4 : height // 2, x : x + width // 7] = (200, 80, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def time_long(clips: list[Path], rounds: int) -> None:
    """Processor seconds of each reader, taking turns."""
    readers = {name: read for name, read in READERS.items() if name != "decord"}
    rows = []
    for clip in clips:
        used: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(rounds):
            for name, read in readers.items():
                found, seconds = apart(lambda read=read, clip=clip: len(read(clip, LONG)))
                assert found, f"{name} cannot read {clip}"
                used[name].append(seconds)
        least = statistics.median(used["qwen-vl-utils"])
        for name, values in used.items():
            share = f"{statistics.median(values) / least:.2f}"
            rows.append([clip.name if name in "qwen-vl-utils" else "", name, middle(values), share])
    print_rank_zero(table(rows, ["clip", "reader", "CPU s", "of qwen-vl-utils"], align="llrr"))


def main() -> None:
    """Makes the files, compares, times."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of the long clips; 0 for none")
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="more of them")
    parser.add_argument("--only", nargs="*", default=None, help="kinds by name (default: all)")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print_rank_zero(machine(*LIBRARIES))
    names = [*MADE, *FROM_FFMPEG] if shutil.which("ffmpeg") else MADE
    if not shutil.which("ffmpeg"):
        print_rank_zero(f"{len(FROM_FFMPEG)} kinds need the program ffmpeg and are left out.")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if names := names if given.only is None else given.only:
            compare(names, root)
        if given.rounds:
            long = [
                render(root / "60 s of 720p.mp4", 60, 25, 720, 1280),
                render(root / "10 min of 320x240.mp4", 600, 25, 240, 320),
                render(root / "10 min, no noise.mp4", 600, 25, 240, 320, noise=False),
            ]
            time_long([*long, *given.clips], given.rounds)


if __name__ == "__main__":
    main()
