"""The paper's tables, and which of our runs are the same row."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rbft.report.conditions import Conditions
from rbft.report.gather import Gathered, GatheredRun
from rbft.report.groups import Group
from rbft.report.masking import find_masked
from rbft.report.results import Result
from rbft.report.scores import of_seeds
from rbft.report.tables import NONE, Cell, Row, Section, Table, cells, metric_title, percent
from rbft.runs.folder import ZERO_SHOT
from rbft.runtime.differences import flat

FILE = Path(__file__).with_name("paper.yaml")
DEFAULTS = Path(__file__).parents[1] / "defaults.yaml"
DATE = r"(-\d{4}-\d\d-\d\d)?"  # of a server's snapshot
SHOWN = 2  # runs that a row names


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper, or one beside them that rbft adds.

    Attributes:
        backbone: As the paper calls it.
        method: What the row is about: a method, a composition, a ratio, a prompt.
        experiment: Stem of its experiment file; None where it cannot be run here.
        scores: In per cent, one for each of the table's metrics; None where the paper has none.
        frames: How the frames are masked, in words; empty where the table has no such column.
        settings: What a run must be set to, by dotted name; None where no run can be it.
        server: Pattern of the name of the model that a server answers with; empty for backbones.
        masking: Kind of mask; None for whole frames.
    """

    backbone: str
    method: str
    experiment: str | None
    scores: tuple[float, ...] | None
    frames: str = ""
    settings: Mapping[str, Any] | None = None
    server: str = ""
    masking: str | None = None

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Whether a run with these settings, by dotted name, is this row."""
        return self.settings is not None and all(
            settings.get(name) == value for name, value in self.settings.items()
        )


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: In the paper.
        title: What it is about.
        benchmark: Name of the benchmark's class.
        what: Title of the column that tells rows of a backbone apart.
        metrics: `accuracy`, `f1/<class>`.
        rows: Its rows.
        notes: What to know of its figures.
    """

    number: int
    title: str
    benchmark: str
    what: str
    metrics: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...]


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """The paper's tables, from `paper.yaml`."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(_table(one, content) for one in content["tables"])


def _table(one: Mapping[str, Any], content: Mapping[str, Any]) -> PaperTable:
    rows = []
    for backbone, method, experiment, scores, *frames in one["rows"]:
        settings = content["methods"].get(method)
        name, server = content["backbones"].get(backbone), content["servers"].get(backbone)
        if settings is not None:
            settings = {**settings, "model.backbone": name} if name else None
        rows.append(
            PaperRow(
                backbone,
                method,
                experiment,
                None if scores is None else tuple(scores),
                frames[0] if frames else "",
                settings,
                f"{re.escape(server)}{DATE}" if server else "",
                one["inputs"][frames[0]] if frames else None,
            )
        )
    metrics, notes = tuple(one["columns"]), tuple(one.get("notes", ()))
    names = (one["title"], one["benchmark"], one["what"])
    return PaperTable(one["number"], *names, metrics, tuple(rows), notes)


def paper_section(gathered: Gathered, groups: Sequence[Group], conditions: Conditions) -> Section:
    """The paper's tables with ours in the rows below its own."""
    tables = []
    for one in paper_tables():
        rows, ours, masks = [], [], any(row.frames for row in one.rows)
        departing: dict[str, list[str]] = {}
        for row in one.rows:
            rows.append(_paper_row(row, one, masks))
            for title, names, results in _ours(row, one, gathered, groups, conditions):
                rows.append(_our_row(row, one, masks, title, names, results, conditions))
                ours += results
                departing[title] = _departures(gathered.run(names[0]), row)
        columns = (
            "backbone",
            one.what,
            *(["frames"] if masks else []),
            "from",
            *map(metric_title, one.metrics),
            "n",
            "coverage %",
            "clips",
        )
        notes = [f"clips {line}" for line in conditions.legend(ours)] if ours else []
        notes += [
            f"{title} departs from the paper's settings: {', '.join(found)}."
            for title, found in departing.items()
            if found
        ]
        title = f"Table {one.number}: {one.title}"
        notes += one.notes
        table = Table(title, columns, tuple(rows), tuple(notes), sortable=False, folded=not ours)
        tables.append(table)
    tables.sort(key=lambda one: one.folded)  # those with rows of ours first
    about = (
        "In per cent: the paper's figures, which have no intervals, and below each row the runs "
        "whose settings make them that row, with the 95 % interval in brackets (over seeds: mean ± "
        "standard deviation and the t interval of the mean)."
    )
    return Section("paper", "The paper's tables", tuple(tables), about)


