"""`masked`: what masking objects costs beyond masking as much of anything (Table 5)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.commands.masked_runs import MaskedResults, cost_table, find_masked, weights_of
from rbft.runs.record import digest
from rbft.runtime.console import print_rank_zero
from rbft.runtime.files import write_json

FOLDER = "masking"  # within that of the runs


def masked(
    runs: list[Path],
    split: Literal["test", "val"] = "test",
    logs: Path = Path("lightning_logs"),
) -> None:
    """Print what masking objects costs runs beyond masking as much of anything (Table 5).

    The runs must have been scored three times: as they are, with objects and with random masks.

    Args:
        runs: Names or folders of finished runs, "[smarthome_qwen2_direct, smarthome_qwen2]"; the
            others are compared with the first.
        split: The scored split.
        logs: Folder of the runs.
    """
    folders = [one if one.is_dir() else logs / one for one in runs]
    if not folders:
        raise ValueError('--runs names no run. Give some: "[smarthome_qwen2]".')
    found = [find_masked(logs, weights_of(folder, split), split, folder.name) for folder in folders]
    for folder, groups in zip(folders, found, strict=True):
        if not groups:
            raise ValueError(
                f"The run {folder} was not scored with masks. Run python -m rbft test with "
                "data.masking (experiments/*_masked_objects.yaml, *_masked_random.yaml) and "
                f"--weights {folder}."
            )
    complete = [{one.alike: one for one in groups if not one.missing} for groups in found]
    for folder, groups, whole in zip(folders, found, complete, strict=True):
        if not whole:
            raise ValueError(
                f"The run {folder} has no result {' and none '.join(groups[0].missing)} of the "
                "same clips, frames, words and boxes. Run python -m rbft test with it, and "
                f"--weights {folder}."
            )
    shared = [key for key in complete[0] if all(key in one for one in complete)]
    if not shared:
        raise ValueError(
            f"The runs {', '.join(str(folder) for folder in folders)} were not masked alike: "
            "clips, frames, words, boxes or fill differ. Score them with the same data settings "
            "and the same box file."
        )
    for key in shared:
        if not _get_rank():
            print_table([one[key] for one in complete], logs, split)


def masked_table(logs: Path, weights: str, split: str, name: str) -> str:
    """What is known of weights that were just scored with masks: the table, or what is missing.

    Args:
        logs: Folder of all runs.
        weights: Fingerprint of the weights.
        split: The scored split.
        name: What to call them.
    """
    said = []
    for one in find_masked(logs, weights, split, name):
        if one.missing:
            said.append(
                f"No table yet ({one.fill}): there is no result of these weights "
                f"{' and none '.join(one.missing)}, of the same clips, frames and words."
            )
        else:
            said.append(cost_table([one])[0])
    return "\n".join(said)


def print_table(runs: Sequence[MaskedResults], logs: Path, split: str) -> None:
    """Prints the table of runs and writes its figures to `<logs>/masking`.

    Args:
        runs: Complete results that were masked alike.
        logs: Folder of the runs.
        split: The scored split.
    """
    text, figures = cost_table(runs)
    known = digest([[one.name for one in runs], runs[0].alike])[:8]
    file = logs / FOLDER / f"{runs[0].name}-{known}.json"
    write_json(file, {"split": split, **figures})
    print_rank_zero(f"{text}\nAll figures: {file}")
