"""docs/annotations.md: every block of rows and settings gives the clips that stand below it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from rbft.card import Card
from rbft.clip import Clip
from rbft.data.videofolder import VideoFolder

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/annotations.md").read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE),
)
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = [name for name, text in SECTIONS.items() if "```" in text]
SETTINGS = {
    "fps": 1.0,
    "max_pixels": 360 * 420,
    "min_pixels": 28 * 28,
    "min_frames": 2,
    "max_frames": 16,
    "global_batch_size": 16,
    "rationale_ratio": 1.0,
}


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_class_arguments(VideoFolder, "data")
    return made


def typed(value: Any) -> str:
    """As one types it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def read(settings: dict[str, Any]) -> tuple[list[Clip], list[str]]:
    """The clips, and the notes; the settings from a file and from the command line are the same."""
    given = {**SETTINGS, "card": "card.yaml", **settings}
    words = [word for name, value in given.items() for word in (f"--data.{name}", typed(value))]
    from_file = parser().parse_object({"data": given})
    assert parser().parse_args(words) == from_file
    data = parser().instantiate(from_file).data
    return data.read(), data.notes


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_block_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings, expected = {}, []
    for kind, file, text in BLOCK.findall(SECTIONS[name]):
        if kind == "yaml":
            settings = yaml.safe_load(text)
        elif kind == "clips":
            expected = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
        else:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    classes = dict.fromkeys(row[1] for row in expected)
    words = {label: label.lower() for label in classes}
    Card("doc", "Expert", words, {"label": "?", "rationale": "?"}).save(tmp_path / "card.yaml")
    for row in expected:
        video = tmp_path / "videos" / row[3]
        video.parent.mkdir(parents=True, exist_ok=True)
        video.touch()
    clips, notes = read(settings)
    assert [
        [
            clip.id,
            list(classes)[clip.label or 0],
            clip.split,
            clip.path.relative_to("videos").as_posix(),
            *(f"{second:g}" for second in (clip.start, clip.end) if second is not None),
        ]
        for clip in clips
    ] == expected
    assert all(clip.path.is_file() for clip in clips)
    assert f"{len(clips)} clips (" in notes[-1]
    if "without annotation" in SECTIONS[name]:
        assert notes[0].endswith(
            "activity_net.v1-3.min.json: left out 1 videos without annotation."
        )


def test_the_readme_leads_there() -> None:
    assert "(docs/annotations.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) == 12
