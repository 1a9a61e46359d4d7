import re

import pytest

from rbft.attention.bands import BANDS, band_layers, named_band


@pytest.mark.parametrize(
    ("band", "depth", "layers"),
    [
        ("middle_to_late", 28, [*range(14, 25)]),
        ("middle_to_late", 4, [2, 3]),
        ("middle_to_late", 2, [1]),
        ("early", 28, [*range(9)]),
        ("late", 28, [*range(19, 28)]),
        ("all", 3, [0, 1, 2]),
        ("middle", 2, [1]),  # no layer's middle is in the middle third
        ("late", 1, [0]),
        ([3, 1, 3], 4, [1, 3]),
    ],
)
def test_layers_of_a_band(band: str | list[int], depth: int, layers: list[int]) -> None:
    assert band_layers(band, depth) == layers


@pytest.mark.parametrize("depth", [1, 2, 3, 28, 80])
def test_a_third_follows_the_other_and_none_is_empty(depth: int) -> None:
    thirds = [band_layers(name, depth) for name in ("early", "middle", "late")]
    assert all(thirds)
    if depth > 2:
        assert [layer for third in thirds for layer in third] == band_layers("all", depth)
    assert all(band_layers(name, depth) for name in BANDS)


def test_how_a_band_is_printed() -> None:
    assert named_band("middle_to_late", 28) == (
        "layers 14 to 24 of 28 (middle_to_late; counted from 0)"
    )
    assert named_band("middle_to_late", 4) == "layers 2, 3 of 4 (middle_to_late; counted from 0)"
    assert named_band([22], 28) == "layer 22 of 28 (counted from 0)"


@pytest.mark.parametrize(
    ("band", "message"),
    [
        (
            "deep",
            "--layers is 'deep'; allowed are early, middle, late, middle_to_late, all, or layers "
            'by number such as "[14, 27]".',
        ),
        ([27, 28, -1], "--layers names 28, -1, but the decoder has the layers 0 to 27."),
        ([], "--layers names no layer, but the decoder has the layers 0 to 27."),
    ],
)
def test_layers_that_are_not_there(band: str | list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        band_layers(band, 28)
