"""What is said at the end of `fit`: where everything is, how long it took, and what comes next."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from rbft.build import LOGS, Experiment
from rbft.callbacks.history import CURVES, HISTORY
from rbft.data.manifest import NEVER_USED, OK
from rbft.inputs import Inputs
from rbft.runs.folder import LOG, read_provenance
from rbft.runs.usage import read_usage
from rbft.runtime.progress import clock

# False where runs are parts of something that says in the end what comes next.
_said: ContextVar[bool] = ContextVar("said", default=True)
SOON = 3.0  # seconds that are worth a word


def closing(inputs: Inputs, seconds: float | None) -> str:
    """The last lines of a run.

    Args:
        inputs: What the experiment is made from.
        seconds: How long this start took; None where nothing was left to do.
    """
    later = _next(inputs.experiment) if _said.get() else []
    place, took = _place(inputs, seconds)
    return "\n".join([place, f"{_clips(inputs)} {took}", *later])


@contextmanager
def one_of_several() -> Iterator[None]:
    """Leaves out what comes next at the end of runs in the block."""
    token = _said.set(False)
    try:
        yield
    finally:
        _said.reset(token)


def _place(inputs: Inputs, seconds: float | None) -> tuple[str, str]:
    """Where everything is, and how long it took."""
    folder = inputs.experiment.run.folder
    files = [name for name in (CURVES, HISTORY, LOG) if (folder / name).exists()]
    processes = inputs.trainer.world_size
    spent = sum(one.seconds for one in read_usage(folder).values()) / processes
    took = clock(spent if seconds is None else seconds)
    if seconds is not None and spent - seconds > SOON:
        took += f", {clock(spent)} with the starts before"
    also = f" ({', '.join(files)})" if files else ""
    return f"Everything is in {folder}{also}.", f"It took {took}."


def _clips(inputs: Inputs) -> str:
    """How many clips were trained on and scored, and how many were lost or cut."""
    data, experiment = inputs.data, inputs.experiment
    said = [f"{len(data.clips('train'))} to train"] if experiment.stages else []
    said.append(f"{len(data.clips('test'))} to test")
    rows = [row for row in data.files.accepted.rows if row.status not in NEVER_USED]
    lost = sum(row.status != OK for row in rows)
    said.append(f"{lost or 'none'} lost" + (" (rbft scan lists them)" if lost else ""))
    cut = 0
    for stage in experiment.stages:
        found = read_provenance(experiment.run.weights(stage)) or {}
        cut = max(cut, found.get("rationales", {}).get("cut", 0))
    if cut:
        longest = inputs.model.max_new_tokens
        said.append(f"{cut} rationales cut off at {longest} tokens")
    return f"Clips: {', '.join(said)}."


def _next(experiment: Experiment) -> list[str]:
    """The commands that come next."""
    logs, run = experiment.logs, experiment.run
    place = f" --logs {shlex.quote(str(logs))}" if logs != Path(LOGS) else ""
    commands = [
        f"python -m rbft report{place}",
        f"tensorboard --logdir {shlex.quote(str(logs))}",
    ]
    done = [stage for stage in experiment.stages if run.trained(stage)]
    if done:
        # The folder of a run stands for the weights of its last stage.
        whole = experiment.single is None
        weights = shlex.quote(str(run.folder if whole else run.weights(done[-1])))
        commands.insert(0, f"python -m rbft predict --weights {weights} --videos FOLDER")
    return ["Next:", *(f"  {command}" for command in commands)]
