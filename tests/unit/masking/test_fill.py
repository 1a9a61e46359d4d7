import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from rbft.masking.fill import BLUR, GREY, FillName, filled, gaussian_blur


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((72, 96), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("fill", ["constant", "blur"])
def test_what_is_not_masked_is_left_alone(picture: np.ndarray, fill: FillName) -> None:
    before, mask = picture.copy(), box(10, 20, 30, 50)
    made = filled(picture, mask, fill)
    assert (picture == before).all()
    assert (made[~mask] == picture[~mask]).all()
    assert (made[mask] != picture[mask]).mean() > 0.9
    assert (filled(picture, box(0, 0, 0, 0), fill) == picture).all()


def test_constant_is_grey(picture: np.ndarray) -> None:
    mask = box(0, 0, 72, 40)
    assert (filled(picture, mask, "constant")[mask] == GREY).all()


@pytest.mark.parametrize(
    "edges", [(0, 0, 72, 96), (0, 0, 5, 5), (30, 40, 36, 44), (60, 80, 72, 96)]
)
def test_the_blur_is_scipy_s(picture: np.ndarray, edges: tuple[int, int, int, int]) -> None:
    """Whatever part of it is looked at, within a grey level of rounding."""
    sigma, mask = BLUR * 72, box(*edges)
    radius = int(np.ceil(3 * sigma))
    whole = np.stack(
        [
            gaussian_filter(picture[..., c].astype(float), sigma, mode="nearest", radius=radius)
            for c in range(3)
        ],
        axis=-1,
    )
    made = filled(picture, mask, "blur")
    assert np.abs(made[mask] - whole[mask]).max() <= 0.51
    assert np.abs(gaussian_blur(picture, sigma, radius) - whole).max() <= 0.51
