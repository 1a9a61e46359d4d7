"""`mask`: where the key objects are in the frames that the model sees (Table 5)."""

from pathlib import Path
from typing import Literal

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.build import Experiment
from rbft.commands.box_search import BoxSearch, Localiser, Namer
from rbft.masking.formats import FormatName
from rbft.runtime.lock import Lock
from rbft.runtime.ranges import check_ranges

BOXES = "boxes"  # folder within that of the runs


def mask(
    experiment: Experiment,
    localiser: Localiser = "detector",
    namer: Namer = "list",
    names: list[str] | dict[str, list[str]] | None = None,
    objects: int = 3,
    detector: str = "google/owlv2-base-patch16-ensemble",
    threshold: float = 0.2,
    text_threshold: float = 0.25,
    form: FormatName | None = None,
    file: Path | None = None,
    split: Literal["train", "val", "test"] = "test",
    output: Path | None = None,
) -> None:
    """Find the key objects in the clips' frames and write their boxes, once for all runs.

    Started again, it goes on where it stopped. test with data.masking then masks what is in the
    boxes.

    Args:
        experiment: The settings.
        localiser: Who finds the boxes: a detector of transformers, the backbone, the endpoint, a
            file, or truth, for the miniature, which knows where its sprites are.
        namer: Who names the objects to look for: the list of --names, or for each clip the backbone
            or the endpoint.
        names: Objects to look for, "[person, dog]", or those of each class, "{normal: [dog],
            abnormal: [person]}". null leaves it to a backbone or endpoint that finds boxes to say
            what matters.
        objects: Most boxes of a frame, the surest first, and names of a clip.
        detector: Folder or hub id of an OWLv2 or (MM-)Grounding-DINO model.
        threshold: Least score of a detector's box.
        text_threshold: Least score of the words that a box of Grounding DINO is about.
        form: How the endpoint, or a backbone that is no Qwen2-VL nor Qwen2.5-VL, writes boxes.
        file: Boxes for localiser file, .csv or .jsonl: id, frame, x1, y1, x2, y2, label, score.
        split: The split to look at.
        output: The box file; null takes data.masking.boxes, or
            `<logs>/boxes/<benchmark>.jsonl` where that is not set.
    """
    check_ranges("", {"objects": objects, "threshold": threshold, "text_threshold": text_threshold})
    if output is None:
        given = None if experiment.masking is None else experiment.masking.boxes
        name = f"{experiment.data().benchmark}.jsonl"
        output = Path(given) if given else experiment.logs / BOXES / name
    experiment = experiment.changed(data__init_args__masking=None)
    experiment.data().card.refuse_several("mask")
    search = BoxSearch(
        experiment,
        localiser,
        namer,
        names,
        objects,
        detector,
        threshold,
        text_threshold,
        form,
        file,
    )
    search.check()
    if _get_rank():  # one process looks
        return
    with Lock(output, "Box file"):
        search.write(output, split)
