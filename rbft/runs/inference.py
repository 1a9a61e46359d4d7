"""How weights are asked, noted in their folder: it is then all that prediction needs."""

import json
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from rbft.runs.record import CONSISTENCY, SCORING

INFERENCE = "inference"  # the note's key in rbft.json
# What decides the last digits of a probability, or who decodes, but not what a score is.
MORE = (
    "data.init_args.reader",
    "data.init_args.eval_batch_size",
    "model.attention",
    "model.packing",
    "model.liger",
    "model.cudnn_attention",
)
PRECISION = "trainer.precision"


def inference_note(settings: Namespace, default_precision: str | None) -> dict[str, Any]:
    """The settings that prediction needs, as they are noted with weights.

    Args:
        settings: All settings of an experiment, by dotted name.
        default_precision: What `trainer.precision` is on this machine where nothing is said. It is
            noted as null: another machine takes its own.
    """
    keys = [*(key for keys in SCORING.values() for key in keys), *MORE]
    note = {key.replace(".init_args.", "."): settings.get(key) for key in keys}
    if note[PRECISION] == default_precision:
        note[PRECISION] = None
    average = CONSISTENCY.removesuffix(".")
    note[average] = _plain(settings.get(average))
    return note


def inference_options(note: Mapping[str, Any]) -> list[str]:
    """A note as options of the command line.

    Args:
        note: From `inference_note`.
    """
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in note.items()
        if value is not None
    ]


def _plain(value: Any) -> Any:
    """A nested setting as JSON has it."""
    return value if value is None or isinstance(value, dict) else dict(vars(value))
