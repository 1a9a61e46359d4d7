"""Annotators' votes in a table: a column for each class or each annotator, or all in one cell."""

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbft.annotations.columns import VOTES
from rbft.annotations.labels import match_label
from rbft.annotations.tables import TableRow, shown
from rbft.card import Card

NAME = "{label}"  # in the name of a column, stands for each class
WHERE = f"data.columns.{VOTES}"
FORMS = (
    "a column of counts for each class ({calm: n_calm, alarm: n_alarm}, or n_{label} for all of "
    "them), a list of the annotators' columns, or one column whose cells hold an object of counts "
    "or a list of labels"
)

Place = int | str


@dataclass(frozen=True)
class VoteColumns:
    """The setting `data.columns.votes`.

    Attributes:
        given: A column's name or place (from 1) for each class; a list of those of the annotators,
            each with a label in it; a name with `{label}` in it, for each class's column of counts;
            or the one column whose cells hold all votes.
        card: The card with the classes.
    """

    given: Place | Sequence[Place] | Mapping[str, Place]
    card: Card

    def __post_init__(self) -> None:
        if not self._places or any(
            not str(place).strip() or (isinstance(place, int) and place < 1)
            for place in self._places
        ):
            raise ValueError(f"{WHERE} is {shown(self.given)}; it must be {FORMS}.")
        if isinstance(self.given, Mapping):
            named = {match_label(name, self.card, WHERE) for name in self.given}
            lacking = [c for index, c in enumerate(self.card.classes) if index not in named]
            if lacking or len(named) < len(self.given):
                what = f"has no column for {', '.join(lacking)}" if lacking else "has a class twice"
                raise ValueError(
                    f"{WHERE} {what}; the classes are {', '.join(self.card.classes)}. Name a "
                    "column of counts for each of them, once."
                )

    @property
    def _places(self) -> list[Place]:
        if isinstance(self.given, Mapping):
            return [*self.given.values()]
        return [self.given] if isinstance(self.given, int | str) else [*self.given]

    @property
    def has_places(self) -> bool:
        """Whether columns are given by their place, so that the table has no header."""
        return any(isinstance(place, int) for place in self._places)

    def read(self, row: TableRow) -> tuple[float, ...] | None:
        """The votes for each class, in the card's order; None where there are none.

        Raises:
            ValueError: If a column is missing, a count is no number of 0 or more, or a label is no
                class of the card.
        """
        counts = [0.0] * len(self.card.classes)
        for label, count in self._found(row):
            counts[label] += count
        return tuple(counts) if any(counts) else None

    def _found(self, row: TableRow) -> list[tuple[int, float]]:
        """Classes, and votes for them."""
        if isinstance(self.given, Mapping):
            of_class = [(match_label(name, self.card, WHERE), c) for name, c in self.given.items()]
            return [(label, _count(_cell(row, c), row.where, str(c))) for label, c in of_class]
        if not isinstance(self.given, int | str):
            cells = [(_cell(row, place), f"{row.where}, {place}") for place in self.given]
            labels = [(cell, where) for cell, where in cells if not _is_empty(cell)]
            return [(match_label(cell, self.card, where), 1.0) for cell, where in labels]
        if NAME in str(self.given):
            names = [self._named(row, index) for index in range(len(self.card.classes))]
            return [(n, _count(_cell(row, c), row.where, c)) for n, c in enumerate(names)]
        return self._in_cell(_cell(row, self.given), f"{row.where}, {self.given}")

    def _named(self, row: TableRow, index: int) -> str:
        """The column of counts of a class: named by the class or, failing that, by its word."""
        both = (self.card.classes[index], [*self.card.words.values()][index])
        names = [str(self.given).replace(NAME, name) for name in both]
        return next((name for name in names if name in row.values), names[0])

    def _in_cell(self, cell: Any, where: str) -> list[tuple[int, float]]:
        if _is_empty(cell):
            return []
        votes = _parsed(cell) if isinstance(cell, str) else cell
        if isinstance(votes, Mapping):
            return [
                (match_label(name, self.card, where), _count(count, where, str(name)))
                for name, count in votes.items()
            ]
        if isinstance(votes, Sequence) and not isinstance(votes, str):
            return [(match_label(name, self.card, where), 1.0) for name in votes]
        raise ValueError(
            f"{where} is {shown(cell)}; it must hold the votes as an object of counts, such as "
            f'{{"{self.card.classes[0]}": 2}}, or as a list of labels, such as '
            f'["{self.card.classes[0]}"].'
        )


def leading(votes: Sequence[float]) -> list[int]:
    """The classes that have the most votes, in the card's order; several where they are tied."""
    return [label for label, count in enumerate(votes) if count == max(votes)]


def _cell(row: TableRow, place: Place) -> Any:
    if str(place) not in row.values:
        raise ValueError(
            f"{row.where}: column '{place}' ({WHERE}) is missing; the columns there are "
            f"{', '.join(map(shown, row.values)) or 'none'}."
        )
    return row.values[str(place)]


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _count(cell: Any, where: str, what: str) -> float:
    """A number of votes; an empty cell is none."""
    if _is_empty(cell):
        return 0.0
    number = math.nan
    if isinstance(cell, str | int | float) and not isinstance(cell, bool):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(
            f"{where}: {what} is {shown(cell)}; a number of votes must be 0 or more, or empty."
        )
    return number


def _parsed(text: str) -> Any:
    """What a cell holds, as JSON or as Python writes it; the text itself where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
