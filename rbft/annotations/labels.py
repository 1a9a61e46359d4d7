"""From the labels that annotations use to the card's classes."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rbft.annotations.tables import parse_json, read_text, shown
from rbft.card import Card


def match_label(value: object, card: Card, where: str) -> int:
    """The class that a label means: its name or, failing that, its word on the card or its value.

    A value is a number that the card gives a class (`values`), in any spelling: 5, "5", 5.0. A
    label with placeholders, `Holding [something]` (Something-Something), means the class without
    the brackets.

    Args:
        value: The label as it stands in the annotation.
        card: The card with the classes.
        where: The label's place for the message.

    Returns:
        Index into `card.classes`.

    Raises:
        ValueError: If no class is meant, or several.
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value).strip()
        if text in card.classes:
            return card.classes.index(text)
        plain = re.sub(r"\[(\w[^\[\]]*)\]", r"\1", text)
        if plain in card.classes:
            return card.classes.index(plain)
        index = card.parse(plain)
        if index is None:
            index = _level(text, card)
        if index is not None:
            return index
        several = any(
            mark in text and all(part.strip() in card.classes for part in text.split(mark))
            for mark in ",;|/+-"
        )
    else:
        several = isinstance(value, list | tuple | set)
    if several:
        raise ValueError(
            f"{where}: label {shown(value)} is a list of classes, but with card '{card.name}' a "
            "clip has one. Give it one class of the card, leave the clip out, or let clips have "
            "several by the card's key several (docs/own_clips.md)."
        )
    allowed = ", ".join(
        (name if name == word else f"{name} ('{word}')")
        + (f" = {card.values[name]:g}" if card.values is not None else "")
        for name, word in card.words.items()
    )
    raise ValueError(
        f"{where}: label {shown(value)} is no class of card '{card.name}'; allowed are {allowed}. "
        "Correct the label or add the class to the card's words."
    )


def _level(text: str, card: Card) -> int | None:
    """The class whose value a text is."""
    try:
        return card.levels.index(float(text))
    except ValueError:
        return None


def match_labels(
    value: object,
    card: Card,
    where: str,
    named: Callable[[object], object] | None = None,
) -> tuple[int, ...]:
    """All classes that a label means, where the card lets a clip have several, or none.

    Args:
        value: A list of labels as `match_label` takes them, or one text that names them, parted by
            commas, semicolons or vertical lines. An empty list or text is a clip with none of the
            classes.
        card: The card with the classes.
        where: The label's place for the message.
        named: Gives the name behind a label that is a number, see `name_class`; None where labels
            are names.

    Returns:
        Indices into `card.classes`, in order.

    Raises:
        ValueError: If there is no label at all, or one that is no class.
    """
    if value is None:
        raise ValueError(
            f"{where}: there is no label. Write an empty list for a clip with none of the classes, "
            "or leave the clip out."
        )
    parts: list[object] = [value]
    if isinstance(value, list | tuple | set):
        parts = list(value)
    elif isinstance(value, str) and value.strip() not in (*card.classes, *card.words.values()):
        parts = [part.strip() for part in re.split(r"[,;|]", value) if part.strip()]
    names = parts if named is None else [named(part) for part in parts]
    return tuple(sorted({match_label(name, card, where) for name in names}))


def read_class_list(path: Path) -> dict[str, str]:
    """Reads which class a number means.

    Lines of a number and a name, or of a name and a number, in either order throughout (UCF101's
    classInd.txt, Kinetics' `id,name`); lines of a name alone, counted from 0 (mmaction); a JSON
    object of names and numbers, either way round (Something-Something), or a list of names,
    counted from 0.

    Args:
        path: The file.

    Returns:
        Name of the class by number as text.

    Raises:
        ValueError: If the file cannot be read or a number stands twice.
    """
    text = read_text(path)
    if path.suffix.lower() == ".json":
        pairs = _json_pairs(parse_json(text, str(path)), path)
    else:
        pairs = _line_pairs([line.strip() for line in text.splitlines() if line.strip()])
    if not pairs:
        raise ValueError(f"data.class_list {path} names no class.")
    names: dict[str, str] = {}
    for number, name in pairs:
        if number in names:
            raise ValueError(
                f"data.class_list {path}: number {number} stands for {shown(names[number])} and "
                f"for {shown(name)}. Keep one of them."
            )
        names[number] = name
    return names


def name_class(value: object, names: Mapping[str, str], path: Path, where: str) -> object:
    """The name behind a label that is a number of a class list; names pass.

    Args:
        value: The label as it stands in the annotation.
        names: See `read_class_list`.
        path: The class list, for the message.
        where: The label's place for the message.

    Raises:
        ValueError: If the list has neither such a number nor such a name.
    """
    text = str(value).strip()
    number = _number(text)
    if number in names:
        return names[number]
    if text in names.values() or re.sub(r"[\[\]]", "", text) in names.values():
        return text
    first, last = min(names, key=int), max(names, key=int)
    raise ValueError(
        f"{where}: label {shown(value)} is not in data.class_list {path}, which has {len(names)} "
        f"classes, from {first} ({shown(names[first])}) to {last} ({shown(names[last])})."
    )


def _number(text: str) -> str:
    """A whole number without leading zeros; empty where it is none."""
    return str(int(text)) if re.fullmatch(r"[0-9]{1,9}", text) else ""


def _json_pairs(content: Any, path: Path) -> list[tuple[str, str]]:
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(str(number), name) for number, name in enumerate(content)]
    if isinstance(content, dict):
        for pairs in (content.items(), [(value, key) for key, value in content.items()]):
            found = [(_number(str(number)), name) for number, name in pairs]
            if all(number and isinstance(name, str) for number, name in found):
                return [(number, str(name)) for number, name in found]
    raise ValueError(
        f"data.class_list {path} must be a list of names, or an object of names and numbers; got "
        f"{shown(content)}."
    )


def _line_pairs(lines: list[str]) -> list[tuple[str, str]]:
    for number_first in (True, False):
        parted = [_parted(line, number_first) for line in lines]
        # A table may have a header, which has no number.
        body = parted[1:] if len(parted) > 1 and not parted[0][0] else parted
        if all(number and name for number, name in body):
            return body
    return [(str(number), name) for number, name in enumerate(lines)]


def _parted(line: str, number_first: bool) -> tuple[str, str]:
    cells = re.split(r"[\s,;]+", line, maxsplit=1) if number_first else _last_cell(line)
    number, name = (cells[0], cells[-1]) if number_first else (cells[-1], cells[0])
    return (_number(number), name.strip().strip('"')) if len(cells) == 2 else ("", "")


def _last_cell(line: str) -> list[str]:
    match = re.fullmatch(r"(.*\S)[\s,;]+(\S+)", line)
    return list(match.groups()) if match else [line]
