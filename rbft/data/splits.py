"""Who trains and who tests: by hash of the id or by the user's lists, never by what was found.

All of this looks at annotations alone. A split made from the videos that happen to be there would
change with every dead link.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from rbft.annotations.tables import check_unique, read_table, read_text, shown

# What annotations call the splits. Clips that are none of train, val and test are kept, unused.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "private": "private",
    "excluded": "excluded",
    "absent": "excluded",
}


@runtime_checkable
class SplitRow(Protocol):
    """What `hold_out` needs of a clip: a dataclass with these fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """Unique name."""
        ...

    @property
    def label(self) -> int | None:
        """Class index."""
        ...

    @property
    def split(self) -> str:
        """Name of the split."""
        ...

    @property
    def labels(self) -> Sequence[int] | None:
        """All its classes where it may have several, else None."""
        ...


ClipT = TypeVar("ClipT", bound=SplitRow)


def split_by_hash(
    ids: Sequence[str],
    labels: Sequence[str | int | None],
    fractions: Mapping[str, float],
    seed: int = 0,
) -> dict[str, str]:
    """Splits ids at random, but always in the same way, class by class.

    The order is that of a hash of seed and id, so it depends on nothing else: not on the order of
    the input, the machine or the Python version.

    Args:
        ids: Unique ids.
        labels: Label of each id; every label is split for itself, in the same proportions.
        fractions: Split to its share; the shares sum to 1. Counts are rounded per label.
        seed: Another seed gives another split.

    Returns:
        Split of each id.

    Raises:
        ValueError: If the shares are not positive or do not sum to 1.
    """
    shares = list(fractions.values())
    if min(shares, default=0) < 0 or not math.isclose(sum(shares), 1):
        raise ValueError(f"Shares of the splits must be 0 or more and sum to 1; got {shares}.")
    groups: dict[str | int | None, list[str]] = {}
    for clip_id, label in zip(ids, labels, strict=True):
        groups.setdefault(label, []).append(clip_id)
    splits: dict[str, str] = {}
    for group in groups.values():
        group.sort(key=lambda clip_id: _hash(seed, clip_id))
        done, share_so_far = 0, 0.0
        for split, share in fractions.items():
            share_so_far += share
            # Half up, with a margin for shares that are not exact in binary (0.8 + 0.2).
            until = math.floor(share_so_far * len(group) + 0.5 + 1e-9)
            splits.update(dict.fromkeys(group[done:until], split))
            done = until
    return splits


def hold_out(clips: list[ClipT], fraction: float, seed: int = 0) -> list[ClipT]:
    """Moves a share of the training clips to the validation split, stratified by class.

    Args:
        clips: All clips; their order is kept.
        fraction: Share of the training clips, above 0 and below 1.
        seed: See `split_by_hash`.

    Raises:
        ValueError: If there is a validation split already, or the share leaves either side empty.
    """
    given = sum(clip.split == "val" for clip in clips)
    if given:
        raise ValueError(
            f"data.val_fraction is {fraction}, but there is a validation split of {given} clips "
            "already. Set data.val_fraction to 0."
        )
    train = [clip for clip in clips if clip.split == "train"]
    splits = split_by_hash(
        [clip.id for clip in train],
        strata([clip.label for clip in train], [clip.labels for clip in train]),
        {"train": 1 - fraction, "val": fraction},
        seed,
    )
    counts = Counter(splits.values())
    if not counts["val"] or not counts["train"]:
        raise ValueError(
            f"data.val_fraction ({fraction}) of {len(train)} training clips leaves "
            f"{counts['train']} to train and {counts['val']} to validate, rounded class by class. "
            "Choose another share; 0 trains on all of them."
        )
    return [
        replace(clip, split=splits[clip.id]) if clip.split == "train" else clip for clip in clips
    ]


def strata(
    labels: Sequence[int | None], several: Sequence[Sequence[int] | None]
) -> list[int | None]:
    """By what clips are stratified: their class, or the rarest of theirs where they have several.

    A clip with several classes stands in one group, as most sets of classes are those of too few
    clips to be split.

    Args:
        labels: The class of each clip, None where it may have several.
        several: All classes of each clip where it may have several, else None.

    Returns:
        A number for each clip; None for one that has no class.
    """
    counts = Counter(label for own in several for label in own or ())
    return [
        label if own is None else min(own, key=lambda one: (counts[one], one), default=None)
        for label, own in zip(labels, several, strict=True)
    ]


def count_classes(clips: Iterable[SplitRow]) -> Counter[int | None]:
    """How many clips have each class; one that has several counts for each of them.

    Args:
        clips: The clips.
    """
    return Counter(
        label for clip in clips for label in ((clip.label,) if clip.labels is None else clip.labels)
    )


