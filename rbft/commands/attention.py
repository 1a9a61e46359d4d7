"""`attention`: what runs look at when they name the class of a clip, and how much that means."""

from pathlib import Path
from typing import Literal

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.attention.boxes import read_boxes
from rbft.attention.causal import CausalSettings
from rbft.attention.maps import Kind
from rbft.attention.module import MapSettings
from rbft.attention.pictures import Colours
from rbft.attention.prompts import GENERIC
from rbft.build import LOGS
from rbft.commands.attended_runs import common_experiment, find_run, joined_names
from rbft.commands.attention_maps import REDRAWN, SHUFFLED, MapReading
from rbft.commands.attention_output import write_output
from rbft.runtime.lock import Lock
from rbft.runtime.ranges import check_ranges

FOLDER = "attention"  # within that of the runs


def attention(
    runs: list[str],
    clips: list[str] | None = None,
    configs: list[Path] | None = None,
    boxes: Path | None = None,
    kind: Kind = "mean",
    layers: list[int] | str = "middle_to_late",
    generic: str = GENERIC,
    controls: list[Literal["redrawn", "shuffled"]] | None = None,
    masked_share: float = 0.2,
    repeats: int = 3,
    pictures: int = 20,
    colours: Colours = "viridis",
    seed: int = 0,
    name: str | None = None,
    logs: Path = Path(LOGS),
) -> None:
    """Show what runs look at in clips: maps (Figure 2), scores of them, and their controls.

    Started again, it goes on after the last clip that was read.

    Args:
        runs: Runs to compare, "[direct, ours]": names of folders under logs, weights folders, or
            backbone for the bare backbone.
        clips: Ids of clips, "[a, b]"; null takes all test clips.
        configs: Experiment files that say which benchmark, backbone and hardware; null takes the
            settings of the first run that has any.
        boxes: JSON Lines with the objects of clips (id, frame, boxes); without it, the scores that
            need them are left out.
        kind: mean over heads and layers; relative, that divided by the same of a generic prompt;
            or rollout through all layers.
        layers: The band of layers of a mean: early, middle, late, middle_to_late (50 to 90 % of the
            depth), all, or layers by number from 0, "[14, 15]".
        generic: The prompt that relative divides by.
        controls: Controls of each run: redrawn (the language model's weights drawn anew) and
            shuffled (the question's words in another order); null takes both, "[]" none.
        masked_share: Share of the video's cells that is greyed to see what the answer loses; 0
            masks nothing.
        repeats: Random draws of as many cells, which the loss is compared with.
        pictures: Clips that pictures are made of, the first ones.
        colours: Colours of the maps.
        seed: Of random cells, re-drawn weights and shuffled words.
        name: Name of the output's folder under <logs>/attention; null joins those of the runs.
        logs: Folder of the runs.
    """
    numbers = {"repeats": repeats, "pictures": pictures, "seed": seed}
    check_ranges("", {**numbers, "masked_share": masked_share})
    found = [find_run(one, logs) for one in runs]
    if not found or len({one.name for one in found}) < len(found):
        raise ValueError(
            f'--runs must name runs, each once, such as "[direct, ours]"; got {", ".join(runs)}.'
        )
    known = None if boxes is None else read_boxes(boxes)
    experiment = common_experiment(found, configs, logs)
    causal = CausalSettings(masked_share, repeats, seed) if masked_share else None
    band = layers if isinstance(layers, str) else tuple(layers)
    settings = MapSettings(kind, band, generic, causal, seed)
    wanted = (REDRAWN, SHUFFLED) if controls is None else tuple(controls)
    output = experiment.logs / FOLDER / (name or joined_names(found))
    if _get_rank():  # one process looks
        return
    with Lock(output, "Attention folder"):
        reading = MapReading(experiment, found, settings, wanted, output)
        reading.read(clips)
        write_output(reading, known, pictures, colours, boxes)
