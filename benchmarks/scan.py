"""How long a scan takes: 10,000 rows of a table over 1,000 small video files.

The first scan reads every file once, whatever number of rows share it; the second finds all of
them in what the first left. Beside them stand the least that each could do, measured in the same
run: opening every file with PyAV and decoding its first frame, hashing its content, and asking the
file system for its size and time of change. Before any figure, the scan's must be those that the
files were made with.

Run: python benchmarks/scan.py [--rows 10000 --files 1000 --rounds 5]
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np

from rbft.commands.starter_card import write_starter
from rbft.data.clip_files import SCAN_THREADS
from rbft.data.manifest import Manifest
from rbft.data.videofolder import VideoFolder
from rbft.runtime.console import print_rank_zero, table
from rbft.runtime.digests import hash_file

# Frames, frames per second, height and width.
KINDS = ((40, 10, 96, 128), (90, 30, 240, 320), (150, 30, 360, 640))
SETTINGS: dict[str, Any] = {
    "fps": 1.0,
    "max_pixels": 360 * 420,
    "min_pixels": 128 * 28 * 28,
    "min_frames": 4,
    "max_frames": 768,
    "global_batch_size": 16,
    "rationale_ratio": 1.0,
}


def film(path: Path, frames: int, fps: int, height: int, width: int) -> bytes:
    """A video in which a bright square moves."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = np.full((height, width, 3), 60, np.uint8)
            x = number * 3 % (width - 24)
            picture[20:44, x : x + 24] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def make(folder: Path, rows: int, files: int) -> None:
    """Files of the three kinds in turn, and a table whose rows are seconds of them."""
    kinds = [film(folder / "film.mp4", *kind) for kind in KINDS]
    (folder / "film.mp4").unlink()
    for number in range(files):
        (folder / f"{number:05}.mp4").write_bytes(kinds[number % len(kinds)])
    with (folder / "clips.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path", "label", "split", "start", "end"])
        for number in range(rows):
            file, second = number % files, number // files % 3
            label, split = ("pass", "fail")[number % 2], ("train", "test")[number % 10 == 9]
            writer.writerow([number, f"{file:05}.mp4", label, split, second, second + 1])
    write_starter("conveyor belt", ["pass", "fail"], folder / "card.yaml")


def benchmark(folder: Path, cache: Path) -> VideoFolder:
    """The table as a benchmark, read."""
    data = VideoFolder(
        folder, folder / "clips.csv", card=folder / "card.yaml", cache_folder=cache, **SETTINGS
    )
    assert data.all_clips
    return data


def check(manifest: Manifest, rows: int, files: int) -> None:
    """The scan says of every file what it was made with."""
    assert len(manifest.rows) == rows
    for number, row in enumerate(manifest.rows):
        frames, fps, height, width = KINDS[number % files % len(KINDS)]
        assert (row.status, row.frames, row.fps) == ("ok", frames, fps), row
        assert (row.height, row.width, row.duration) == (height, width, frames / fps), row


def first_frame(path: Path) -> None:
    """The least that tells whether a file is a video."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        next(container.decode(video=0))


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds and CPU seconds of all threads."""
    wall, used = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - used


def main() -> None:
    """Makes files and table, checks, times, prints."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the table")
    parser.add_argument("--files", type=int, default=1_000, help="video files")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of everything")
    given = parser.parse_args()
    print_rank_zero(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print_rank_zero(
        f"av {version('av')}; {given.rows} rows, {given.files} files, {SCAN_THREADS} threads"
    )
    times: dict[str, list[tuple[float, float]]] = {}

    def take(name: str, work: Callable[[], Any]) -> Any:
        result, wall, used = timed(work)
        times.setdefault(name, []).append((wall, used))
        return result

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "videos")
        folder.mkdir()
        make(folder, given.rows, given.files)
        paths = sorted(folder.glob("*.mp4"))
        for number in range(given.rounds):
            cache = Path(made, f"cache{number}")
            data = take("read the table", lambda cache=cache: benchmark(folder, cache))
            first = take("first scan", lambda data=data: data.files.manifest)
            check(first, given.rows, given.files)
            data = benchmark(folder, cache)
            again = take("second scan", lambda data=data: data.files.manifest)
            assert again == first
            with ThreadPoolExecutor(SCAN_THREADS) as pool:
                take(
                    "PyAV, first frame of each",
                    lambda pool=pool: list(pool.map(first_frame, paths)),
                )
            with ThreadPoolExecutor(SCAN_THREADS) as pool:
                digests = take("digest of each", lambda pool=pool: list(pool.map(hash_file, paths)))
            assert {row.digest for row in first.rows} == set(digests)
            take("size and time of each", lambda: [path.stat() for path in paths])
    rows = []
    for name, measured in times.items():
        wall, used = (sorted(values) for values in zip(*measured, strict=True))
        rows.append(
            [
                name,
                f"{statistics.median(wall):.3f} ({wall[0]:.3f}-{wall[-1]:.3f})",
                f"{statistics.median(used):.3f}",
                f"{100 * statistics.median(wall) / given.files:.3f}",
            ]
        )
    print_rank_zero(f"{given.rounds} rounds, medians (lowest-highest)")
    print_rank_zero(table(rows, ["", "seconds", "CPU seconds", "seconds per 100 files"]))


if __name__ == "__main__":
    main()
