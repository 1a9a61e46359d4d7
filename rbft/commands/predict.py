"""`predict`: classify any videos."""

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.build import Experiment, build
from rbft.callbacks.predictions import PredictionWriter
from rbft.clip import Clip
from rbft.commands.prediction_summary import failures, first_rows
from rbft.prediction import set_up
from rbft.runtime.console import print_rank_zero
from rbft.runtime.digests import file_digest
from rbft.runtime.fault_tolerance import leave_process_group
from rbft.runtime.lock import Lock


def predict(
    experiment: Experiment,
    videos: list[Path] | Path,
    output: Path = Path("predictions.jsonl"),
    weights: str = "run",
    rationale: bool = False,
) -> None:
    """Write class and class probabilities of videos, one JSON line each and as a table.

    With a weights folder, no experiment is needed: the folder says how the model is asked.
    Started again with the same output, it goes on where it stopped. Where a video fails, it
    goes on with the others and ends with exit status 1.

    Args:
        experiment: The settings.
        videos: A video file, a folder that is searched for them, a pattern ("clips/*.mp4"), a file
            that lists them (.txt with one path a line, # before a comment, or .csv with a column
            path), or several such: [a.mp4, folder].
        output: The file to write, .jsonl; the table goes into a .csv file beside it.
        weights: The folder of a run, a weights folder or an exported one. With an experiment also
            run, the run's last finished stage (or model.stage), and backbone, the bare backbone
            (zero-shot).
        rationale: Also have the model write a rationale for each video.
    """
    if experiment.endpoint is not None:
        raise ValueError(
            f"predict asks a backbone, not the endpoint ({experiment.endpoint.model}). Add "
            "--endpoint null, or score a benchmark with python -m rbft test."
        )
    given = [videos] if isinstance(videos, Path) else videos
    with Lock(output, "--output"):
        failed = _predict(experiment, given, output, weights, rationale)
    if failed:
        leave_process_group()
        sys.exit(1)


def _predict(
    experiment: Experiment, videos: list[Path], output: Path, weights: str, rationale: bool
) -> int:
    """Predicts what is missing.

    Returns:
        The number of videos that could not be predicted; 0 in all processes but the first.
    """
    setup = set_up(experiment, weights)
    data = setup.inputs.data
    made_from = {**setup.conditions, "rationale": rationale}
    if (decision := setup.decision) is not None:
        made_from["decision"] = decision.determining
        print_rank_zero(f"{decision.said}, see {decision.file}.")
    clips = data.clips_from_videos(videos)
    for note in data.notes:
        print_rank_zero(note)
    content = partial(_content, data.cache_folder)
    writer = PredictionWriter(
        output,
        clips,
        data.card.classes,
        made_from,
        content,
        setup.threshold,
        several=data.card.several is not None,
    )
    count, todo = len(writer.clips), len(writer.todo)
    if todo < count:
        print_rank_zero(f"{count - todo} of {count} videos stand in {output} already.")
    if todo:
        build(
            experiment,
            setup.stage,
            setup.folder,
            f"Predicting {todo} videos",
            [writer],
            feed={"predict_clips": writer.todo},
            collating={"rationale": rationale},
        ).predict()
    if _get_rank():
        return 0
    rows = writer.finish()
    failed = sum("error" in row for row in rows)
    if failed < count:
        print_rank_zero(first_rows(rows, setup.model))
    table = output.with_suffix(".csv")
    print_rank_zero(f"Wrote {count - failed} predictions to {output} and {table}.")
    if failed:
        print_rank_zero(failures(rows))
    return failed


def _content(cache_folder: Path, clip: Clip) -> str | None:
    """Content digest of a video as it is now; None where it cannot be read."""
    with suppress(OSError):
        return file_digest(clip.path, cache_folder)
    return None