def _paper_row(row: PaperRow, table: PaperTable, masks: bool) -> Row:
    scores = row.scores or (None,) * len(table.metrics)
    shown = (Cell(NONE) if one is None else Cell(f"{one:.2f}", one / 100) for one in scores)
    where = "paper" if row.scores is not None else "not in the paper"
    if row.experiment is None and row.scores is not None and row.method.startswith("always"):
        where = "inferred"
    names = cells(row.backbone or NONE, row.method, *([row.frames] if masks else []), where)
    return Row((*names, *shown, *cells(NONE, NONE, NONE)), (), "paper")


def _our_row(
    row: PaperRow,
    table: PaperTable,
    masks: bool,
    title: str,
    names: tuple[str, ...],
    results: Sequence[Result],
    conditions: Conditions,
) -> Row:
    said = cells(row.backbone, row.method, *([row.frames] if masks else []), f"ours: {title}")
    shown = [
        of_seeds(results, metric) if metric in results[0].metrics else Cell(NONE)
        for metric in table.metrics
    ]
    letters = ", ".join(one.letter for one in conditions.used(results))
    covered = percent(sum(one.coverage for one in results) / len(results))
    return Row((*said, *shown, *cells(results[0].n), covered, Cell(letters)), names, "ours")


Ours = tuple[str, tuple[str, ...], tuple[Result, ...]]


def _ours(
    row: PaperRow,
    table: PaperTable,
    gathered: Gathered,
    groups: Sequence[Group],
    conditions: Conditions,
) -> list[Ours]:
    """Title, runs and results of ours that are a row of the paper."""
    if row.server:
        return _of_server(row, table, gathered)
    if row.settings is None:
        return []
    of_benchmark = [run for run in gathered.runs if run.benchmark == table.benchmark]
    if row.masking is not None:
        names = {run.name for run in of_benchmark if run.settings and row.fits(run.settings)}
        return [
            (one.run, (one.run,), tests)
            for one in find_masked(gathered, conditions)
            if one.run in names
            if (tests := tuple(r for r in one.kinds.get(row.masking, ()) if r.split == "test"))
        ]
    if row.settings["stages"] == []:
        return _zero_shot(row, of_benchmark, conditions)
    return [
        (group.title, group.names, group.finals)
        for group in groups
        if group.runs[0].benchmark == table.benchmark
        and group.runs[0].settings is not None
        and row.fits(group.runs[0].settings)
    ]


def _zero_shot(row: PaperRow, runs: Sequence[GatheredRun], conditions: Conditions) -> list[Ours]:
    """The bare backbone's results, which runs of other methods leave too; alike ones once."""
    found: dict[str, list[Result]] = {}
    for run in runs:
        if run.backbone != (row.settings or {}).get("model.backbone"):
            continue
        for one in run.results:
            own = one.place == ZERO_SHOT and one.file.stem == "test" and one.masking is None
            if own:
                key = f"{conditions.of(one).letter} {one.confusion.tolist()}"
                found.setdefault(key, []).append(one)
    return [
        (_some([one.run for one in same]), tuple(one.run for one in same), (same[0],))
        for same in found.values()
    ]


def _of_server(row: PaperRow, table: PaperTable, gathered: Gathered) -> list[Ours]:
    """Results that a server's model gave; runs without settings are known by their clips."""
    known = {
        _clips(one)
        for run in gathered.runs
        if run.benchmark == table.benchmark
        for one in run.results
    }
    found = []
    for run in gathered.runs:
        for one in run.results:
            model = ((one.content.get("made") or {}).get("endpoint") or {}).get("model", "")
            if not re.fullmatch(row.server, str(model)) or one.split != "test" or one.masking:
                continue
            named = run.name == row.experiment or run.name.startswith(f"{row.experiment}_")
            if run.benchmark == table.benchmark or _clips(one) in known or named:
                found.append((f"{run.name} ({model})", (run.name,), (one,)))
    return found


def _clips(result: Result) -> Any:
    return (result.content.get("made") or {}).get("clips", result.content.get("ids"))


def _departures(run: GatheredRun, row: PaperRow) -> list[str]:
    """Settings of a run that are not the paper's, nor those that make the row."""
    if run.settings is None or row.server:
        return []
    paper = flat(yaml.safe_load(DEFAULTS.read_text(encoding="utf-8")))
    settings = {**paper, "model.lora": None, "model.quantize": None, **(row.settings or {})}
    skipped = {"model.max_new_tokens", "trainer.num_sanity_val_steps", "trainer.log_every_n_steps"}
    skipped |= {"model.gradient_checkpointing", "trainer.use_distributed_sampler", "stages"}
    return [
        f"{name.replace('.init_args', '')} {_short(run.setting(name))} instead of {_short(value)}"
        for name, value in settings.items()
        if name not in skipped and run.setting(name) != value and name in run.settings
    ] + ([f"model.lora.{_lora(run)}"] if _lora(run) else [])


def _lora(run: GatheredRun) -> str:
    """Rank of the adapters; empty where the weights were trained whole."""
    rank = run.setting("model.lora.rank")
    return f"rank {rank}" if rank else ""


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
