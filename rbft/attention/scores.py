"""How much of a map lies where the objects are, and how concentrated it is.

Figures of a map of one clip. Pictures are scaled to 0 and 1 each and cannot be compared with each
other; these can.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rbft.attention.boxes import FrameBoxes, clip_coverage, hit_cells
from rbft.attention.maps import Map

TOLERANCE = 1.0  # tokens by which the pointing game may miss
BOX_SCORES = ("mass", "lift", "pointing", "pointing_slices", "pointing_chance", "auroc")


def entropy(values: Map) -> float:
    """Entropy of a map divided by that of a uniform one: 0 is one token, 1 all of them alike."""
    shares = values.ravel() / values.sum()
    seen = shares[shares > 0]
    return float(-(seen * np.log(seen)).sum() / math.log(len(shares))) if len(shares) > 1 else 0.0


def weighted_auroc(
    values: Float[np.ndarray, " cells"], inside: Float[np.ndarray, " cells"]
) -> float:
    """Probability that a place within the boxes has a higher value than one outside; ties half.

    Equals scikit-learn's `roc_auc_score` with each cell twice: as a positive with the weight of
    its covered part, as a negative with that of the rest.

    Args:
        values: Of each cell.
        inside: Share of each cell that lies within a box.

    Returns:
        NaN where nothing or everything is covered.
    """
    order = np.argsort(values, kind="stable")
    _, starts = np.unique(values[order], return_index=True)
    positive = np.add.reduceat(inside[order], starts)
    negative = np.add.reduceat(1 - inside[order], starts)
    below = np.cumsum(negative) - negative
    total = positive.sum() * negative.sum()
    if total <= 0:
        return math.nan
    return float((positive * (below + negative / 2)).sum() / total)


def box_scores(
    values: Map, known: FrameBoxes, indices: Sequence[int], slices: Sequence[Sequence[int]]
) -> dict[str, float]:
    """The figures that need boxes; empty where no box is known in any slice.

    Args:
        values: The map.
        known: Boxes by frame number.
        indices: Number of each of the clip's frames.
        slices: Which of them each slice stands for.

    Returns:
        `mass`, the share of the map within boxes; `lift`, that divided by the boxes' share of the
        area (1 is a uniform map); `pointing`, whether the peak lies in a box or within a token of
        it, and `pointing_slices` the share of slices with boxes whose own peak does;
        `pointing_chance`, what a peak at random would score; and `auroc`. All over the slices whose
        boxes are known.
    """
    _, rows, columns = values.shape
    covered = clip_coverage(known, indices, slices, rows, columns)
    looked = ~np.isnan(covered[:, 0, 0])  # all of a slice or nothing
    if not covered[looked].sum() > 0:
        return {}
    seen, inside = values[looked], covered[looked]
    mass = float((seen * inside).sum() / seen.sum())
    near = [
        np.stack(
            [
                hit_cells(known[indices[n]], rows, columns, TOLERANCE)
                for n in frames
                if indices[n] in known
            ]
        ).any(axis=0)
        for frames, there in zip(slices, looked, strict=True)
        if there
    ]
    hits = np.array(near)
    with_boxes = hits.any(axis=(1, 2))
    peaks = [bool(hit.ravel()[one.argmax()]) for hit, one in zip(hits, seen, strict=True)]
    return {
        "mass": mass,
        "lift": mass / float(inside.mean()),
        "pointing": float(hits.ravel()[seen.argmax()]),
        "pointing_slices": float(np.mean(np.array(peaks)[with_boxes])),
        "pointing_chance": float(hits.mean()),
        "auroc": weighted_auroc(seen.ravel(), inside.ravel()),
    }
