"""What the model said about one clip of a batch, as it stands in files."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rbft.analysis.multilabel import HALF, LABELS, PREDICTED
from rbft.analysis.thresholds import decide
from rbft.inference.classifier import ClassifiedEach
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
        classes are the likeliest, the `text` that the model wrote, and its `rationale`. Where a
        clip may have several classes, `predicted` in place of `prediction`: a list of those with a
        probability of one half and more, or None.
    """
    if isinstance(outputs, ClassifiedEach):
        return _each(outputs, batch, place, classes, dict.fromkeys(classes, HALF))
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
    threshold: tuple[str, float] | Mapping[str, float] | None = None,
    levels: Sequence[float] = (),
) -> dict[str, Any]:
    """What is predicted of one clip.

    Args:
        outputs: See `answer_row`.
        batch: See `answer_row`.
        place: See `answer_row`.
        classes: See `answer_row`.
        threshold: A class, and its probability from which on it is the label; None takes the
            likeliest class. Where a clip may have several classes, the least probability of each;
            None takes one half.
        levels: See `answer_row`.

    Returns:
        `label`, and as far as there is: `probabilities` by class, `margin` between the two largest,
        `likeliest` where a threshold decides the label, the `expected` value on a scale, `text`,
        `rationale` and `error`. Where a clip may have several classes, `labels`, a list, in place
        of `label` and `margin`.
    """
    if isinstance(outputs, ClassifiedEach):
        assert not isinstance(threshold, tuple)
        least = dict.fromkeys(classes, HALF) if threshold is None else threshold
        answer = _each(outputs, batch, place, classes, least)
        return {LABELS: answer.pop(PREDICTED), **answer}
    assert threshold is None or isinstance(threshold, tuple)
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


def _each(
    outputs: ClassifiedEach,
    batch: Any,
    place: int,
    classes: Sequence[str],
    thresholds: Mapping[str, float],
) -> dict[str, Any]:
    """The answer to a clip that may have several classes, see `answer_row`."""
    if batch.errors[place]:
        return {PREDICTED: None, "error": batch.errors[place]}
    shares = dict(zip(classes, outputs.probabilities[place].double().tolist(), strict=True))
    row: dict[str, Any] = {
        PREDICTED: [name for name, share in shares.items() if share >= thresholds[name]],
        "probabilities": {name: seven_digits(share) for name, share in shares.items()},
    }
    if outputs.rationales is not None:
        row["rationale"] = outputs.rationales[place]
    return row


def seven_digits(value: float) -> float:
    """Rounded to digits, not decimals: close to certain, decimals would make clips alike."""
    return float(f"{value:.7g}")
