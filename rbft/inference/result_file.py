"""What a scored split leaves: a row a clip, and the metrics; whoever has answered."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from rbft.analysis.calibration import calibration
from rbft.analysis.intervals import Interval, for_results, score_intervals
from rbft.analysis.scored import ScoredClips
from rbft.data.base import VideoDataModule
from rbft.inference.metrics import for_json, macro_classes
from rbft.masking.settings import MASKING, summarise
from rbft.runs.folder import digest
from rbft.runtime.console import print_rank_zero
from rbft.runtime.files import write_json, write_text

log = logging.getLogger(__name__)


def write_results(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    data: VideoDataModule,
    split: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float],
    confusion: Int[Tensor, "classes predictions"],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `<file's stem>_predictions.jsonl` and, last, the file with the metrics.

    Clips that cannot be decoded, and those of which several classes are the likeliest, are counted
    and said. Each score has its 95 % interval under `intervals` (Wilson's for the accuracy, the
    bootstrap's over clips for F1), and where there are class probabilities `calibration` says how
    far they can be believed (`rbft.analysis.calibration.Calibration`); null where there are none.

    Args:
        file: The results, `.json`; its presence marks the split as scored.
        rows: One a clip in the split's order: `id`, `label`, and what `answer_row` gives.
        data: The benchmark.
        split: "test" or "val".
        facts: What else to note, before the metrics. Where masks were drawn, `masking` says which;
            what was really masked, by `masked` of each row, is added to it.
        metrics: As `ClassificationMetrics.compute` gives them.
        confusion: As `ClassificationMetrics.confusion` gives it.
        more: What else to note, behind the metrics.

    Returns:
        What stands in the file.
    """
    lost = write_rows(file, rows, split)
    counts = {name: sum(row["label"] == name for row in rows) for name in data.card.classes}
    tied = [row["id"] for row in rows if row.get("tied")]
    if tied:
        print_rank_zero(
            f"{len(tied)} of {len(rows)} {split} clips have the highest score for several "
            f"classes (first: {tied[0]}); the first of these on the card is taken."
        )
    noted = dict(facts)
    if MASKING in facts:
        reports = [(row["id"], row["masked"]) for row in rows if "masked" in row]
        noted[MASKING] = {**facts[MASKING], **summarise(reports)}
    content = {
        **noted,
        "split": split,
        "n_expected": sum(clip.split == split for clip in data.all_clips),
        "n_available": len(data.clips(split)),
        "n_scored": len(rows),
        "n_unparsed": sum(row["prediction"] is None for row in rows),
        "n_ties": len(tied),
        "n_undecodable": len(lost),
        "undecodable": lost,
        "classes": counts,
        **({} if data.card.values is None else {"values": dict(data.card.values)}),
        "macro_classes": macro_classes(counts),
        "ids": digest([row["id"] for row in rows]),
        "coverage": sum(row["prediction"] is not None for row in rows) / max(1, len(rows)),
        "metrics": for_json(metrics),
        "intervals": for_results(
            score_intervals(confusion.cpu().numpy(), data.card.classes)
            | _level_intervals(rows, data)
        ),
        "calibration": _calibration(rows, data.card.classes, split),
        "confusion": confusion.tolist(),
        **(more or {}),
    }
    write_json(file, content)
    return content


def _level_intervals(
    rows: Sequence[Mapping[str, Any]], data: VideoDataModule
) -> dict[str, Interval]:
    """Those of the errors on a scale; none where the classes are no levels."""
    if not data.card.levels or not rows:
        return {}
    card = data.card
    return ScoredClips.from_rows(rows, card.classes, "", "results", card.levels).level_intervals


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]], split: str) -> list[str]:
    """Writes `<file's stem>_predictions.jsonl`, and says which clips cannot be decoded.

    Args:
        file: The results, `.json`, which are not written.
        rows: One a clip in the split's order, with the `error` of those that cannot be decoded.
        split: "test" or "val".

    Returns:
        Ids of the clips that cannot be decoded.
    """
    write_text(
        file.with_name(f"{file.stem}_predictions.jsonl"),
        "".join(f"{json.dumps(row)}\n" for row in rows),
    )
    lost = [row["id"] for row in rows if "error" in row]
    if lost:
        log.warning(
            "%d of %d %s clips cannot be decoded and count as wrong (first: %s).",
            len(lost),
            len(rows),
            split,
            next(row["error"] for row in rows if "error" in row),
        )
    return lost


def _calibration(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], split: str
) -> dict[str, Any] | None:
    if not any("probabilities" in row for row in rows):
        return None
    return calibration(ScoredClips.from_rows(rows, classes, split, "results")).as_dict()
