"""What runs have cost, what they were told, and in which settings they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from rbft.report.gather import Gathered, GatheredRun
from rbft.report.groups import decides
from rbft.report.tables import NONE, Cell, Row, Section, Table, cells, percent
from rbft.runs.folder import TOLD
from rbft.runs.usage import Spent

PHASES = ("rationales", "training", "scoring")
UNSHOWN = ("name", "config", "trainer.default_root_dir")  # differ in every run, and say nothing
LONGEST = 120  # letters of a setting


def cost_section(gathered: Gathered) -> Section:
    """Time, memory, steps and tokens of each run."""
    on_gpu = any(spent.gpu_seconds for run in gathered.runs for spent in run.spent.values())
    rows = [_cost_row(run, on_gpu) for run in gathered.runs]
    columns = (
        "run",
        *(f"{phase} min" for phase in PHASES),
        "GPU h" if on_gpu else "processor h",
        "memory GiB",
        *(["GPU memory GiB"] if on_gpu else []),
        "steps",
        "clips seen",
        "tokens written",
        "tokens read by servers",
    )
    notes = (
        "Minutes by the clock, added up over processes and starts; memory is the most that a "
        "process has held, GPU memory the most for tensors on one GPU. "
        "Steps and clips seen are of all "
        "stages. A dash is not noted, as by runs of earlier versions.",
    )
    tables = [Table("Time, memory and tokens", columns, tuple(rows), notes)]
    if written := _rationales(gathered):
        tables.append(written)
    return Section("cost", "Cost", tuple(tables))


def settings_section(gathered: Gathered) -> Section:
    """Settings in which runs differ, those that decide what comes out first."""
    runs = [run for run in gathered.runs if run.settings is not None]
    names = dict.fromkeys(name for run in runs for name in run.settings or {})
    differing = [
        name
        for name in names
        if name not in UNSHOWN and len({_shown(run, name) for run in runs}) > 1
    ]
    tables = []
    for title, wanted, folded in (
        ("Settings that differ and decide what comes out", True, False),
        ("Settings that differ in where and how fast it ran", False, True),
    ):
        found = [name for name in sorted(differing) if decides(name) == wanted]
        if found:
            tables.append(_settings_table(title, found, runs, folded))
    about = "" if tables else "The runs do not differ in any setting, or there is one alone."
    return Section("settings", "Settings", tuple(tables), about)


def _settings_table(
    title: str, names: Sequence[str], runs: Sequence[GatheredRun], folded: bool
) -> Table:
    rows = [
        Row(
            (Cell(run.name), *(Cell(_shown(run, name)) for name in names)),
            (run.name,),
        )
        for run in runs
    ]
    shown = (name.replace(".init_args", "") for name in names)
    return Table(title, ("run", *shown), tuple(rows), folded=folded)


def _shown(run: GatheredRun, name: str) -> str:
    if name not in (run.settings or {}):
        return NONE
    value = run.setting(name)
    text = ", ".join(map(str, value)) if isinstance(value, list) and value else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _cost_row(run: GatheredRun, on_gpu: bool) -> Row:
    total = sum(run.spent.values(), Spent())
    minutes = (
        _number(spent.seconds / 60) if (spent := run.spent.get(one)) else Cell(NONE)
        for one in PHASES
    )
    hours = (total.gpu_seconds if on_gpu else total.processor_seconds) / 3600
    memory = [_memory(total.memory_bytes), *([_memory(total.gpu_memory_bytes)] if on_gpu else [])]
    made = [run.steps[name].made for name in run.stages if name in run.steps]
    steps, seen = (_total(made, key) for key in ("steps", "clips_seen"))
    final = {} if run.final is None else run.final.content
    noted = final.get("tokens")
    asked: Mapping[str, Any] = noted if isinstance(noted, dict) else {}
    tokens = [(one or {}).get("rationale_tokens") for one in made]
    tokens += [final.get("tokens_written"), asked.get("completion")]
    written = [one for one in tokens if isinstance(one, int)]
    return Row(
        (
            Cell(run.name),
            *minutes,
            _number(hours) if run.spent else Cell(NONE),
            *memory,
            steps,
            seen,
            _count(sum(written)) if written else Cell(NONE),
            _count(asked["prompt"]) if isinstance(asked.get("prompt"), int) else Cell(NONE),
        ),
        (run.name,),
    )


def _total(made: Sequence[Mapping[str, Any] | None], key: str) -> Cell:
    """Sum over the stages; a dash where one has not noted it."""
    values = [None if one is None else one.get(key) for one in made]
    if not values or not all(isinstance(value, int) for value in values):
        return Cell(NONE)
    return _count(sum(value for value in values if value is not None))


def _rationales(gathered: Gathered) -> Table | None:
    """The rationale files beside the runs."""
    rows = []
    for file, lines in gathered.rationales.items():
        found = [one for one in lines if isinstance(one.get("rationale"), str) and "id" in one]
        if not found:
            continue
        tokens = [one["tokens"] for one in found if isinstance(one.get("tokens"), int)]
        cut = sum(one.get("finish") == "length" for one in found)
        told = sum(bool(one.get(TOLD)) for one in found)
        writers = {str(one.get("model") or one.get("source") or NONE) for one in found}
        mean = Cell(NONE) if not tokens else _number(sum(tokens) / len(tokens))
        clips = len({one["id"] for one in found})
        line = cells(file.stem, ", ".join(sorted(writers)), clips, len(found))
        rows.append(Row((*line, mean, percent(cut / len(found)), *cells(told))))
    if not rows:
        return None
    columns = (
        "file",
        "writer",
        "clips",
        "rationales",
        "tokens, mean",
        "cut off %",
        "writer was told the class",
    )
    note = "python -m rbft rationales makes a page to read them on. Runs share these files."
    return Table("Rationales", columns, tuple(rows), (note,))


def _memory(size: float) -> Cell:
    return _number(size / 2**30) if size else Cell(NONE)


def _number(value: float) -> Cell:
    text = f"{value:.2g}" if value < 1 else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return Cell(text, value)


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", float(value))
