"""`predict`: classify any videos."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.build import Experiment, build
from rbft.callbacks.predictions import PredictionWriter
from rbft.callbacks.timeline import draw_timeline
from rbft.clip import Clip
from rbft.commands.prediction_summary import failures, first_rows
from rbft.data.base import VideoDataModule
from rbft.data.windows import Windows
from rbft.prediction import set_up
from rbft.runtime.console import print_rank_zero
from rbft.runtime.digests import file_digest
from rbft.runtime.fault_tolerance import leave_process_group
from rbft.runtime.lock import Lock
from rbft.runtime.progress import track
from rbft.video.images import images_digest, timed_digest


def predict(
    experiment: Experiment,
    videos: list[Path] | Path,
    output: Path = Path("predictions.jsonl"),
    weights: str = "run",
    rationale: bool = False,
    every: float | None = None,
    window: float | None = None,
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
        every: Runs a window over each video instead, one every so many seconds: a line each, and a
            picture of the probabilities over time in a folder beside the output. null takes each
            video as a whole.
        window: Seconds that a window lasts; null is as long as every. Longer ones overlap, shorter
            ones leave gaps. A last window that has less than half of it is left out.
    """
    windows = Windows.given(every, window)
    if experiment.endpoint is not None:
        raise ValueError(
            f"predict asks a backbone, not the endpoint ({experiment.endpoint.model}). Add "
            "--endpoint null, or score a benchmark with python -m rbft test."
        )
    given = [videos] if isinstance(videos, Path) else videos
    with Lock(output, "--output"):
        failed = _predict(experiment, given, output, weights, rationale, windows)
    if failed:
        leave_process_group()
        sys.exit(1)


def _predict(
    experiment: Experiment,
    videos: list[Path],
    output: Path,
    weights: str,
    rationale: bool,
    windows: Windows | None,
) -> int:
    """Predicts what is missing.

    Returns:
        The number of videos, or windows, that could not be predicted; 0 in all processes but the
        first.
    """
    if windows is not None:
        # Each window is decoded once: kept, they would push the training clips out of the caches.
        no_room = {f"data__init_args__{name}_cache_gb": 0.0 for name in ("frame", "feature")}
        experiment = experiment.changed(**no_room)
    what = "videos" if windows is None else "windows"
    setup = set_up(experiment, weights)
    data = setup.inputs.data
    made_from = {**setup.conditions, "rationale": rationale}
    if (decision := setup.decision) is not None:
        made_from["decision"] = decision.determining
        print_rank_zero(f"{decision.said}, see {decision.file}.")
    clips = data.clips_from_videos(videos)
    if windows is not None:
        made_from |= {"every": windows.every, "window": windows.length}
        clips = _windows(clips, windows, data)
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
        levels=data.card.levels,
    )
    count, todo = len(writer.clips), len(writer.todo)
    if todo < count:
        print_rank_zero(f"{count - todo} of {count} {what} stand in {output} already.")
    if todo:
        build(
            experiment,
            setup.stage,
            setup.folder,
            f"Predicting {todo} {what}",
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
    if windows is not None:
        folder = _draw(rows, data.card.classes, output)
        print_rank_zero(f"The probabilities over time: {folder}")
    if failed:
        print_rank_zero(failures(rows, what))
    return failed


def _windows(clips: list[Clip], windows: Windows, data: VideoDataModule) -> list[Clip]:
    """The windows of all files."""
    found: list[Clip] = []
    for clip in track(clips, "Listing the frames", len(clips), "file"):
        found += windows.of(clip, data.frames)
        data.notes += windows.remarks(clip, data.frames)
    return found


def _draw(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], output: Path) -> Path:
    """Draws the windows of each file that has some.

    Returns:
        The folder of the pictures.
    """
    folder = output.with_name(f"{output.stem}_timelines")
    files: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if "end" in row:
            files.setdefault(row["path"], []).append(row)
    taken: set[str] = set()
    for path, own in files.items():
        name, number = Path(path).stem, 1
        while name in taken:  # two folders may hold files of one name
            number += 1
            name = f"{Path(path).stem}-{number}"
        taken.add(name)
        draw_timeline(own, classes, Path(path).name, folder / f"{name}.png")
    return folder


def _content(cache_folder: Path, clip: Clip) -> str | None:
    """Content digest of a video as it is now; None where it cannot be read."""
    with suppress(OSError):
        if clip.images is not None:
            return timed_digest(images_digest(clip.images, cache_folder), clip.images)
        return file_digest(clip.path, cache_folder)
    return None
