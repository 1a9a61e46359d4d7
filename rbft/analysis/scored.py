"""What somebody answered about the clips of a split, as arrays; read from a result file or rows."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rbft.analysis.intervals import Interval
from rbft.analysis.levels import level_intervals, level_scores

NAMED = 3  # ids that a message names
SEVERAL = "several"  # in results of clips that may have several classes, see `multilabel`


@dataclass(frozen=True)
class ScoredClips:
    """Answers about labelled clips, a row each.

    Attributes:
        name: Whose answers these are; messages name it.
        split: The split that the clips are of: "train", "val" or "test".
        classes: Class names in order.
        ids: Ids of the clips.
        labels: Index of each clip's class.
        predictions: Index of each answer; K, the number of classes, for one that is no class.
        probabilities: Of each class, rows that add up to 1; NaN for a clip without. None where
            no clip has any.
        levels: The value of each class where they are levels of a scale; empty where not.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Int[np.ndarray, " clips"]
    predictions: Int[np.ndarray, " clips"]
    probabilities: Float[np.ndarray, "clips classes"] | None = None
    levels: tuple[float, ...] = ()

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        classes: Sequence[str],
        split: str,
        name: str,
        levels: Sequence[float] = (),
    ) -> "ScoredClips":
        """From rows as they stand in `<split>_predictions.jsonl`.

        Args:
            rows: One a clip: `id`, `label` and `prediction` (class names; None is an answer that
                is no class) and, where there are, `probabilities` by class.
            classes: Class names in order.
            split: The split of the clips.
            name: Whose answers these are.
            levels: The value of each class where they are levels of a scale.

        Raises:
            ValueError: If there is no row, an id stands twice, a label is none of the classes or
                missing, a prediction is none of them and not None, or the probabilities are not
                one number from 0 to 1 for each class, with a sum of 1.
        """
        rows, classes = list(rows), tuple(classes)
        if not rows:
            raise ValueError(f"{name} has no scored clips.")
        ids = tuple(row["id"] for row in rows)
        if len(set(ids)) < len(ids):
            twice = [one for one in dict.fromkeys(ids) if ids.count(one) > 1]
            raise ValueError(
                f"{name} has several rows of {some(twice, 'clip')}. Leave one of each."
            )
        known = {one: index for index, one in enumerate(classes)}
        for row in rows:
            for key, allowed in (("label", [*classes]), ("prediction", [*classes, None])):
                if row.get(key) not in allowed:
                    raise ValueError(
                        f"{name}: the {key} of clip {row['id']} is {row.get(key)!r}, but the "
                        f"classes are {', '.join(classes)}."
                    )
        return cls(
            name,
            split,
            classes,
            ids,
            np.array([known[row["label"]] for row in rows]),
            np.array([known.get(row["prediction"], len(classes)) for row in rows]),
            _probabilities(rows, classes, name),
            tuple(map(float, levels)),
        )

    @classmethod
    def from_file(cls, file: Path, name: str | None = None) -> "ScoredClips":
        """From the results of a stage, with the predictions beside them.

        Args:
            file: Such as lightning_logs/<run>/label/test.json.
            name: Whose answers these are; None takes the run and stage that the file names.

        Raises:
            ValueError: If one of the two files is missing, or see `from_rows`.
        """
        lines = file.with_name(f"{file.stem}_predictions.jsonl")
        for needed in (file, lines):
            if not needed.is_file():
                raise ValueError(
                    f"{needed} is missing: results are a .json file and the predictions beside it, "
                    "as fit and python -m rbft test leave them."
                )
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.get(SEVERAL):
            raise ValueError(
                f"{file} is of a card with the key several: its clips may have several classes, "
                "or none, and this compares answers of one class a clip. Leave it out."
            )
        rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        if name is None:
            name = "/".join(found[key] for key in ("run", "stage") if key in found) or str(file)
        levels = [*found.get("values", {}).values()]
        return cls.from_rows(rows, list(found["classes"]), found["split"], name, levels)

    @property
    def level_scores(self) -> dict[str, float]:
        """Mean absolute errors and rank correlation; empty where classes are no levels."""
        return level_scores(*self._level_values()) if self.levels else {}

    @property
    def level_intervals(self) -> dict[str, Interval]:
        """The same with 95 % intervals."""
        return level_intervals(*self._level_values()) if self.levels else {}

    def _level_values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Expected, answered and true values of the clips; NaN without an answer."""
        values = np.array([*self.levels, np.nan])
        answered, true = values[self.predictions], values[self.labels]
        if self.probabilities is None:
            return answered, answered, true
        # A clip without probabilities has the value of its answer, one without answer none.
        shares = self.probabilities @ values[:-1]
        return np.where(np.isnan(shares) | np.isnan(answered), answered, shares), answered, true

    @property
    def right(self) -> np.ndarray:
        """Whether each answer is right."""
        return self.predictions == self.labels

    @property
    def confusion(self) -> Int[np.ndarray, "classes predictions"]:
        """Clips by label (K rows) and prediction (K + 1 columns, the last one no class)."""
        count = len(self.classes)
        cells = np.bincount(
            self.labels * (count + 1) + self.predictions, minlength=count**2 + count
        )
        return cells.reshape(count, count + 1)

    @property
    def digest(self) -> str:
        """Short hash of ids and labels, whatever the order of the clips."""
        lines = sorted(
            json.dumps([one, self.classes[label]])
            for one, label in zip(self.ids, self.labels.tolist(), strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    def with_probabilities(self) -> "ScoredClips":
        """The clips that have probabilities; figures of probabilities are about these.

        Raises:
            ValueError: If none has.
        """
        have = None if self.probabilities is None else ~np.isnan(self.probabilities[:, 0])
        if self.probabilities is None or have is None or not have.any():
            raise ValueError(
                f"{self.name} has no class probabilities: the answers were written, not scored. "
                "Set model.answer to score."
            )
        if have.all():
            return self
        places = np.flatnonzero(have)
        return self._take(places.tolist())

    def in_order_of(self, ids: Sequence[str]) -> "ScoredClips":
        """The same clips in another order.

        Args:
            ids: All ids, as they shall follow each other.
        """
        places = {one: place for place, one in enumerate(self.ids)}
        return self._take([places[one] for one in ids])

    def _take(self, places: list[int]) -> "ScoredClips":
        return ScoredClips(
            self.name,
            self.split,
            self.classes,
            tuple(self.ids[place] for place in places),
            self.labels[places],
            self.predictions[places],
            None if self.probabilities is None else self.probabilities[places],
            self.levels,
        )


def some(names: Sequence[str], noun: str) -> str:
    """A count and the first names: "4 clips (a, b, c, ...)".

    Args:
        names: All of them.
        noun: What one of them is.
    """
    listed = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"{len(names)} {noun}{'s' * (len(names) != 1)} ({listed})"


def _probabilities(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], name: str
) -> Float[np.ndarray, "clips classes"] | None:
    if not any("probabilities" in row for row in rows):
        return None
    values = np.full((len(rows), len(classes)), np.nan)
    for place, row in enumerate(rows):
        given = row.get("probabilities")
        if given is None:
            continue
        if set(given) != set(classes):
            raise ValueError(
                f"{name}: clip {row['id']} has probabilities of {', '.join(given)}, but the "
                f"classes are {', '.join(classes)}."
            )
        shares = [float(given[one]) for one in classes]
        # Files hold seven digits of each.
        if not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-3:
            raise ValueError(
                f"{name}: the probabilities of clip {row['id']} must be from 0 to 1 with a sum of "
                f"1; got {', '.join(f'{share:.10g}' for share in shares)}."
            )
        values[place] = shares
    return values
