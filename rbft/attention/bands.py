"""Which layers of the decoder a map is the mean of."""

from collections.abc import Sequence

# As shares of the depth. The last layers turn to the next word; before them, the answer reads from
# the video. Layer 22 of 28, which others take for Qwen2.5-VL-7B, is in the default.
BANDS = {
    "early": (0.0, 1 / 3),
    "middle": (1 / 3, 2 / 3),
    "late": (2 / 3, 1.0),
    "middle_to_late": (0.5, 0.9),
    "all": (0.0, 1.0),
}


def band_layers(layers: str | Sequence[int], depth: int) -> list[int]:
    """The layers of a band.

    Args:
        layers: A key of `BANDS`, or the layers themselves, counted from 0.
        depth: Layers of the decoder.

    Returns:
        At least one; a layer is in a band if its middle is.

    Raises:
        ValueError: If the band or a layer does not exist.
    """
    if isinstance(layers, str):
        if layers not in BANDS:
            raise ValueError(
                f"--layers is '{layers}'; allowed are {', '.join(BANDS)}, or layers by number such "
                f'as "[{depth // 2}, {depth - 1}]".'
            )
        low, high = BANDS[layers]
        inside = [layer for layer in range(depth) if low <= (layer + 0.5) / depth < high]
        return inside or [min(depth - 1, int((low + high) / 2 * depth))]
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong or not layers:
        named = ", ".join(map(str, wrong)) or "no layer"
        raise ValueError(
            f"--layers names {named}, but the decoder has the layers 0 to {depth - 1}."
        )
    return sorted(set(layers))


def named_band(layers: str | Sequence[int], depth: int) -> str:
    """The band as it is printed: "layers 14 to 24 of 28 (middle_to_late; counted from 0)".

    Args:
        layers: See `band_layers`.
        depth: Layers of the decoder.
    """
    found = band_layers(layers, depth)
    one_run = len(found) > 2 and found == list(range(found[0], found[-1] + 1))
    numbers = f"{found[0]} to {found[-1]}" if one_run else ", ".join(map(str, found))
    name = f"{layers}; " if isinstance(layers, str) else ""
    return f"layer{'s' * (len(found) > 1)} {numbers} of {depth} ({name}counted from 0)"
