import json
from functools import cached_property
from pathlib import Path

import pytest

from rbft.data.base import Clip
from rbft.data.manifest import Manifest, Row
from rbft.scan import SHOWN, report_scan
from tests.examples import Yard


class Scanned(Yard):
    rows: tuple[Row, ...] = ()

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest(self.rows)

    def read(self) -> list[Clip]:
        raise AssertionError("the manifest has all that is asked for")


def row(name: str, status: str, url: str | None = None) -> Row:
    reason = "is damaged" if status == "unreadable" else ""
    return Row(name, "train", 0, f"{name}.mp4", url, status, reason)


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

    del data.manifest
    data.rows = (row("a", "ok"),)
    report_scan(data, folder)
    assert not (folder / "missing.txt").exists()
    assert "missing" not in capsys.readouterr().out
