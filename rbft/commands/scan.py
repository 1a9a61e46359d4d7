"""`scan`: opens every video and says what is there."""

from pathlib import Path

from rbft.build import Experiment
from rbft.data.base import VideoDataModule
from rbft.data.manifest import OK, TRUNCATED
from rbft.data.splits import empty_classes
from rbft.runtime.console import print_rank_zero, table
from rbft.runtime.files import write_text

BROKEN = ("unreadable", TRUNCATED, "too_short")
SHOWN = 10  # unusable files that are named on the screen


def scan(experiment: Experiment) -> None:
    """Open every video once and say what is there, what is missing and what is broken.

    Leaves manifest.jsonl, and missing.txt with what is missing, in the run's folder. Needs no
    backbone.

    Args:
        experiment: The settings.
    """
    report_scan(experiment.data(), experiment.run.folder)


def report_scan(data: VideoDataModule, folder: Path) -> None:
    """Opens the files that no earlier scan has seen, and says what is there and what is not.

    Args:
        data: The benchmark.
        folder: Where `manifest.jsonl` goes, and if there are any, `missing.txt` with what is
            missing and `shared_videos.csv` with the clips that show the same.
    """
    manifest = data.files.manifest
    data.note_unused_files(Path(row.path) for row in manifest.rows)
    for note in data.notes:
        print_rank_zero(note)
    headers, rows = manifest.table(data.card.classes)
    print_rank_zero(table(rows, headers, align="ll" + "r" * (len(headers) - 2)))
    broken = [row for row in manifest.rows if row.status in BROKEN]
    for row in broken[:SHOWN]:
        print_rank_zero(f"{row.status}: {row.path}: {row.reason}")
    if len(broken) > SHOWN:
        print_rank_zero(f"... and {len(broken) - SHOWN} more")
    repaired = {row.path: row.note for row in manifest.rows if row.note}
    for path, note in [*repaired.items()][:SHOWN]:
        print_rank_zero(f"repaired: {path}: {note}")
    if len(repaired) > SHOWN:
        print_rank_zero(f"... and {len(repaired) - SHOWN} more")
    manifest.save(folder / "manifest.jsonl")
    print_rank_zero(f"All clips with the state of their files: {folder / 'manifest.jsonl'}")
    _report_shared(data, folder / "shared_videos.csv")
    usable = [row for row in data.files.accepted.rows if row.status == OK]
    for note in empty_classes(usable, data.card.classes, type(data).__name__):
        print_rank_zero(note)
    missing, file = manifest.missing_list(), folder / "missing.txt"
    file.unlink(missing_ok=True)
    if missing:
        write_text(file, "".join(f"{line}\n" for line in missing))
        print_rank_zero(
            f"{len(missing)} missing files, by URL or id, for a downloader of your own: {file}"
        )


def _report_shared(data: VideoDataModule, file: Path) -> None:
    """Says which clips show the same video."""
    benchmark, shared = type(data).__name__, data.files.shared
    tests = sum(row.split == "test" and row.status == OK for row in data.files.accepted.rows)
    leaks = shared.leak_message(benchmark, tests)
    if leaks and data.on_leak == "error":
        leaks += " fit will refuse that unless data.on_leak is warn."
    for note in filter(None, [leaks, *shared.notes(benchmark)]):
        print_rank_zero(note)
    file.unlink(missing_ok=True)
    if shared.pairs:
        shared.save(file)
        print_rank_zero(f"All clips that show the same as another: {file}")
