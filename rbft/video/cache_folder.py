"""The parts of the cache folder: their sizes, and how to clear them."""

import shutil
from pathlib import Path

from rbft.runtime.digests import FILE as DIGESTS
from rbft.video.cache_files import CLIP, FEATURES, clear_files, list_files

WHAT = {
    "frames": "decoded clips",
    "features": "outputs of frozen vision towers",
    "scans": "what scans found in video files",
    "digests": "content digests of weights and of videos",
    "clips": "videos of the miniature world",
}


def cache_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each part of a cache folder, see `WHAT`."""
    return {
        "frames": sum(file.size for file in list_files(folder / "frames", CLIP)),
        "features": sum(file.size for file in list_files(folder / "features", FEATURES)),
        "scans": sum(file.stat().st_size for file in _scans(folder)),
        "digests": sum(file.stat().st_size for file in folder.glob(DIGESTS)),
        "clips": sum(file.stat().st_size for made in _worlds(folder) for file in made.rglob("*.*")),
    }


def clear_cache(folder: Path, part: str) -> None:
    """Removes a part of a cache folder, or all of it; files that are not rbft's stay.

    Args:
        folder: The cache folder.
        part: A key of `WHAT`, or "all".
    """
    if part in ("frames", "all"):
        clear_files(folder / "frames", CLIP)
    if part in ("features", "all"):
        clear_files(folder / "features", FEATURES)
    if part in ("scans", "all"):
        for file in _scans(folder):
            file.unlink()
    if part in ("digests", "all"):
        (folder / DIGESTS).unlink(missing_ok=True)
    if part in ("clips", "all"):
        for made in _worlds(folder):
            shutil.rmtree(made)


def _scans(folder: Path) -> list[Path]:
    return list((folder / "scans").glob("*.jsonl"))


def _worlds(folder: Path) -> list[Path]:
    return [file.parent for file in (folder / "miniature").glob("*/annotations.jsonl")]
