"""`cache`: how large the caches are."""

import sys
from pathlib import Path
from typing import Literal

from rbft.runtime.console import table
from rbft.runtime.digests import default_cache
from rbft.video.cache_folder import WHAT, cache_sizes, clear_cache


def cache(
    clear: Literal["frames", "features", "scans", "digests", "clips", "all"] | None = None,
    folder: Path | None = None,
) -> None:
    """Show how large the cache is, or clear it.

    Args:
        clear: What to remove: frames (decoded clips), features (outputs of frozen vision
            towers), scans (what scans found), digests (of weights and videos), clips (videos
            of the miniature world) or all.
        folder: The cache folder, as data.cache_folder; null takes $RBFT_CACHE, or
            ~/.cache/rbft.
    """
    folder = folder or default_cache()
    if clear is not None:
        clear_cache(folder, clear)
    sizes = cache_sizes(folder).items()
    rows = [[name, WHAT[name], f"{size / 1e6:.1f}"] for name, size in sizes]
    sys.stdout.write(f"{folder}\n{table(rows, ['', 'what', 'MB'], align='llr')}\n")
