"""What a scored split leaves where its clips may have several classes, or none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rbft.analysis.intervals import for_results
from rbft.analysis.multilabel import (
    LABELS,
    PREDICTED,
    MultiLabelClips,
    multilabel_intervals,
)
from rbft.analysis.scored import SEVERAL
from rbft.data.base import VideoDataModule
from rbft.inference.metrics import for_json, macro_classes
from rbft.inference.result_file import write_rows
from rbft.runs.folder import digest
from rbft.runtime.files import write_json


def write_multilabel(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    data: VideoDataModule,
    split: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `<file's stem>_predictions.jsonl` and, last, the file with the metrics.

    A class is predicted from a probability of one half on. `counts` says for each class how many
    clips have it and are said to (`hits`), are wrongly said to (`false_alarms`), and have it and
    are not said to (`misses`). `majority` has the figures of always answering with the most
    frequent set of classes. Each score has its 95 % interval under `intervals`, but the average
    precision. Clips that cannot be decoded count as wrong: their classes are missed, they rank
    last, and their set is not right.

    Args:
        file: The results, `.json`; its presence marks the split as scored.
        rows: One a clip in the split's order: `id`, `labels`, and what `answer_row` gives.
        data: The benchmark.
        split: "test" or "val".
        facts: What else to note, before the metrics.
        metrics: As `MultiLabelMetrics.compute` gives them.
        more: What else to note, behind the metrics.

    Returns:
        What stands in the file.
    """
    lost = write_rows(file, rows, split)
    classes = data.card.classes
    clips = MultiLabelClips.from_rows(rows, classes, split, "results")
    said = np.array([[name in (row[PREDICTED] or []) for name in classes] for row in rows])
    counts = dict(zip(classes, clips.labels.sum(axis=0).tolist(), strict=True))
    content = {
        **facts,
        "split": split,
        SEVERAL: True,
        "n_expected": sum(clip.split == split for clip in data.all_clips),
        "n_available": len(data.clips(split)),
        "n_scored": len(rows),
        "n_unparsed": len(lost),
        "n_undecodable": len(lost),
        "undecodable": lost,
        "n_without": sum(not row[LABELS] for row in rows),
        "classes": counts,
        "macro_classes": macro_classes(counts),
        "ids": digest([row["id"] for row in rows]),
        "coverage": 1 - len(lost) / max(1, len(rows)),
        "metrics": for_json(metrics),
        "intervals": for_results(multilabel_intervals(clips.labels, said, clips.answered, classes)),
        "counts": {
            name: {
                "hits": int((clips.labels & said)[:, place].sum()),
                "false_alarms": int((~clips.labels & said)[:, place].sum()),
                "misses": int((clips.labels & ~said)[:, place].sum()),
            }
            for place, name in enumerate(classes)
        },
        "majority": for_json(majority_scores(clips)),
        **(more or {}),
    }
    write_json(file, content)
    return content


def majority_scores(clips: MultiLabelClips) -> dict[str, float]:
    """The figures of always answering with the most frequent set of classes.

    Args:
        clips: The clips; their answers do not count.
    """
    sets, counts = np.unique(clips.labels, axis=0, return_counts=True)
    shares = np.broadcast_to(sets[counts.argmax()].astype(float), clips.labels.shape)
    always = MultiLabelClips(
        clips.name, clips.split, clips.classes, clips.ids, clips.labels, shares
    )
    return always.scores()
