"""`predict`: classify any videos."""

from contextlib import suppress
from functools import partial
from pathlib import Path

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.build import Experiment, build
from rbft.callbacks.predictions import PredictionWriter
from rbft.clip import Clip
from rbft.decision import find_decision
from rbft.inputs import check_inputs, find_weights
from rbft.runtime.console import print_rank_zero
from rbft.runtime.digests import file_digest
from rbft.runtime.lock import Lock
from rbft.stages import find_stage


def predict(
    experiment: Experiment,
    videos: list[Path] | Path,
    output: Path = Path("predictions.jsonl"),
    weights: str = "run",
    rationale: bool = False,
) -> None:
    """Write class and class probabilities of videos, one JSON line each and as a table.

    Started again with the same output, it goes on where it stopped.

    Args:
        experiment: The settings.
        videos: A video file, a folder that is searched for them, a file that lists them (.txt
            with one path a line, or .csv with a column path), or several such:
            [a.mp4, folder].
        output: The file to write, .jsonl; the table goes into a .csv file beside it.
        weights: run takes the run's last finished stage (or model.stage), backbone the bare
            backbone (zero-shot); anything else is a weights folder.
        rationale: Also have the model write a rationale for each video.
    """
    if experiment.endpoint is not None:
        raise ValueError(
            f"predict asks a backbone, not the endpoint ({experiment.endpoint.model}). Add "
            "--endpoint null, or score a benchmark with python -m rbft test."
        )
    given = [videos] if isinstance(videos, Path) else videos
    with Lock(output, "--output"):
        _predict(experiment, given, output, weights, rationale)


def _predict(
    experiment: Experiment, videos: list[Path], output: Path, weights: str, rationale: bool
) -> None:
    inputs = check_inputs(experiment, benchmark=False)
    _, stage, folder = find_weights(experiment, weights)
    stage = find_stage(stage).classifier.name
    if folder is not None:
        inputs.check_words(folder, find_stage(stage))
    data = inputs.data
    conditions = inputs.conditions(stage, folder)
    made_from = {**conditions, "rationale": rationale}
    decision = None if folder is None else find_decision(folder, conditions["weights"])
    if decision is not None:
        if experiment.settings.model.answer != "score":
            raise ValueError(
                f"The threshold in {decision.file} needs the probabilities of the classes, but "
                f"model.answer is {experiment.settings.model.answer}. Set it to score, or remove "
                "the file."
            )
        made_from["decision"] = decision.determining
        print_rank_zero(
            f"A video is '{decision.positive}' from a probability of {decision.threshold:.4g} on, "
            f"see {decision.file}."
        )
    clips = data.clips_from_videos(videos)
    for note in data.notes:
        print_rank_zero(note)
    threshold = None if decision is None else (decision.positive, decision.threshold)
    content = partial(_content, data.cache_folder)
    writer = PredictionWriter(output, clips, data.card.classes, made_from, content, threshold)
    count, todo = len(writer.clips), len(writer.todo)
    if todo < count:
        print_rank_zero(f"{count - todo} of {count} videos stand in {output} already.")
    if todo:
        build(
            experiment,
            stage,
            folder,
            f"Predicting {todo} videos",
            [writer],
            feed={"predict_clips": writer.todo},
            collating={"rationale": rationale},
        ).predict()
    if not _get_rank():
        failed = writer.finish()
        table = output.with_suffix(".csv")
        print_rank_zero(f"Wrote {count - failed} predictions to {output} and {table}.")
        if failed:
            print_rank_zero(f"{failed} videos cannot be decoded; their lines hold the error.")


def _content(cache_folder: Path, clip: Clip) -> str | None:
    """Content digest of a video as it is now; None where it cannot be read."""
    with suppress(OSError):
        return file_digest(clip.path, cache_folder)
    return None
