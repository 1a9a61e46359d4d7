"""`compare`: several experiments side by side over several seeds."""

import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.card import Card
from rbft.commands.compared_runs import (
    ComparedRow,
    SeedRun,
    check_others,
    check_rows,
    is_finished,
    read_others,
    read_run,
)
from rbft.commands.comparison_table import as_csv, as_dict, comparison_table, f1_table
from rbft.run_end import one_of_several
from rbft.runs.record import SETTINGS, digest
from rbft.runs.usage import Spent
from rbft.runtime.console import print_rank_zero
from rbft.runtime.experiment_file import read_chain
from rbft.runtime.experiments import find_experiment
from rbft.runtime.files import write_json, write_text
from rbft.runtime.lock import Lock
from rbft.runtime.ranges import check_ranges
from rbft.stage_settings import STAGE_SETTINGS
from rbft.stages import stage_names

VARIED = ("seed_everything", "data.seed")
COMPARISONS = "compare"  # folder within that of the runs
DIRECT = ["label"]  # the stages of Direct-SFT
# What an experiment's files are overruled by, so that they describe Direct-SFT.
DIRECT_SETTINGS = {
    "stages": "[label]",
    **{one.name: "null" if one.default is None else one.default for one in STAGE_SETTINGS},
}


@dataclass(frozen=True)
class Compared:
    """An experiment that is run once for each seed.

    Attributes:
        title: What the table calls it.
        files: Its experiment file, and overlays.
        name: Name of its runs, before the seed.
        options: Settings that win over the files'.
    """

    title: str
    files: Sequence[Path]
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def compare(
    configs: list[Path],
    seeds: int = 5,
    first_seed: int = 1,
    baseline: str | None = None,
    matched: bool = False,
    matched_seconds: bool = False,
    others: list[Path] | None = None,
    overlays: list[Path] | None = None,
    vary: list[str] | None = None,
    metric: str = "accuracy",
    logs: Path = Path("lightning_logs"),
) -> None:
    """Run what is missing of experiments over several seeds, and compare their scores.

    Each run is a `fit` under the experiment's name and its seed; it goes on where it was stopped.

    Args:
        configs: Experiment files or names of rbft's, "[a.yaml, b.yaml]".
        seeds: Number of seeds.
        first_seed: The first of them.
        baseline: Name of the experiment that the others are compared with; null takes the first.
        matched: Add Direct-SFT with as many optimiser steps as the experiment that takes the most.
        matched_seconds: Add Direct-SFT that trains for as many processor or GPU seconds as the
            experiment that takes the most, in whole epochs.
        others: Files with the answers of other systems about the same test clips, .jsonl or .csv:
            id, prediction and, where there are, probabilities.
        overlays: Experiment files that win over all configs, such as those of experiments/hardware.
        vary: Settings that take the number of the seed; null takes "[seed_everything, data.seed]".
        metric: accuracy, f1/macro or f1/<class>.
        logs: Folder of the runs.
    """
    check_ranges("", {"seeds": seeds, "first_seed": first_seed})
    found = [_experiment(file, overlays or []) for file in configs]
    if not found:
        raise ValueError('--configs names no experiment file. Give some: "[a.yaml, b.yaml]".')
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"Several of --configs have the name {', '.join(twice)}, and their runs would be the "
            "same. Give each a name of its own."
        )
    if baseline is not None and baseline not in names:
        raise ValueError(f"--baseline is '{baseline}'; allowed are {', '.join(names)}.")
    compare_experiments(
        found,
        range(first_seed, first_seed + seeds),
        baseline or names[0],
        logs,
        matched=matched,
        matched_seconds=matched_seconds,
        others=others or [],
        vary=VARIED if vary is None else vary,
        metric=metric,
    )


