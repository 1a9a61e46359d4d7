"""Whatever a file holds, the report is made: of what is whole, with what is not named."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rbft.report.content import build_content
from rbft.report.gather import gather
from rbft.report.markdown import as_markdown
from rbft.report.page import as_page
from tests.report_runs import (
    answers,
    settings,
    write,
    write_attention,
    write_masked,
    write_run,
)

VALUES = [None, "x", [], {}, 3, -1, 1.5, True, [1], {"a": 1}, float("nan"), 1e30]
EACH = 6  # changes of a file
ROW = {
    "title": "b",
    "source": "b.yaml",
    "scores": {"accuracy": {"mean": 0.5, "sd": None, "n": 1}},
    "minus_baseline": {
        "accuracy": {"mean": 0.1, "low": 0.0, "high": 0.2, "p": 0.5, "wins": 1, "n": 1}
    },
    "unlike_baseline": ["s"],
    "seeds": {"1": {"steps": 3, "folder": "logs/b"}},
}
COMPARISON = {"baseline": "a", "metric": "accuracy", "legend": {"s": "steps"}, "rows": [ROW]}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("damage") / "logs"
    folder = write_run(
        logs, settings("a", ["rationale", "label"], 1), answers(12, 0.6, 0), answers(12, 0.5, 1)
    )
    write_run(logs, settings("b", ["label"], 2), answers(12, 0.6, 3))
    write_masked(folder, {"objects": answers(12, 0.5, 5), "random0": answers(12, 0.5, 6)})
    write_attention(logs / "attention/x", ["a", "b"], "c")
    clip = {"id": "clip_0001.mp4", "video": "v", "start": None, "end": None}
    write(logs / "rationales/r.jsonl", json.dumps({**clip, "rationale": "x", "tokens": 3}) + "\n")
    write(folder / "clips.json", json.dumps({"test": [clip]}))
    write(logs / "compare/x.json", json.dumps(COMPARISON))
    return logs


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a document, up to three entries of a list."""
    yield at
    if isinstance(content, dict):
        for name in content:
            yield from places(content[name], (*at, name))
    elif isinstance(content, list):
        for number in range(min(3, len(content))):
            yield from places(content[number], (*at, number))


def changed(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The document with another value there; without it for `...`."""
    if not at:
        return None if value is ... else value
    made = copy.deepcopy(content)
    inner = made
    for name in at[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return made


def make(logs: Path) -> str:
    content = build_content(gather(logs))
    return as_page(content, "Runs", 1_000_000, None).text + as_markdown(content, "Runs")


FILES = [
    "a/settings.yaml",
    "a/clips.json",
    "a/usage/1-a.json",
    "a/rationale/weights/rbft.json",
    "a/zero_shot/test.json",
    "a/label/test.json",
    "a/label/test_predictions.jsonl",
    "a/label/test-objects-0a1b2c3d.json",
    "attention/x/attention.json",
    "rationales/r.jsonl",
    "compare/x.json",
]


@pytest.mark.parametrize("name", FILES)
def test_another_value_anywhere_ends_nothing(logs, name):
    file, drawn = logs / name, random.Random(name)
    whole = file.read_text(encoding="utf-8")
    lines = file.suffix == ".jsonl"
    if file.suffix == ".yaml":
        content = yaml.safe_load(whole)
    else:
        content = [json.loads(one) for one in whole.splitlines()] if lines else json.loads(whole)
    try:
        for _ in range(EACH):
            at, value = drawn.choice([*places(content)]), drawn.choice([*VALUES, ...])
            made = changed(content, at, value)
            rows = made if isinstance(made, list) else [made]
            text = "".join(f"{json.dumps(one)}\n" for one in rows) if lines else json.dumps(made)
            write(file, text)
            assert "<h1>Runs</h1>" in make(logs), (at, value)
    finally:
        write(file, whole)


def test_what_was_changed_is_whole(logs):
    assert gather(logs).problems == ()
    text = make(logs)
    for said in ("Comparison with a", "What masking costs", "Attention scores", "Rationales"):
        assert said in text
