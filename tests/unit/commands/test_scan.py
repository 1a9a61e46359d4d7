import json
from functools import cached_property
from pathlib import Path

import pytest

from rbft.clip import Clip
from rbft.commands.scan import SHOWN, report_scan
from rbft.data.clip_files import ClipFiles
from rbft.data.manifest import Manifest, ManifestRow
from tests.examples import Yard


class Scanned(Yard):
    rows: tuple[ManifestRow, ...] = ()

    @cached_property
    def files(self) -> ClipFiles:
        made = ClipFiles(
            type(self).__name__,
            [],
            self.frames,
            cache_folder=self.cache_folder,
            scan_name="scanned",
            on_missing="error",
            min_coverage=0.9,
            notes=self.notes,
        )
        made.manifest = Manifest(self.rows)
        return made

    def read(self) -> list[Clip]:
        raise AssertionError("the manifest has all that is asked for")


def row(name: str, status: str, url: str | None = None) -> ManifestRow:
    reason = "is damaged" if status == "unreadable" else ""
    return ManifestRow(name, "train", 0, f"{name}.mp4", url, status, reason)


def test_what_a_scan_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Scanned(tmp_path / "card.yaml", {})
    broken = [row(f"b{n}", "unreadable") for n in range(SHOWN + 2)]
    data.rows = (
        row("a", "ok"),
        *broken,
        row("c", "missing", "https://x/c"),
        row("d é", "missing"),
    )
    folder = tmp_path / "logs/yard"
    report_scan(data, folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["split", "class", "ok", "missing", "unreadable", "clips"]
    assert lines[3].split() == ["train", "quiet", "1", "2", "12", "15"]
    assert lines[6] == "unreadable: b0.mp4: is damaged"
    assert "... and 2 more" in lines
    assert lines[-1].endswith(f"downloader of your own: {folder}/missing.txt")
    assert (folder / "missing.txt").read_text(encoding="utf-8") == "https://x/c\nd é\n"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [found["status"] for found in rows][-2:] == ["missing", "missing"]

    del data.files
    data.rows = (row("a", "ok"),)
    report_scan(data, folder)
    assert not (folder / "missing.txt").exists()
    assert "missing" not in capsys.readouterr().out


def test_what_is_said_of_clips_that_show_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Scanned(tmp_path / "card.yaml", {})
    same = [
        ManifestRow(name, split, number % 2, f"{name}.mp4", None, "ok", duration=9.0, digest="1")
        for number, (name, split) in enumerate([("a", "train"), ("b", "train"), ("c", "test")])
    ]
    data.rows = (*same, row("d", "missing"))
    folder = tmp_path / "logs"
    report_scan(data, folder)
    lines = capsys.readouterr().out.splitlines()
    leak = (
        "1 of 1 test clips of Scanned show what a training or validation clip shows, so they test "
        "what was learnt by heart (test c (c.mp4) = train a (a.mp4))."
    )
    assert f"{leak} fit will refuse that unless data.on_leak is warn." in lines
    assert (
        "1 clips of Scanned show what another clip of their split shows (train b (b.mp4) = train a "
        "(a.mp4)); each counts for itself."
    ) in lines
    assert f"All clips that show the same as another: {folder}/shared_videos.csv" in lines
    assert (
        "Scanned has no test clip of alarm: there is no F1 of that, and the macro F1 is the mean "
        "over quiet."
    ) in lines
    assert (folder / "shared_videos.csv").read_text().splitlines() == [
        "split,id,path,same_split,same_id,same_path",
        "test,c,c.mp4,train,a,a.mp4",
        "train,b,b.mp4,train,a,a.mp4",
    ]

    data = Scanned(tmp_path / "card.yaml", {}, on_leak="warn")
    data.rows = tuple(same)
    report_scan(data, folder)
    assert leak in capsys.readouterr().out.splitlines()

    data = Scanned(tmp_path / "card.yaml", {})
    data.rows = tuple(same[:1])
    report_scan(data, folder)
    assert not (folder / "shared_videos.csv").exists()
    assert "shared_videos" not in capsys.readouterr().out
