"""Films a scene: from its factors to pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from rbft.miniature.scene import OBJECT_SIZE, STEP, SUBJECT_SIZE, Domain, Pose, Scene, pose
from rbft.miniature.sprites import sprite

SIZE = 84  # pixels a side: 6 x 6 patches of 14
SPREAD = 2  # pixels that a colour spreads in the files, where two by two of them share one

# Ground, back (sky or wall) and trim of each place.
_PAINT = {
    "yard": ((122, 152, 92), (150, 182, 215), (170, 140, 105)),
    "driveway": ((152, 152, 152), (190, 172, 148), (228, 222, 212)),
    "porch": ((168, 128, 88), (206, 192, 162), (120, 85, 60)),
    "street": ((86, 86, 92), (142, 120, 115), (215, 205, 150)),
}


def film(scene: Scene, domain: Domain, times: Sequence[float]) -> UInt8[ndarray, "frames 84 84 3"]:
    """The scene's pictures at these times, as the domain's camera sees them.

    Args:
        scene: What to film.
        domain: Whose camera.
        times: Between 0 (start of the clip) and 1 (end).
    """
    rng = np.random.default_rng(scene.seed)
    backdrop = _backdrop(scene, rng)
    frames = np.empty((len(times), SIZE, SIZE, 3), dtype=np.float32)
    for frame, time in zip(frames, times, strict=True):
        frame[:] = backdrop
        for one in placed_sprites(scene, pose(scene, time)):
            _paste(frame, one.picture, one.x, one.y)
        _add_weather(frame, scene.weather, rng)
    if scene.night:
        frames *= np.array(domain.night_tint, dtype=np.float32)
        frames[..., 1] += domain.night_glow
    if domain.saturation < 1.0:
        grey = frames.mean(axis=-1, keepdims=True)
        frames = grey + domain.saturation * (frames - grey)
    if domain.contrast < 1.0:
        frames = 110 + domain.contrast * (frames - 110)
    if domain.vignette:
        frames *= _vignette(domain.vignette)
    if domain.noise:
        frames += domain.noise * rng.standard_normal(frames.shape[:3], dtype=np.float32)[..., None]
    return np.clip(frames, 0, 255).astype(np.uint8)


def _backdrop(scene: Scene, rng: np.random.Generator) -> Float[ndarray, "84 84 3"]:
    horizon = (28, 35, 42)[rng.integers(3)]
    offset = int(rng.integers(0, 21))
    ground, back, trim = np.array(_PAINT[scene.place], dtype=np.float32) + rng.uniform(
        -12, 12, (3, 1)
    ).astype(np.float32)
    picture = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    picture[:horizon] = back
    picture[horizon:] = ground
    match scene.place:
        case "yard":  # a fence
            picture[horizon - 12 : horizon, offset % 6 :: 6] = trim
            picture[horizon - 9 : horizon - 7] = trim
        case "driveway":  # a garage door
            picture[8:horizon, offset + 6 : offset + 46] = trim
            picture[10:horizon:5, offset + 6 : offset + 46] = 0.7 * trim
        case "porch":  # a door
            picture[5:horizon, offset + 20 : offset + 38] = trim
            picture[8:14, offset + 24 : offset + 34] = 1.6 * trim
        case "street":  # lit windows, and a line on the road
            for left in range(offset % 14, SIZE, 14):
                picture[6:12, left : left + 6] = trim
            picture[horizon + 5 : horizon + 7] = trim
    return picture


@dataclass(frozen=True)
class Placed:
    """A sprite where it stands in the picture.

    Attributes:
        name: A subject or an object.
        picture: Red, green, blue and opacity.
        x: Its left edge in pixels; may be out of the picture, as its right one.
        y: Its upper edge.
    """

    name: str
    picture: Float[ndarray, "side side 4"]
    x: int
    y: int

    def box(self, spread: int = 0) -> tuple[int, int, int, int] | None:
        """Left, upper, right and lower edge of what is seen of it, in pixels; None if nothing is.

        What another sprite hides counts as seen.

        Args:
            spread: Pixels around it that lie within the box too.
        """
        rows, columns = np.nonzero(self.picture[..., 3])
        rows, columns = rows + self.y, columns + self.x
        seen = (columns >= 0) & (columns < SIZE)
        if not seen.any():
            return None
        rows, columns = rows[seen], columns[seen]
        left, top = (max(int(edge.min()) - spread, 0) for edge in (columns, rows))
        right, bottom = (min(int(edge.max()) + 1 + spread, SIZE) for edge in (columns, rows))
        return left, top, right, bottom


def placed_sprites(scene: Scene, now: Pose) -> list[Placed]:
    """Subject and object at one moment, the one behind first."""
    thing = sprite(scene.object, scene.object_colour, OBJECT_SIZE)
    if now.state == "lying":
        thing = np.rot90(thing, -1)
    actor = sprite(scene.subject, scene.subject_colour, SUBJECT_SIZE)
    if now.backwards:
        actor = actor[:, ::-1]
    layers = [
        (scene.object, thing, now.object_x, STEP if now.state == "carried" else 0),
        (scene.subject, actor, now.subject_x, 0),
    ]
    if now.state == "carried":
        layers.reverse()
    made = []
    for name, picture, x, lift in layers:
        if scene.mirrored:
            picture, x = picture[:, ::-1], mirror(x, len(picture))
        made.append(Placed(name, picture, x, SIZE - lift - len(picture)))
    return made


def mirror(x: int, size: int) -> int:
    """Left edge of a thing of that size after the picture is turned left to right."""
    return SIZE - size - x


def _paste(
    frame: Float[ndarray, "84 84 3"], picture: Float[ndarray, "side side 4"], x: int, y: int
) -> None:
    size = len(picture)
    left, right = max(x, 0), min(x + size, SIZE)
    if left >= right:
        return
    picture = picture[:, left - x : right - x]
    window = frame[y : y + size, left:right]
    np.copyto(window, picture[..., :3], where=picture[..., 3:] > 0)


def _add_weather(frame: Float[ndarray, "84 84 3"], weather: str, rng: np.random.Generator) -> None:
    if weather == "clear":
        return
    xs, ys = rng.integers(0, SIZE - 7, (2, 45))
    if weather == "rain":
        for step in range(7):
            frame[ys + step, xs + step // 2] = (205, 215, 240)
    else:
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            frame[ys + dy, xs + dx] = 245


def _vignette(strength: float) -> Float[ndarray, "84 84 1"]:
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    radius = (axis[:, None] ** 2 + axis**2) / 2
    return (1 - strength * radius)[..., None]