def compare_experiments(
    experiments: Sequence[Compared],
    seeds: Sequence[int],
    baseline: str,
    logs: Path,
    *,
    matched: bool = False,
    matched_seconds: bool = False,
    others: Sequence[Path] = (),
    vary: Sequence[str] = VARIED,
    metric: str = "accuracy",
) -> None:
    """Runs what is missing, prints the table and writes it to `<logs>/compare`.

    Args:
        experiments: What is compared.
        seeds: Numbers of the seeds.
        baseline: Name of one of the experiments.
        logs: Folder of the runs.
        matched: Add Direct-SFT with as many optimiser steps as the longest of them.
        matched_seconds: Add Direct-SFT that trains for as many seconds as the longest of them.
        others: Files with answers of other systems.
        vary: Settings that take the number of the seed.
        metric: That of the table.

    Raises:
        ValueError: If another comparison of the same is running, rows were not scored on the same
            clips, or the metric is none.
    """
    for file in others:
        check_others(file)
    asked = [[one.name for one in experiments], [*seeds], [*vary], matched, [*map(str, others)]]
    asked += [matched_seconds] * matched_seconds
    known = digest(asked)[:8]
    output = logs / COMPARISONS / f"{baseline}-{known}.json"
    with Lock(output, "Comparison"):
        total = len(seeds) * len(experiments)
        # The baseline's first run knows the test clips, so answers of others are looked at then.
        order = sorted(experiments, key=lambda one: one.name != baseline)
        for number, seed in enumerate(seeds):
            for place, one in enumerate(order):
                so_far = f"{number * len(experiments) + place + 1}/{total}"
                _run(one, seed, vary, logs, so_far)
                if not number and one.name == baseline:
                    for file in others:
                        read_others(file, _row(one, [seed], logs))
        rows = [_row(one, seeds, logs) for one in experiments]
        if matched:
            rows += _matched(experiments, rows, seeds, vary, logs)
        if matched_seconds:
            rows += _matched_seconds(experiments, rows, seeds, vary, logs)
        first = rows[[one.name for one in experiments].index(baseline)]
        rows += [read_others(file, first) for file in others]
        check_rows(rows, first)
        allowed = [n for n in next(iter(first.seeds.values())).scores if n != "majority"]
        if metric not in allowed:
            raise ValueError(f"--metric is '{metric}'; allowed are {', '.join(allowed)}.")
        if not _get_rank():
            write_json(output, as_dict(rows, first, metric))
            write_text(output.with_suffix(".csv"), as_csv(rows))
        over = f"mean ± standard deviation over {len(seeds)} seeds"
        print_rank_zero(
            f"In per cent, {over if len(seeds) > 1 else 'of one seed'}:\n"
            f"{comparison_table(rows, first, metric)}\n{f1_table(rows)}\n"
            f"All figures: {output} and {output.with_suffix('.csv').name}"
        )


def _experiment(file: Path, overlays: Sequence[Path]) -> Compared:
    """The experiment of a file, or of rbft's of that name."""
    file, overlays = find_experiment(str(file)), [find_experiment(str(one)) for one in overlays]
    merged: dict[str, Any] = {}
    for content in read_chain(file.resolve()):
        merged |= content
    for own in (file, *overlays):
        for content in read_chain(own.resolve()):
            _check_card(content.get("data"))
    name = str(merged.get("name") or file.stem)
    return Compared(name, [file, *overlays], name)


def _check_card(data: Any) -> None:
    """Refuses an experiment whose runs could not be compared, before the first of them.

    Args:
        data: The key of an experiment file.
    """
    arguments = data.get("init_args") if isinstance(data, dict) else None
    card = arguments.get("card") if isinstance(arguments, dict) else None
    if card is not None and Path(str(card)).is_file():
        Card.load(Path(str(card))).refuse_several("compare")


def _run(one: Compared, seed: int, vary: Sequence[str], logs: Path, so_far: str) -> None:
    """Has `fit` run what is missing; of a finished run it looks at what that is made from."""
    from rbft.cli import main

    options = {
        "name": f"{one.name}_seed{seed}",
        "score_each_stage": "false",
        "trainer.default_root_dir": logs,
        **one.options,
        **dict.fromkeys(vary, seed),
    }
    arguments = [f"--config={file}" for file in one.files]
    arguments += [f"--{name}={value}" for name, value in options.items()]
    done = is_finished(logs / str(options["name"]))
    print_rank_zero(f"{so_far}: {options['name']}{' is finished' if done else ''}")
    # The command line is this command's own; processes that a Trainer starts run it again.
    warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")
    try:
        silent = redirect_stdout(io.StringIO()) if done else nullcontext()
        with one_of_several(), silent:
            main(["fit", *arguments])
    except SystemExit as end:
        if end.code and not _get_rank():
            sys.stderr.write(
                f"The comparison ended in the run {options['name']}. Started again, it goes on "
                "there.\n"
            )
        raise
    if not (logs / str(options["name"]) / SETTINGS).exists():
        raise ValueError(
            f"compare runs whole experiments, but {one.files[0]} runs one stage alone "
            "(model.stage). Set its stages instead."
        )


def _row(one: Compared, seeds: Sequence[int], logs: Path) -> ComparedRow:
    runs = {seed: read_run(logs / f"{one.name}_seed{seed}") for seed in seeds}
    return ComparedRow(one.title, runs, str(one.files[0]))


