"""What happens in a clip: the factors of a scene, and where everything stands at each time."""

from dataclasses import dataclass

import numpy as np

from rbft.miniature.sprites import COLOURS

SUBJECTS = ("person", "dog", "cat", "bear", "raccoon", "car")
OBJECTS = ("package", "bin", "bike", "plant")
ACTIONS = (
    "walks past",
    "approaches",
    "waits beside",
    "takes away",
    "drops off",
    "knocks over",
)
VIDEO_INDICES = ("yard", "driveway", "porch", "street")
WEATHERS = ("clear", "rain", "snow")

STEP = 7  # pixels; everything stands on a lattice of this width, or a tiny model learns too slowly
SUBJECT_SIZE = 28
OBJECT_SIZE = 21


@dataclass(frozen=True)
class Domain:
    """How often what happens, and what the camera makes of it.

    Attributes:
        name: Part of clip ids.
        subjects: Share of each of `SUBJECTS`, in their order.
        night: Share of night scenes.
        saturation: Colour kept, 0 to 1.
        contrast: Contrast kept about mid grey, 0 to 1.
        noise: Standard deviation of the monochrome noise of each frame, in grey levels of 255.
        vignette: Light lost in the corners, 0 to 1.
        night_tint: Factors of red, green and blue at night.
        night_glow: Green light added at night, in grey levels.
    """

    name: str
    subjects: tuple[float, ...]
    night: float
    saturation: float
    contrast: float
    noise: float
    vignette: float
    night_tint: tuple[float, float, float]
    night_glow: float


GENERAL = Domain(
    name="general",
    subjects=(1 / 6,) * 6,
    night=0.35,
    saturation=1.0,
    contrast=1.0,
    noise=0.0,
    vignette=0.0,
    night_tint=(0.38, 0.40, 0.55),
    night_glow=0.0,
)
# A worse camera in another street: the base model sees well here, but not perfectly.
TARGET = Domain(
    name="target",
    subjects=(0.25, 0.10, 0.08, 0.22, 0.25, 0.10),
    night=0.5,
    saturation=0.6,
    contrast=0.8,
    noise=10.0,
    vignette=0.3,
    night_tint=(0.40, 0.52, 0.42),
    night_glow=6.0,
)
DOMAINS = {domain.name: domain for domain in (GENERAL, TARGET)}


@dataclass(frozen=True)
class Scene:
    """One clip before it is filmed.

    The first eight factors can be seen and are put into words. The others vary the picture only.

    Attributes:
        subject: One of `SUBJECTS`.
        subject_colour: A key of `COLOURS`.
        object: One of `OBJECTS`.
        object_colour: A key of `COLOURS`.
        action: One of `ACTIONS`; what the subject does to the object.
        place: One of `VIDEO_INDICES`.
        night: Night or day.
        weather: One of `WEATHERS`.
        mirrored: The subject comes from the right.
        object_x: Left edge of the object in pixels, before mirroring.
        delay: Shift of the action in time, as a share of the clip.
        seed: Of the backdrop, of rain and snow, and of the camera's noise.
    """

    subject: str
    subject_colour: str
    object: str
    object_colour: str
    action: str
    place: str
    night: bool
    weather: str
    mirrored: bool
    object_x: int
    delay: float
    seed: int


def draw_scene(rng: np.random.Generator, domain: Domain) -> Scene:
    """A random scene of the domain; all factors are independent of each other."""
    colours = tuple(COLOURS)
    return Scene(
        subject=SUBJECTS[np.searchsorted(np.cumsum(domain.subjects)[:-1], rng.random(), "right")],
        subject_colour=_pick(rng, colours),
        object=_pick(rng, OBJECTS),
        object_colour=_pick(rng, colours),
        action=_pick(rng, ACTIONS),
        place=_pick(rng, VIDEO_INDICES),
        night=bool(rng.random() < domain.night),
        weather=("clear", "clear", "rain", "snow")[rng.integers(4)],
        mirrored=bool(rng.random() < 0.5),
        object_x=35 + STEP * int(rng.integers(3)),
        delay=float(rng.uniform(-0.04, 0.04)),
        seed=int(rng.integers(2**31)),
    )


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[rng.integers(len(values))]


@dataclass(frozen=True)
class Pose:
    """Where subject and object stand at one moment.

    Attributes:
        subject_x: Left edge of the subject in pixels, before mirroring; may be out of the picture.
        backwards: The subject walks back the way it came.
        object_x: Left edge of the object in pixels, before mirroring.
        state: Of the object: "upright", "lying" or "carried".
    """

    subject_x: int
    backwards: bool
    object_x: int
    state: str


def pose(scene: Scene, time: float) -> Pose:
    """The pose at a time between 0 (first frame) and 1 (last frame)."""
    time = min(max(time + scene.delay, 0.0), 1.0)
    enter, beside, leave, gone = -14, scene.object_x - SUBJECT_SIZE, 70, -35
    backwards, state = False, "upright"
    match scene.action:
        case "walks past":
            x = _walk(time, 0.0, 1.0, enter, leave)
        case "approaches":
            x = _walk(time, 0.0, 0.65, enter, beside)
        case "waits beside":
            x = beside
        case "takes away" if time < 0.45:
            x = _walk(time, 0.0, 0.40, enter, beside)
        case "takes away":
            x, backwards, state = _walk(time, 0.45, 1.0, beside, gone), True, "carried"
        case "drops off" if time < 0.42:
            x, state = _walk(time, 0.0, 0.42, enter, beside), "carried"
        case "drops off":
            x, backwards = _walk(time, 0.50, 1.0, beside, gone), time > 0.50
        case "knocks over" if time < 0.45:
            x = _walk(time, 0.0, 0.42, enter, beside)
        case "knocks over":
            x, state = beside, "lying"
        case other:
            raise ValueError(f"Scene.action is '{other}'; allowed are {', '.join(ACTIONS)}.")
    object_x = {
        "upright": scene.object_x,
        "lying": scene.object_x + STEP,
        "carried": x - STEP if backwards else x + 2 * STEP,
    }[state]
    return Pose(x, backwards, object_x, state)


def _walk(time: float, begin: float, until: float, start: int, end: int) -> int:
    """Where one is at a time, who goes from start to end between two times."""
    share = min(max((time - begin) / (until - begin), 0.0), 1.0)
    return STEP * round((start + share * (end - start)) / STEP)


def is_abnormal(scene: Scene) -> bool:
    """The label of the target domain, known to its annotators only.

    Wild animals may walk past and nothing more; pets may do anything; people must not take or knock
    over things, nor stand about at night; the same goes for cars, but that they take things.
    """
    lurks = scene.night and scene.action in ("waits beside", "approaches")
    match scene.subject:
        case "bear" | "raccoon":
            return scene.action != "walks past"
        case "person":
            return scene.action in ("takes away", "knocks over") or lurks
        case "car":
            return scene.action == "knocks over" or lurks
    return False
