"""Annotation tables: CSV, TSV, JSON, JSON Lines and parquet files as rows that know their place.

Every reader of annotations goes through here, so that a wrong row is reported the same way
everywhere: file, line, column, value, what is allowed.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TableRow:
    """One row of a table.

    Attributes:
        where: The row's place for messages ("clips.csv, line 7").
        values: Column to value: text from CSV and TSV, any JSON value from the other formats.
        labelled: False for a video that is listed without any annotation, as published test videos
            of ActivityNet are.
    """

    where: str
    values: dict[str, Any]
    labelled: bool = True

    def text(self, column: str | None, default: str | None = None) -> str:
        """The column as text without blanks around it; numbers become text.

        Args:
            column: Name of the column; None is a column that the table does not have.
            default: What an absent or empty value gives; without it that is an error.

        Raises:
            ValueError: If the value is empty and has no default, or is neither text nor number.
        """
        value = None if column is None else self.values.get(column)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, str | int | float)
        ):
            raise ValueError(
                f"{self.where}: {column} is {shown(value)}; it must be one text or number."
            )
        text = "" if value is None else str(value).strip()
        if text:
            return text
        if default is None:
            raise ValueError(f"{self.where}: {column} is empty; every row needs one.")
        return default

    def seconds(self, column: str | None) -> float | None:
        """The column as a number of seconds, None where it is empty.

        Raises:
            ValueError: If the value is no finite number.
        """
        text = self.text(column, default="")
        if not text:
            return None
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"{self.where}: {column} is {shown(text)}; it must be a number of seconds."
            )
        return number


def shown(value: object) -> str:
    """A value as it stands in messages: quoted, control characters escaped, cut when long."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_table(
    path: Path, columns: Sequence[str] = (), unique: str | None = None, header: bool = True
) -> list[TableRow]:
    """Reads a table file; the suffix says which kind it is.

    `.csv`, `.txt` (comma, semicolon or tab, whichever the header holds most) and `.tsv`, both
    UTF-8 with or without byte order mark, any line ends; `.jsonl`; `.json` (a list of objects,
    JSON Lines under that name, or ActivityNet's object with a `database`, a row for each of its
    annotations); `.parquet` (needs pyarrow). Blank lines are skipped.

    Args:
        path: The file.
        columns: Columns that must be there.
        unique: Column in which no value may stand twice.
        header: Whether the first line of a CSV, TSV or text file names the columns. Without one
            they are "1", "2" and so on, parted by tab, comma or semicolon, or else by blanks.

    Raises:
        ValueError: If the file cannot be read or parsed, is empty, lacks a column, or has a value
            of `unique` twice; the message names file, line and value.
    """
    kind = path.suffix.lower()
    if not header and kind in (".parquet", ".json", ".jsonl"):
        raise ValueError(
            f"{path}: {kind} files name their columns; a column's place (1, 2, ...) is for .csv, "
            ".tsv and .txt without header."
        )
    if kind == ".parquet":
        rows = _parquet(path)
    elif kind in (".json", ".jsonl"):
        rows = _json(path)
    elif kind in (".csv", ".tsv", ".txt"):
        rows = _delimited(path, "\t" if kind == ".tsv" else None, header)
    else:
        raise ValueError(
            f"{path}: the suffix '{path.suffix}' is no table format; allowed are .csv, .tsv, "
            ".txt, .json, .jsonl and .parquet."
        )
    rows = list(rows)
    if not rows:
        raise ValueError(f"{path} holds no rows.")
    for row in rows:
        for column in columns:
            if column not in row.values:
                raise ValueError(
                    f"{row.where}: column '{column}' is missing; the columns there are "
                    f"{', '.join(map(shown, row.values)) or 'none'}."
                )
    if unique is not None:
        check_unique([(row.text(unique), row.where) for row in rows], unique)
    return rows


def check_unique(values: Sequence[tuple[str, str]], what: str) -> None:
    """Refuses a value that stands twice.

    Args:
        values: Pairs of a value and its place for the message.
        what: What the values are ("id").

    Raises:
        ValueError: If a value stands twice; names both places.
    """
    first: dict[str, str] = {}
    for value, where in values:
        if value in first:
            raise ValueError(
                f"{where}: {what} {shown(value)} stands twice (first: {first[value]}). "
                "Remove one of the two."
            )
        first[value] = where


def read_text(path: Path) -> str:
    """Reads a UTF-8 file, with or without byte order mark; line ends are kept as they are.

    Raises:
        ValueError: If the file does not exist, cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(
            f"File {path} does not exist. Put it there (experiments/README.md says what goes "
            "where), or set its path in the data settings."
        ) from error
    except OSError as error:
        raise ValueError(f"File {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"File {path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}). "
            "Save it as UTF-8."
        ) from error


def parse_json(text: str, where: str) -> Any:
    """Parses JSON.

    Raises:
        ValueError: If the text is no JSON, or nests too deeply to be an annotation.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no valid JSON: {error}.") from error
    except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise ValueError(f"{where}: no valid JSON: {type(error).__name__}.") from error


