"""What the model said about one clip of a batch, as it stands in files."""

import math
from collections.abc import Sequence
from typing import Any

from rbft.analysis.thresholds import decide
from rbft.inference.ordered import expected_values


def answer_row(
    outputs: Any, batch: Any, place: int, classes: Sequence[str], levels: Sequence[float] = ()
) -> dict[str, Any]:
    """The answer to one clip.

    Args:
        outputs: What the module said about the batch, a `Classified`.
        batch: The batch.
        place: The clip's place in it.
        classes: Names of the classes.
        levels: The value of each class, where they are levels of a scale.

    Returns:
        `prediction`, the name of the class or None where the answer is none of them; and, as far as
        there is: the `error` of a clip that could not be decoded and nothing else, `probabilities`
        by class, the `expected` value on a scale (None without an answer), `tied` where several
        classes are the likeliest, the `text` that the model wrote, and its `rationale`.
    """
    if batch.errors[place]:
        return {"prediction": None, "error": batch.errors[place]}
    row: dict[str, Any] = {"prediction": [*classes, None][int(outputs.prediction[place])]}
    if outputs.probabilities is not None:
        values = outputs.probabilities[place].tolist()
        row["probabilities"] = dict(zip(classes, map(seven_digits, values), strict=True))
    if levels:
        found = expected_values(outputs.prediction, outputs.probabilities, levels)[place].item()
        row["expected"] = None if math.isnan(found) else seven_digits(found)
    if outputs.tied is not None and bool(outputs.tied[place]):
        row["tied"] = True
    if outputs.texts[place]:
        row["text"] = outputs.texts[place]
    if outputs.rationales is not None:
        row["rationale"] = outputs.rationales[place]
    return row


def prediction_row(
    outputs: Any,
    batch: Any,
    place: int,
    classes: Sequence[str],
    threshold: tuple[str, float] | None = None,
    levels: Sequence[float] = (),
) -> dict[str, Any]:
    """What is predicted of one clip.

    Args:
        outputs: See `answer_row`.
        batch: See `answer_row`.
        place: See `answer_row`.
        classes: See `answer_row`.
        threshold: A class, and its probability from which on it is the label; None takes the
            likeliest class.
        levels: See `answer_row`.

    Returns:
        `label`, and as far as there is: `probabilities` by class, `margin` between the two largest,
        `likeliest` where a threshold decides the label, the `expected` value on a scale, `text`,
        `rationale` and `error`.
    """
    answer = answer_row(outputs, batch, place, classes, levels)
    row: dict[str, Any] = {"label": answer.pop("prediction")}
    if "probabilities" in answer:
        row["probabilities"] = answer.pop("probabilities")
        first, second = sorted(outputs.probabilities[place].tolist(), reverse=True)[:2]
        row["margin"] = seven_digits(first - second)
        if threshold is not None:
            row["likeliest"] = row["label"]
            shares = outputs.probabilities[place].double().cpu().numpy()[None]
            (decided,) = decide(shares, tuple(classes), *threshold)
            row["label"] = classes[decided]
    answer.pop("tied", None)
    return {**row, **answer}


def seven_digits(value: float) -> float:
    """Rounded to digits, not decimals: close to certain, decimals would make clips alike."""
    return float(f"{value:.7g}")