def check_classes(clips: Sequence[SplitRow], classes: Sequence[str], what: str) -> None:
    """Refuses training data in which a class is empty; without training clips all is well.

    Args:
        clips: All clips.
        classes: Class names in the order of the labels.
        what: Where the clips come from, for the message.

    Raises:
        ValueError: If a class has no training clip; names it and its count in the other splits.
    """
    train = count_classes(clip for clip in clips if clip.split == "train")
    others = count_classes(clip for clip in clips if clip.split in ("val", "test"))
    trained = any(clip.split == "train" for clip in clips)
    for index, name in enumerate(classes):
        if trained and not train[index]:
            raise ValueError(
                f"{what}: class '{name}' has no training clip ({others[index]} in validation and "
                f"test); the training split has {_counted(train, classes)}. Add clips, or take "
                "the class off the card's words."
            )


def empty_classes(clips: Sequence[SplitRow], classes: Sequence[str], what: str) -> list[str]:
    """What is to be said of classes that a scored split has no clip of.

    Args:
        clips: All usable clips.
        classes: Class names in the order of the labels.
        what: Where the clips come from, for the message.
    """
    notes = []
    for split in ("val", "test"):
        counts = count_classes(clip for clip in clips if clip.split == split)
        empty = [name for index, name in enumerate(classes) if not counts[index]]
        others = [name for name in classes if name not in empty]
        if any(clip.split == split for clip in clips) and empty:
            mean = f"the macro F1 is the mean over {', '.join(others)}" if others else "no macro F1"
            notes.append(
                f"{what} has no {split} clip of {', '.join(empty)}: there is no F1 of that, and "
                f"{mean}."
            )
    return notes


def read_splits(path: Path) -> dict[str, str]:
    """Reads the split of each id from lists that the user supplies.

    Either a table (CSV, TSV, JSON Lines, ...) with a column `split` and a column `id` or `Title`,
    or a folder of lists, one id a line, named after their split: `train.txt`, `test.txt` and
    `val.txt` (or `valid.txt`, `validation.txt`).

    Args:
        path: The table or the folder.

    Returns:
        Split of each id, one of train, val, test, private and excluded.

    Raises:
        ValueError: If there is no such file, a split has an unknown name, or an id stands twice.
    """
    entries: list[tuple[str, str, str]] = []
    if path.is_dir():
        for file in sorted(path.glob("*.txt")):
            split = split_name(file.stem, str(file))
            for number, line in enumerate(read_text(file).splitlines(), start=1):
                if line.strip():
                    entries.append((line.strip(), split, f"{file}, line {number}"))
        if not entries:
            raise ValueError(
                f"{path} holds no id lists; expected are train.txt, test.txt and, if you like, "
                "val.txt with one id a line."
            )
    else:
        for row in read_table(path, ["split"]):
            column = next((name for name in ("id", "Title") if name in row.values), None)
            if column is None:
                raise ValueError(
                    f"{row.where}: no column 'id' or 'Title'; the columns there are "
                    f"{', '.join(map(shown, row.values))}."
                )
            split = split_name(row.text("split"), row.where)
            entries.append((row.text(column), split, row.where))
    check_unique([(clip_id, where) for clip_id, _, where in entries], "id")
    return {clip_id: split for clip_id, split, _ in entries}


def split_name(value: str, where: str) -> str:
    """The split that an annotation means ("valid" is "val").

    Raises:
        ValueError: If the name is unknown.
    """
    split = SPLIT_NAMES.get(value.casefold())
    if split is None:
        raise ValueError(
            f"{where}: split {shown(value)} is unknown; allowed are {', '.join(SPLIT_NAMES)}."
        )
    return split


def check_known(splits: Mapping[str, str], ids: Sequence[str], path: Path) -> None:
    """Refuses split lists with an id that the annotations do not have.

    Raises:
        ValueError: Naming the count and the first such id.
    """
    known = set(ids)
    unknown = [clip_id for clip_id in splits if clip_id not in known]
    if unknown:
        raise ValueError(
            f"data.split_file {path}: {len(unknown)} of {len(splits)} ids are not in the "
            f"annotations (first: {shown(unknown[0])}; an id there: {shown(next(iter(ids), ''))})."
        )


def _hash(seed: int, clip_id: str) -> bytes:
    # Ids from JSON can hold lone surrogates, which plain UTF-8 refuses.
    return hashlib.sha256(f"{seed}:{clip_id}".encode(errors="surrogatepass")).digest()


def _counted(labels: Counter[int | None], classes: Sequence[str]) -> str:
    return ", ".join(f"{labels[index]} {name}" for index, name in enumerate(classes))