def _delimited(path: Path, delimiter: str | None, has_header: bool) -> Iterator[TableRow]:
    text = read_text(path)
    if delimiter is None:
        head = text.strip().split("\n", 1)[0]
        delimiter = max(",;\t", key=head.count)
        if not has_header and delimiter not in head:
            yield from _blanks(path, text)
            return
    # Strict: a quote that is never closed must not swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            where = f"{path}, line {line}"
            line = reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = cells if has_header else _places(cells)
                if len(set(header)) < len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    raise ValueError(f"{where}: column {shown(twice)} stands twice in the header.")
                if has_header:
                    continue
            if len(cells) != len(header):
                first = "header" if has_header else "first line"
                raise ValueError(
                    f"{where}: {len(cells)} cells, but the {first} has {len(header)} columns. "
                    "Quote cells that hold the delimiter or a line break."
                )
            yield TableRow(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: cannot be parsed: {error}.") from error


def _blanks(path: Path, text: str) -> Iterator[TableRow]:
    """Rows of a list whose columns are parted by blanks."""
    columns = 0
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        columns = columns or len(cells)
        if len(cells) != columns:
            raise ValueError(
                f"{path}, line {number}: {len(cells)} cells parted by blanks, but the first line "
                f"has {columns}. Part them by tabs or commas where a cell holds a blank."
            )
        yield TableRow(f"{path}, line {number}", dict(zip(_places(cells), cells, strict=True)))


def _places(cells: Sequence[str]) -> list[str]:
    return [str(place) for place in range(1, len(cells) + 1)]


def _json(path: Path) -> Iterator[TableRow]:
    text = read_text(path)
    database = _database(path, text)
    if database is not None:
        yield from _activitynet(path, database)
        return
    if text.lstrip().startswith("["):
        items = [
            (f"{path}, item {number}", item)
            for number, item in enumerate(parse_json(text, str(path)), start=1)
        ]
    else:
        items = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                where = f"{path}, line {number}"
                items.append((where, parse_json(line, where)))
    for where, item in items:
        if not isinstance(item, dict):
            raise ValueError(f"{where}: must be a JSON object; got {shown(item)}.")
        yield TableRow(where, item)


def _database(path: Path, text: str) -> Any:
    """The `database` of ActivityNet's JSON, None where the file is another one."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        first = parse_json(text.lstrip().split("\n", 1)[0], str(path))
    except ValueError:
        first = None  # JSON Lines with a wrong line, or an object over several lines
    if first is None:
        try:
            first = parse_json(text, str(path))
        except ValueError:
            return None
        if "database" not in first:
            raise ValueError(
                f"{path}: one JSON object is no table. Allowed are a list of objects, one object a "
                "line, and ActivityNet's form, an object with the key 'database'."
            )
    return first.get("database") if isinstance(first, dict) else None


def _activitynet(path: Path, database: Any) -> Iterator[TableRow]:
    """A row for each annotation, and one that is not labelled for a video without any."""
    if not isinstance(database, dict):
        raise ValueError(f"{path}: database must be a JSON object of ids; got {shown(database)}.")
    for name, video in database.items():
        where = f"{path}, {shown(name)}"
        annotations = video.get("annotations", []) if isinstance(video, dict) else None
        if not isinstance(annotations, list):
            raise ValueError(
                f"{where}: must be an object with subset and annotations; got {shown(video)}."
            )
        for number, annotation in enumerate(annotations or [{"label": None}], start=1):
            place = f"{where}, annotation {number}"
            if not isinstance(annotation, dict) or "label" not in annotation:
                raise ValueError(
                    f"{place}: must be an object with label and segment; got {shown(annotation)}."
                )
            segment = annotation.get("segment", [None, None])
            if not isinstance(segment, list) or len(segment) != 2:
                raise ValueError(
                    f"{place}: segment is {shown(segment)}; it must be start and end in seconds."
                )
            known = {key: video.get(key) for key in ("url", "duration")}
            values = {"id": name, "split": video.get("subset"), "label": annotation["label"]}
            values |= {"start": segment[0], "end": segment[1], **known}
            yield TableRow(place, values, labelled=bool(annotations))


def _parquet(path: Path) -> Iterator[TableRow]:
    try:
        # Optional: only users of parquet files need it.
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{path}: reading parquet needs pyarrow, which is not installed. "
            "Run: pip install pyarrow, or convert the table to CSV."
        ) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    # pyarrow's errors (ArrowInvalid, ArrowIOError, ...) derive from these.
    except (OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"File {path} cannot be read as parquet: {error}.") from error
    for number, row in enumerate(rows, start=1):
        yield TableRow(f"{path}, row {number}", row)
