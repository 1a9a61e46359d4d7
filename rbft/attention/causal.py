"""Does the answer depend on what is looked at most? Cells are greyed, and the model asked again."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rbft.attention.maps import Map
from rbft.video.sampling import Video
from rbft.video.times import TEMPORAL_PATCH

GREY = 127


@dataclass(frozen=True)
class CausalSettings:
    """How much is masked, and how often at random.

    Attributes:
        share: Share of a video's cells (token and frame pair) that is greyed.
        repeats: Random draws of as many cells.
        seed: Of the draws.
    """

    share: float = 0.2
    repeats: int = 3
    seed: int = 0

    def cells(self, total: int) -> int:
        """How many of so many cells are greyed; at least one of several, and never all."""
        return min(max(1, round(self.share * total)), total - 1)


def top_cells(values: Map, count: int) -> Bool[np.ndarray, "slices rows columns"]:
    """The cells of a map with the highest values; of equal ones, the first."""
    order = np.argsort(-values.ravel(), kind="stable")
    chosen = np.zeros(values.size, dtype=bool)
    chosen[order[:count]] = True
    return chosen.reshape(values.shape)


def random_cells(
    shape: tuple[int, ...], count: int, clip: str, settings: CausalSettings
) -> list[Bool[np.ndarray, "slices rows columns"]]:
    """Cells drawn at random, the same for every model that is asked about the clip.

    Args:
        shape: Of the map.
        count: Cells of each draw.
        clip: Id of the clip.
        settings: Number and seed of the draws.
    """
    key = zlib.crc32(clip.encode(errors="backslashreplace"))
    drawn = []
    for repeat in range(settings.repeats):
        rng = np.random.default_rng([settings.seed, repeat, key])
        chosen = np.zeros(int(np.prod(shape)), dtype=bool)
        chosen[rng.choice(chosen.size, count, replace=False)] = True
        drawn.append(chosen.reshape(shape))
    return drawn


def grey_out(video: Video, cells: Bool[np.ndarray, "slices rows columns"]) -> Video:
    """The clip with some cells in grey, in both frames of their pair.

    Args:
        video: The frames, as the processor gets them.
        cells: Which cells.
    """
    frames = video.frames
    rows, columns = cells.shape[1:]
    down, across = frames.shape[2] // rows, frames.shape[3] // columns
    mask = torch.from_numpy(cells).repeat_interleave(TEMPORAL_PATCH, 0)[: len(frames)]
    mask = mask.repeat_interleave(down, 1).repeat_interleave(across, 2)
    return replace(video, frames=frames.masked_fill(mask[:, None], GREY))


def log_odds(scores: Float[Tensor, "clips classes"], label: int) -> Float[Tensor, " clips"]:
    """Log-odds of a class against all others, log p - log(1 - p), in nats.

    Args:
        scores: Log-probabilities of the class answers; they need not be normalised.
        label: Index of the class.
    """
    others = [index for index in range(scores.shape[1]) if index != label]
    return scores[:, label] - scores[:, others].logsumexp(-1)


def causal_scores(before: float, top: float, drawn: Sequence[float]) -> dict[str, float]:
    """What masking costs the class.

    Args:
        before: Log-odds of the class with the whole clip.
        top: The same with what is looked at most in grey.
        drawn: The same with as many cells at random in grey, a draw each.

    Returns:
        `drop_top` and `drop_random` (the mean over draws), and their difference `drop`: what it
        costs to mask what is looked at beyond masking as much of anything.
    """
    random = before - float(np.mean(drawn))
    return {"drop": before - top - random, "drop_top": before - top, "drop_random": random}
