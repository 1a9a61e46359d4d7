"""Runs that differ in nothing but seeds: one row, with mean and spread."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbft.report.conditions import Conditions
from rbft.report.gather import GatheredRun
from rbft.report.results import Result
from rbft.runs.record import EARLIER, FREE_SETTINGS

SEED = ("seed", "seed_everything")  # last parts of settings that are seeds; clip_seed is none


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but seeds, scored in one way.

    Attributes:
        title: What tables call it: the runs' name without its seed.
        runs: Its runs in order.
        finals: Final results of each.
    """

    title: str
    runs: tuple[GatheredRun, ...]
    finals: tuple[Result, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its runs."""
        return tuple(one.name for one in self.runs)

    @property
    def seeds(self) -> tuple[str, ...]:
        """The seeds of each run, as a text."""
        return tuple(seeds_of(one) for one in self.runs)


def group_runs(runs: Sequence[GatheredRun], conditions: Conditions) -> list[Group]:
    """The runs that have final results, those alike but for seeds together.

    Args:
        runs: All runs.
        conditions: The ways in which results were scored.
    """
    found: dict[str, list[tuple[GatheredRun, Result]]] = {}
    seen: list[tuple[str, str]] = []
    for run in runs:
        if run.final is None:
            continue
        same = json.dumps(_identity(run), sort_keys=True, default=str)
        key = f"{conditions.of(run.final).letter} {same}"
        # A second run with the same seed is no other seed.
        again = sum(key == one and seeds_of(run) == seed for one, seed in seen)
        seen.append((key, seeds_of(run)))
        found.setdefault(f"{again} {key}", []).append((run, run.final))
    groups = []
    for members in found.values():
        names = [run.name for run, _ in members]
        title = names[0] if len(names) == 1 else _common(names)
        of_runs, finals = zip(*members, strict=True)
        groups.append(Group(title, of_runs, finals))
    return groups


def seeds_of(run: GatheredRun) -> str:
    """The seeds of a run: one number where all are the same."""
    found = (value for name, value in (run.settings or {}).items() if _is_seed(name))
    values = [str(value) for value in found if value is not None]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def decides(name: str) -> bool:
    """Whether a setting decides what comes out of a run.

    Args:
        name: Of the setting, dotted.
    """
    return not any(name == free or name.startswith(f"{free}.") for free in FREE_SETTINGS)


def _identity(run: GatheredRun) -> Mapping[str, Any]:
    """All that decides what comes out of a run but seeds."""
    if run.settings is None:
        return {"run": run.name}
    settings = {**EARLIER, **run.settings}
    return {n: value for n, value in settings.items() if decides(n) and not _is_seed(n)}


def _is_seed(name: str) -> bool:
    return name.rpartition(".")[2] in SEED


def _common(names: Sequence[str]) -> str:
    """What names have in common, without the end that tells the seed."""
    stems = {re.sub(r"[-_. ]?(seed)?[-_. ]?\d+$", "", name) for name in names}
    return stems.pop() if len(stems) == 1 and "" not in stems else f"{names[0]} and its seeds"
