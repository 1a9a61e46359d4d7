"""What the columns of a user's table are to a clip: by name, by place or by a pattern."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from string import Formatter

from rbft.annotations.tables import TableRow, shown

# Role of a column to the names that are understood without `columns`.
COLUMN_NAMES = {
    "id": ("id", "video_id", "Title"),
    "path": ("path", "file_name", "video", "video_path", "video_file_name"),
    "label": ("label", "class", "ground_truth", "labels"),
    "split": ("split",),
    "start": ("start",),
    "end": ("end",),
    "text": ("text",),
    "reference": ("reference",),
    "url": ("url",),
    "times": ("times",),
    "fps": ("fps",),
}
LABEL, TABLE = "label", "table"  # what patterns may name besides columns
VOTES = "votes"  # a role with columns of its own, see `rbft.annotations.votes`


@dataclass(frozen=True)
class Columns:
    """The setting `data.columns`.

    Attributes:
        given: Role to a column's name, its place (from 1, in a table without header), or a pattern
            of them in braces, each with a number format if you like:
            `{youtube_id}_{time_start:06d}.mp4`. `{label}` is the row's label and `{table}` the
            name of the table's file without its ending.
    """

    given: Mapping[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role, value in self.given.items():
            if role not in COLUMN_NAMES:
                raise ValueError(
                    f"data.columns has the key '{role}'; allowed are {', '.join(COLUMN_NAMES)}, "
                    f"{VOTES}."
                )
            if isinstance(value, int) and value < 1:
                raise ValueError(f"data.columns.{role} is {value}; columns count from 1.")
            if isinstance(value, str):
                self._check_pattern(role, value)
        if self.has_places:
            for role, value in self.given.items():
                named = value if isinstance(value, str) and not _is_pattern(value) else None
                if named is not None:
                    raise ValueError(
                        f"data.columns.{role} is {shown(named)}, a name, but other columns are "
                        "given by their place: a table has a header, or it has none."
                    )

    @property
    def has_places(self) -> bool:
        """Whether columns are given by their place, so that the table has no header."""
        return any(
            isinstance(value, int) or any(name.isdigit() for name in _fields(value))
            for value in self.given.values()
        )

    @property
    def needed(self) -> list[str]:
        """The columns that the table must have."""
        names: list[str] = []
        for role, value in self.given.items():
            if isinstance(value, str) and _is_pattern(value):
                own = {TABLE} if role == LABEL else {TABLE, LABEL}
                names += [name for name in _fields(value) if name not in own]
            else:
                names.append(str(value))
        return names

    def of(self, present: Collection[str]) -> dict[str, str | None]:
        """Column or pattern of each role in a table with such columns; None where it has none."""
        return {
            role: str(self.given[role])
            if role in self.given
            else next((name for name in names if name in present), None)
            for role, names in COLUMN_NAMES.items()
        }

    def _check_pattern(self, role: str, pattern: str) -> None:
        try:
            parts = list(Formatter().parse(pattern))
            for _, name, form, conversion in parts:
                if name is not None and (not name or conversion or "{" in (form or "")):
                    raise ValueError("write a column's name in the braces, and a number format")
                if form:
                    format(0 if form[-1] in "dxX" else 0.0, form)
        except ValueError as error:
            raise ValueError(
                f"data.columns.{role} {shown(pattern)} cannot be parsed: {error}. An example: "
                "'{youtube_id}_{time_start:06d}.mp4'."
            ) from error


def fill(row: TableRow, column: str, extra: Mapping[str, str], default: str | None = None) -> str:
    """The text of a column, or of a pattern filled in.

    Args:
        row: The row.
        column: A column's name or a pattern, see `Columns`.
        extra: What patterns may name besides columns.
        default: See `Row.text`; a pattern needs all its columns.

    Raises:
        ValueError: If a needed value is empty, or is no number where the pattern formats one.
    """
    if not _is_pattern(column):
        return row.text(column, default=default)
    text = ""
    for literal, name, form, _ in Formatter().parse(column):
        text += literal
        if name is not None:
            value = extra[name] if name in extra else row.text(name)
            text += _formatted(value, form, f"{row.where}: {name}", column) if form else value
    return text


def _is_pattern(value: str) -> bool:
    return "{" in value or "}" in value


def _fields(value: str | int) -> list[str]:
    if isinstance(value, int) or not _is_pattern(value):
        return []
    return [name for _, name, _, _ in Formatter().parse(value) if name is not None]


def _formatted(value: str, form: str, what: str, pattern: str) -> str:
    whole = form[-1] in "dxX"
    try:
        if whole and re.fullmatch(r"-?\d+(\.0*)?", value):
            return format(int(float(value)), form)
        if not whole:
            return format(float(value), form)
    except (ValueError, OverflowError):
        pass
    kind = "whole number" if whole else "number"
    raise ValueError(
        f"{what} is {shown(value)}; data.columns writes it as '{form}' in {shown(pattern)}, so it "
        f"must be a {kind}."
    )
