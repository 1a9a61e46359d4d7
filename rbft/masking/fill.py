"""What is drawn in the place of masked pixels."""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8

FillName = Literal["constant", "blur"]
GREY = 128
# 15 pixels in frames whose shorter side has 360, the paper's larger ones: nothing the size of a
# limb can be told any more.
BLUR = 15 / 360

Picture = UInt8[np.ndarray, "height width 3"]
Mask = Bool[np.ndarray, "height width"]


def filled(picture: Picture, mask: Mask, fill: FillName) -> Picture:
    """A picture whose masked pixels are replaced; the others are as they were.

    Args:
        picture: The frame, before it is resized; it is left alone.
        mask: The pixels to replace.
        fill: constant is mid-grey; blur a Gaussian blur with a standard deviation of 1/24 of the
            shorter side, which leaves colour and light but no form.
    """
    made = picture.copy()
    if not mask.any():
        return made
    if fill == "constant":
        made[mask] = GREY
        return made
    sigma = BLUR * min(mask.shape)
    # Only what can be seen through the mask is blurred.
    radius = math.ceil(3 * sigma)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    (top, bottom), (left, right) = ((own[0], own[-1] + 1) for own in (rows, columns))
    upper, lower = max(top - radius, 0), min(bottom + radius, mask.shape[0])
    first, last = max(left - radius, 0), min(right + radius, mask.shape[1])
    window = (slice(upper, lower), slice(first, last))
    soft = gaussian_blur(picture[window], sigma, radius)
    made[window][mask[window]] = soft[mask[window]]
    return made


def gaussian_blur(picture: Picture, sigma: float, radius: int) -> Picture:
    """A Gaussian blur; beyond an edge, its pixels are repeated.

    Args:
        picture: The picture.
        sigma: Standard deviation in pixels.
        radius: Pixels to each side that are looked at.
    """
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).float()
    made = torch.from_numpy(picture).permute(2, 0, 1)[:, None].float()
    for kernel, padding in (
        (weights[:, None], (0, 0, radius, radius)),
        (weights[None], (radius, radius, 0, 0)),
    ):
        made = torch.nn.functional.pad(made, padding, mode="replicate")
        made = torch.nn.functional.conv2d(made, kernel[None, None])
    return made[:, 0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
