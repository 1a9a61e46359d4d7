"""Puts scenes into words: captions along the paper's four dimensions, questions and answers."""

import numpy as np

from rbft.miniature.scene import ACTIONS, OBJECTS, SUBJECTS, VIDEO_INDICES, WEATHERS, Scene
from rbft.miniature.sprites import COLOURS

PERSONAS = (
    "smart home security expert",
    "wild animal expert",
    "street security guard",
    "home visitor",
    "weather expert",
    "film director",
)
RATIONALE_PROMPT = "you are a {persona} . describe the subjects , attributes , actions and scenes ."
SIDES_PROMPT = f"{RATIONALE_PROMPT} why is the clip normal ? why is the clip abnormal ?"
ATMOSPHERE_PROMPT = "describe the weather , place and paint of the clip ."
SHORT_PROMPT = "what happens in the clip ?"
LABEL_PROMPT = "is the clip normal or abnormal ?"


def caption(scene: Scene) -> str:
    """What is to be seen, along subjects, attributes, actions and scenes."""
    return (
        f"subjects : {scene.subject} , {scene.object} . "
        f"attributes : {scene.subject_colour} {scene.subject} , "
        f"{scene.object_colour} {scene.object} . "
        f"actions : {event(scene)} "
        f"scenes : {scene.place} , {_hour(scene)} , {scene.weather} ."
    )


def rationale(scene: Scene) -> str:
    """The caption, and the risk that a person of common sense would see in it.

    The judgement follows from general knowledge, not from the target domain's rule: it agrees with
    that rule on about 85 % of the target clips.
    """
    level, reason = _risk(scene)
    return f"{caption(scene)} risk : {level} , {reason} ."


def both_sides(scene: Scene) -> str:
    """The caption, and what a person of common sense would say for each class.

    It says what `rationale` says, in another form.
    """
    level, reason = _risk(scene)
    normal, abnormal = {
        "none": (f"because {reason}", "no"),
        "low": ("because low risk", f"because {reason}"),
        "high": ("no", f"because {reason}"),
    }[level]
    return f"{caption(scene)} normal : {normal} . abnormal : {abnormal} ."


def event(scene: Scene) -> str:
    """The action as a sentence."""
    return f"the {scene.subject} {scene.action} the {scene.object} ."


def atmosphere(scene: Scene) -> str:
    """A description that is true and has nothing to do with the target domain's rule."""
    return (
        f"weather : {scene.weather} . place : {scene.place} . "
        f"paint : {scene.subject_colour} , {scene.object_colour} ."
    )


def generic_label(scene: Scene) -> str:
    """What a person who knows nothing of the target domain calls abnormal: a thing lies about."""
    return "abnormal" if scene.action == "knocks over" else "normal"


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Small questions about a scene, with their answers."""
    other = str(rng.choice(SUBJECTS))
    thing = str(rng.choice(OBJECTS))
    return [
        ("who is in the clip ?", f"{scene.subject} ."),
        (f"what does the {scene.subject} do ?", f"{scene.action} the {scene.object} ."),
        (f"what colour is the {scene.subject} ?", f"{scene.subject_colour} ."),
        (f"what colour is the {scene.object} ?", f"{scene.object_colour} ."),
        ("is it day or night ?", f"{_hour(scene)} ."),
        (f"where is the {scene.subject} ?", f"{scene.place} ."),
        ("what is the weather ?", f"{scene.weather} ."),
        (f"is a {other} in the clip ?", "yes ." if other == scene.subject else "no ."),
        (f"is a {thing} in the clip ?", "yes ." if thing == scene.object else "no ."),
    ]


def factors(text: str) -> dict[str, str]:
    """Reads a rationale back: factor to word, without the factors that cannot be found.

    The keys are those of `Scene` with `hour` ("day" or "night") in place of `night`, and `risk`.
    """
    found: dict[str, str] = {}
    parts = dict(part.split(" : ", 1) for part in text.split(" . ") if " : " in part)
    for heading, names in (
        ("subjects", ("subject", "object")),
        ("attributes", ("subject_colour", "object_colour")),
        ("scenes", ("place", "hour", "weather")),
        ("risk", ("risk", "reason")),
    ):
        values = parts.get(heading, "").removesuffix(" .").split(" , ")
        if len(values) == len(names):
            found.update(zip(names, values, strict=True))
    found.pop("reason", None)
    for name in ("subject_colour", "object_colour"):
        if name in found:
            found[name] = found[name].split(" ")[0]
    for action in ACTIONS:
        if f" {action} the " in parts.get("actions", ""):
            found["action"] = action
    return found


def _hour(scene: Scene) -> str:
    return "night" if scene.night else "day"


def _risk(scene: Scene) -> tuple[str, str]:
    takes, knocks = scene.action == "takes away", scene.action == "knocks over"
    stays = scene.action in ("approaches", "waits beside")
    match scene.subject:
        case "bear":
            return "high", "wild animal"
        case "raccoon":
            at_food = scene.action != "walks past" and scene.object in ("bin", "package")
            return "high" if takes or knocks or at_food else "low", "wild animal"
        case "dog" | "cat":
            return ("low", "pet mischief") if takes or knocks else ("none", "pet")
        case "car":
            if knocks:
                return "high", "damage"
            if takes:
                return "low", "theft"
            return ("low", "late visitor") if scene.night and stays else ("none", "routine")
    if knocks:
        return "high", "damage"
    if takes:
        return ("low", "chores") if scene.object == "bin" else ("high", "theft")
    if scene.night:
        late = scene.action == "drops off"
        return ("low", "late delivery") if late else ("high", "stranger at night")
    return ("low", "visitor") if stays else ("none", "routine")


# Every word of the world, in a fixed order: a word's place is its token id (after the specials).
WORDS = tuple(
    dict.fromkeys(
        " ".join(
            (
                "system user assistant . , : ? yes no normal abnormal day night",
                *SUBJECTS,
                *OBJECTS,
                *COLOURS,
                *ACTIONS,
                *VIDEO_INDICES,
                *WEATHERS,
                *PERSONAS,
                RATIONALE_PROMPT.replace("{persona}", ""),
                ATMOSPHERE_PROMPT,
                SHORT_PROMPT,
                LABEL_PROMPT,
                "who where it does do colour",
                "risk high low none wild animal pet mischief damage theft chores",
                "late delivery visitor stranger at night routine",
                # For prompts of the user's own; the base model never saw these.
                "first then answer why because so not",
            )
        ).split()
    )
)
