"""What `attention` leaves: scores of all maps, pictures of some, and the table on the screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rbft.attention.boxes import FrameBoxes
from rbft.attention.maps import slice_frames
from rbft.attention.pictures import Colours, RunMap, ShownClip, write_film, write_strip
from rbft.attention.records import file_name
from rbft.attention.summary import (
    SCORES,
    Scored,
    as_dict,
    box_note,
    clip_scores,
    differences,
    scores_table,
)
from rbft.clip import Clip
from rbft.commands.attention_maps import MapReading
from rbft.runtime.console import print_rank_zero
from rbft.runtime.files import write_json
from rbft.video.listings import known_frames
from rbft.video.sampling import VideoError

RESULT = "attention.json"


def write_output(
    reading: MapReading,
    boxes: Mapping[str, FrameBoxes] | None,
    pictures: int,
    colours: Colours,
    file: Path | None,
) -> None:
    """Scores what was read, makes pictures, writes it all and prints the table.

    Args:
        reading: The maps.
        boxes: The objects of clips; None where no file was given.
        pictures: Clips that pictures are made of.
        colours: Colours of the maps.
        file: The file of the boxes.
    """
    found = {
        source.name_of(control): reading.records(source, control)
        for source in reading.sources
        for control in source.records
    }
    scores = {
        name: {clip: clip_scores(one, (boxes or {}).get(clip)) for clip, one in records.items()}
        for name, records in found.items()
    }
    runs, controls = [], {}
    for number, source in enumerate(reading.sources):
        key, own = chr(ord("a") + number), source.run.name
        runs.append(Scored(own, key, scores[own]))
        controls[own] = [
            Scored(name, f"{key} {control}", scores[name])
            for control in source.records
            if (name := source.name_of(control)) != own
        ]
    if said := box_note(runs, boxes):
        reading.note(said)
    clips = []
    for number, clip in enumerate(reading.clips):
        answers = {one.run.name: found[one.run.name][clip.id] for one in reading.sources}
        label = reading.class_of(clip)
        about: dict[str, Any] = {"id": clip.id, "label": label, "strips": {}}
        if number < pictures:
            shown = _shown(reading, clip, (boxes or {}).get(clip.id))
            about |= _pictures(reading.output, shown, answers, colours)
        about["predictions"] = {
            run: {key: one[key] for key in ("prediction", "probabilities")}
            for run, one in answers.items()
        }
        about["scores"] = {name: _finite(own[clip.id]) for name, own in scores.items()}
        clips.append(about)
    every = [*runs, *(one for many in controls.values() for one in many)]
    pairs = [(b, a) for n, a in enumerate(runs) for b in runs[n + 1 :]]
    pairs += [(run, control) for run in runs for control in controls[run.name]]
    content = {
        "runs": [run.name for run in runs],
        "controls": {run: [one.name for one in many] for run, many in controls.items()},
        "map": reading.description,
        "boxes": None if file is None else str(file),
        "notes": reading.notes,
        "meaning": SCORES,
        "clips": clips,
        "scores": {
            one.name: {key: as_dict(*mean) for key, mean in one.means().items()} for one in every
        },
        "differences": [{"a": a.name, "b": b.name, "scores": differences(a, b)} for a, b in pairs],
        "made_from": {
            source.name_of(control): dict(kept.made_from)
            for source in reading.sources
            for control, kept in source.records.items()
        },
    }
    write_json(reading.output / RESULT, content)
    print_rank_zero(
        f"{len(clips)} clip{'s' * (len(clips) != 1)}. {reading.description}\n"
        f"{scores_table(runs, controls)}\n"
        f"Pictures, films and all figures: {reading.output}"
    )


def _shown(reading: MapReading, clip: Clip, boxes: FrameBoxes | None) -> ShownClip:
    """A clip as pictures show it; decodes it."""
    video = reading.data.reader.decode(clip)
    return ShownClip(
        clip.id,
        reading.class_of(clip),
        video.frames.permute(0, 2, 3, 1).numpy(),
        frame_seconds(clip, video.indices, video.fps),
        slice_frames(video.indices),
        [None if boxes is None else boxes.get(index) for index in video.indices],
    )


def _pictures(
    output: Path, shown: ShownClip, answers: Mapping[str, Mapping[str, Any]], colours: Colours
) -> dict[str, Any]:
    """Writes a strip of each run, a figure of all of them and a film; names of the files."""
    maps = []
    for run, one in answers.items():
        share = one["probabilities"][one["prediction"]]
        answer = f"prediction: {one['prediction']} ({share:.2f})"
        maps.append(RunMap(run, np.array(one["map"]), answer))
    stem, strips = file_name(shown.id), {}
    for own in maps:
        strips[own.run] = f"strips/{stem}-{file_name(own.run)}.png"
        write_strip(output / strips[own.run], shown, [own], colours)
    figure, film = f"figures/{stem}.png", f"films/{stem}.mp4"
    write_strip(output / figure, shown, maps, colours, plain=True)
    write_film(output / film, shown, maps, colours)
    return {"strips": strips, "figure": figure, "film": film}


def frame_seconds(clip: Clip, indices: Sequence[int], fps: float) -> list[float]:
    """When frames are shown, in seconds from the clip's beginning, by the file's time stamps.

    Args:
        clip: The clip.
        indices: Numbers of the frames in the file.
        fps: Frames per second of the file, where its time stamps do not say.
    """
    start = clip.start or 0.0
    try:
        stamps = known_frames(clip.source).seconds
        return [stamps[index] - start for index in indices]
    except (VideoError, IndexError):
        return [index / fps - start for index in indices]


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in scores.items()}