def _matched(
    experiments: Sequence[Compared],
    rows: Sequence[ComparedRow],
    seeds: Sequence[int],
    vary: Sequence[str],
    logs: Path,
) -> list[ComparedRow]:
    """Direct-SFT with as many steps as the longest row, unless it is among the rows."""
    mean = [fmean(run.steps or 0 for run in row.seeds.values()) for row in rows]
    longest = max(range(len(rows)), key=lambda place: mean[place])
    one = experiments[longest]
    for place, other in enumerate(experiments):
        stages, _ = _plan(other, seeds[0], logs)
        if stages == DIRECT and mean[place] == mean[longest]:
            print_rank_zero(
                f"--matched adds nothing: {other.name} is Direct-SFT with {mean[place]:.0f} steps, "
                "as many as any other."
            )
            return []
    stages, epochs = _plan(one, seeds[0], logs)
    name = f"{one.name}_matched"
    if name in [other.name for other in experiments]:
        raise ValueError(
            f"--matched would run Direct-SFT as {name}, which --configs has with other steps. Give "
            "that another name, or leave --matched out."
        )
    direct = _direct(one, name, epochs * len(stages))
    for number, seed in enumerate(seeds, start=1):
        _run(direct, seed, vary, logs, f"matched {number}/{len(seeds)}")
    return [_row(direct, seeds, logs)]


def _matched_seconds(
    experiments: Sequence[Compared],
    rows: Sequence[ComparedRow],
    seeds: Sequence[int],
    vary: Sequence[str],
    logs: Path,
) -> list[ComparedRow]:
    """Direct-SFT in as many epochs as fit into the training seconds of the longest row.

    Raises:
        ValueError: If no row is Direct-SFT, whose epochs say how long one takes, or a run has not
            noted its time.
    """
    plans = {row.title: _plan_of(row) for row in rows}
    direct = [row for row in rows if plans[row.title][0] == DIRECT]
    if not direct:
        raise ValueError(
            "--matched_seconds needs Direct-SFT among the rows, to know how long an epoch takes. "
            "Add its experiment file to --configs, or --matched true."
        )
    seconds = {row.title: fmean(map(_training_seconds, row.seeds.values())) for row in rows}
    longest = max(seconds, key=lambda title: seconds[title])
    known = max(direct, key=lambda row: plans[row.title][1])
    if not seconds[known.title]:
        raise ValueError(
            f"--matched_seconds: {known.title} has noted no time of its training, so nobody knows "
            "how long an epoch takes. Leave the option out, or train that row anew."
        )
    epochs = max(1, round(plans[known.title][1] * seconds[longest] / seconds[known.title]))
    source = next((one for one in experiments if one.title == longest), None)
    if source is None or epochs <= plans[known.title][1]:
        print_rank_zero(
            f"--matched_seconds adds nothing: {known.title} trains for {seconds[known.title]:.0f} "
            "seconds, about as long as any other."
        )
        return []
    # More seeds may take another mean of seconds: runs of other epochs are other runs.
    direct = _direct(source, f"{source.name}_matched_seconds_{epochs}", epochs)
    for number, seed in enumerate(seeds, start=1):
        _run(direct, seed, vary, logs, f"matched in seconds {number}/{len(seeds)}")
    return [_row(direct, seeds, logs)]


def _direct(one: Compared, name: str, epochs: int) -> Compared:
    """Direct-SFT on what an experiment trains on."""
    options = {**one.options, **DIRECT_SETTINGS, "trainer.max_epochs": epochs}
    return Compared(name, one.files, name, options)


def _plan(one: Compared, seed: int, logs: Path) -> tuple[list[str], int]:
    """Stages of a run, and the epochs that each may take."""
    return _planned(logs / f"{one.name}_seed{seed}")


def _plan_of(row: ComparedRow) -> tuple[list[str], int]:
    """The same of a row; no stages where nobody knows them."""
    (folder, *_) = (one.folder for one in row.seeds.values())
    return ([], 0) if folder is None else _planned(folder)


def _training_seconds(run: SeedRun) -> float:
    """What a run has trained for: seconds of the GPU, or where there is none, of the processor."""
    spent = (run.spent or {}).get("training", Spent())
    return spent.gpu_seconds or spent.processor_seconds


def _planned(folder: Path) -> tuple[list[str], int]:
    settings = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
    return stage_names(settings["stages"]), settings["trainer"]["max_epochs"]
