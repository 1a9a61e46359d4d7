"""What `attention` has left: strips of pictures, and scores of where the models look."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.report.gather import Gathered
from rbft.report.tables import NONE, Cell, Row, Section, Table, cells


@dataclass(frozen=True)
class Strip:
    """A strip of pictures of where a run looks in a clip.

    Attributes:
        run: Name of the run.
        file: The picture.
        scores: Of this clip, by name.
    """

    run: str
    file: Path
    scores: Mapping[str, float]


@dataclass(frozen=True)
class AttendedClip:
    """A clip with the strips of each run.

    Attributes:
        id: The clip's.
        label: Its class; empty where it is not noted.
        strips: One a run.
    """

    id: str
    label: str
    strips: tuple[Strip, ...]


def attention_section(gathered: Gathered) -> Section:
    """Scores of the attention maps, as `attention` has computed them."""
    tables = []
    for file, content in gathered.attention.items():
        noted = _mapping(content)
        found = _mapping(noted.get("scores"))
        names = list(dict.fromkeys(name for one in found.values() for name in _mapping(one)))
        rows = []
        for run, scores in found.items():
            shown = tuple(_figure(_mapping(scores).get(name)) for name in names)
            rows.append(Row((*cells(_name(run)), *shown), _runs(gathered, noted, run), "ours"))
        if not rows:
            continue
        where = file.parent.name
        notes = [str(one) for one in (noted.get("map"), *_list(noted.get("notes"))) if one]
        meaning = _mapping(noted.get("meaning"))
        notes += [f"{name}: {meaning[name]}" for name in names if name in meaning]
        title = f"Attention scores ({where})"
        tables.append(Table(title, ("run", *names), tuple(rows), tuple(notes)))
        apart = [
            _difference(gathered, noted, _mapping(one)) for one in _list(noted.get("differences"))
        ]
        shown = list(dict.fromkeys(name for _, _, found in apart for name in found))
        lines = tuple(
            Row((*cells(*pair), *(_figure(found.get(name), "+") for name in shown)), runs, "ours")
            for pair, runs, found in apart
            if found
        )
        if lines:
            note = "A - B, paired by clip, with the 95 % interval."
            title = f"Differences in attention ({where})"
            tables.append(Table(title, ("A", "B", *shown), lines, (note,)))
    about = "" if gathered.attention else "No attention maps. python -m rbft attention makes them."
    return Section("attention", "Attention", tuple(tables), about)


def attended_clips(gathered: Gathered) -> Iterator[AttendedClip]:
    """The clips that have strips, in the order of the files."""
    for file, content in gathered.attention.items():
        for one in _list(_mapping(content).get("clips")):
            clip = _mapping(one)
            strips = [
                Strip(
                    _name(run),
                    file.parent / str(name),
                    _mapping(_mapping(clip.get("scores")).get(run)),
                )
                for run, name in _mapping(clip.get("strips")).items()
            ]
            if strips:
                label = clip.get("label")
                said = "" if label is None else str(label)
                yield AttendedClip(str(clip.get("id", NONE)), said, tuple(strips))


def _name(run: str) -> str:
    """A run's name, which may be noted as its folder."""
    return Path(run).name or run


def _runs(gathered: Gathered, content: Mapping[str, Any], run: str) -> tuple[str, ...]:
    """Runs that figures are about; those of a control are about the run that it is made of."""
    controls = _mapping(content.get("controls"))
    of = next((own for own, names in controls.items() if run in _list(names)), run)
    return tuple(one.name for one in gathered.runs if _name(of) in (one.name, one.folder.name))


def _difference(
    gathered: Gathered, content: Mapping[str, Any], one: Mapping[str, Any]
) -> tuple[tuple[str, str], tuple[str, ...], Mapping[str, Any]]:
    """Names of the two sides, of their runs, and the scores."""
    sides = (str(one.get("a", NONE)), str(one.get("b", NONE)))
    pair = (_name(sides[0]), _name(sides[1]))
    runs = tuple(dict.fromkeys(name for side in sides for name in _runs(gathered, content, side)))
    return pair, runs, _mapping(one.get("scores"))


def _figure(found: Any, sign: str = "") -> Cell:
    """A mean with its interval."""
    if isinstance(found, int | float):
        return Cell(f"{found:{sign}.3g}", float(found))
    one = _mapping(found)
    mean, ends = one.get("mean"), one.get("interval")
    if mean is None or not _number(mean):
        return Cell(NONE)
    if isinstance(ends, Mapping):
        ends = [ends.get("low"), ends.get("high")]
    text = f"{mean:{sign}.3g}"
    if isinstance(ends, list) and len(ends) == 2 and all(map(_number, ends)):
        text += f" [{ends[0]:{sign}.3g}, {ends[1]:{sign}.3g}]"
    text += f", n = {one['n']}" if "n" in one else ""
    return Cell(text, float(mean))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
