"""`rbft.load`: a model in Python, from nothing but its weights folder."""

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

from rbft.cli import parse_experiment
from rbft.video_classifier import VideoClassifier

Path = str | os.PathLike[str]


def load(
    weights: Path,
    *,
    device: str | None = None,
    config: Path | Sequence[Path] = (),
    settings: Mapping[str, Any] | None = None,
) -> VideoClassifier:
    """Loads a trained model.

    It is shown the frames, asked the prompt and computed with the precision that its weights folder
    notes, as `python -m rbft predict --weights` does.

    Args:
        weights: A folder that rbft left: that of a run, whose last finished stage is taken, one of
            its weights folders, whole weights or an adapter, or one that `export` wrote.
        device: "cpu", "cuda", "cuda:1" or "mps"; None takes a GPU where there is one.
        config: Experiment files, for a folder that an earlier version left or for other settings.
        settings: Other settings, by the names that they have on the command line:
            `{"data.max_frames": 32}`.

    Raises:
        ValueError: If the folder is none of these, does not say enough of itself, or a setting is
            wrong.
    """
    files = [config] if isinstance(config, str | os.PathLike) else config
    given = {**_devices(device), **(settings or {})}
    args = [
        "predict",
        *(f"--config={os.fspath(file)}" for file in files),
        f"--weights={os.fspath(weights)}",
        "--videos=.",  # asked for by the command, not used here
        *(f"--{name}={_text(value)}" for name, value in given.items()),
    ]
    said = io.StringIO()
    with _quiet_lightning():
        try:
            with redirect_stderr(said):
                experiment = parse_experiment(args)
        except SystemExit as error:
            raise ValueError(said.getvalue().strip().removeprefix("error: ")) from error
        return VideoClassifier(experiment, os.fspath(weights))


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning announces the hardware for every Trainer; its loggers are left as they were."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _devices(device: str | None) -> dict[str, Any]:
    """The Trainer's settings that put a model on a device."""
    if device is None:
        return {}
    kind, _, number = str(device).partition(":")
    kinds = {"cpu": "cpu", "cuda": "gpu", "gpu": "gpu", "mps": "mps"}
    if kind not in kinds or (number and not number.isdecimal()):
        raise ValueError(
            f"device is '{device}'; allowed are cpu, cuda, cuda:<number>, mps and None."
        )
    devices = f"[{number}]" if number and kind != "cpu" else "1"
    return {"trainer.accelerator": kinds[kind], "trainer.devices": devices}


def _text(value: Any) -> str:
    """A value as it stands on a command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
