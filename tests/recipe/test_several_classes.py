"""A whole run on clips that may have several classes, as docs/own_clips.md has it."""

import csv
import json
import re
from pathlib import Path

import pytest

from rbft import load
from rbft.analysis.multilabel import MultiLabelClips, choose_thresholds
from rbft.card import Card
from tests.recipe.runs import EXPERIMENTS, LOGS, ROOT, digest, rbft, read_json, read_lines
from tests.videos import make_video

pytestmark = [pytest.mark.recipe, pytest.mark.long]
CLASSES = ("person", "pet", "fire")
LABELS = ["person", "person; pet", "", "pet", "fire,person", "fire", "person|pet|fire", "pet", ""]
SPLITS = [*["train"] * 6, *["val"] * 3, *["test"] * 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, Path]) -> Path:
    """A finished run, and where it was made."""
    made = tmp_path_factory.mktemp("several")
    page = (ROOT / "docs/own_clips.md").read_text(encoding="utf-8")
    (card,) = re.findall(r"```yaml\n(name: .*?)```", page, re.S)
    (made / "rooms.yaml").write_text(card, encoding="utf-8")
    (made / "clips").mkdir()
    lines = ["path,labels,split"]
    for number, split in enumerate(SPLITS):
        make_video(made / f"clips/c{number}.mp4", 20, 64, 64, first=40 * number)
        lines.append(f'c{number}.mp4,"{LABELS[number % len(LABELS)]}",{split}')
    (made / "clips.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rbft(made, "fit", *options(backbones["qwen2_5_vl"]))
    return made


def options(backbone: Path, *more: str) -> list[str]:
    return [
        f"--config={EXPERIMENTS}/hardware/tiny.yaml",
        "--name=rooms",
        f"--model.backbone={backbone}",
        "--data=VideoFolder",
        "--data.root=clips",
        "--data.table=clips.csv",
        "--data.card=rooms.yaml",
        "--data.eval_batch_size=2",
        "--keep=best",
        "--keep_metric=val/ap/macro",
        "--decision.f1=true",
        "--trainer.enable_progress_bar=false",
        *more,
    ]


def test_what_a_run_leaves(folder: Path) -> None:
    run = folder / LOGS / "rooms"
    for place in ("zero_shot", "rationale", "label"):
        found = MultiLabelClips.from_file(run / place / "test.json")
        metrics = read_json(run / place / "test.json")["metrics"]
        for name, value in found.scores().items():
            assert metrics[name] == (None if value != value else pytest.approx(value)), name
        # c9 to c12, which have the labels of c0 to c3
        assert found.labels.tolist() == [
            [True, False, False],
            [True, True, False],
            [False, False, False],
            [False, True, False],
        ]
    chosen = read_json(run / "label/decision.json")["thresholds"]
    assert chosen == choose_thresholds(MultiLabelClips.from_file(run / "label/val.json"))
    card = Card.load(run / "label/weights/card.yaml")
    assert card.answers == ("yes", "no")
    assert read_json(run / "clips.json")["train"][1]["label"] == ["person", "pet"]


def test_a_second_start_does_nothing(
    folder: Path, qwen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = folder / LOGS / "rooms/label/weights/model.safetensors"
    before = digest(weights)
    rbft(folder, "fit", *options(qwen))
    assert "nothing is left to do" in capsys.readouterr().out
    assert digest(weights) == before


def test_predictions_are_those_of_python_and_of_an_export(folder: Path, qwen: Path) -> None:
    weights = LOGS / "rooms"
    rbft(folder, "predict", f"--weights={weights}", "--videos=clips", "--output=a.jsonl")
    rows = read_lines(folder / "a.jsonl")
    chosen = read_json(folder / weights / "label/decision.json")["thresholds"]
    for row in rows:
        shares = row["probabilities"]
        assert row["labels"] == [name for name in CLASSES if shares[name] >= chosen[name]]
    with (folder / "a.csv").open(encoding="utf-8") as stream:
        assert [one["labels"] for one in csv.DictReader(stream)] == [
            "; ".join(row["labels"]) for row in rows
        ]
    rbft(folder, "export", *options(qwen, "--output=merged"))
    rbft(folder, "predict", "--weights=merged", "--videos=clips", "--output=b.jsonl")
    for row, other in zip(rows, read_lines(folder / "b.jsonl"), strict=True):
        assert row["labels"] == other["labels"]
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    found = load(folder / weights).predict([folder / row["path"] for row in rows])
    assert [list(one.labels or ()) for one in found] == [row["labels"] for row in rows]


def test_what_is_scored_by_hand(folder: Path, qwen: Path) -> None:
    """The results of the run are those that `test` finds again, one clip at a time."""
    run = folder / LOGS / "rooms"
    before = read_lines(run / "label/test_predictions.jsonl")
    rbft(folder, "test", *options(qwen, "--data.eval_batch_size=1"))
    after = read_lines(run / "label/test_predictions.jsonl")
    for one, other in zip(before, after, strict=True):
        assert one["labels"] == other["labels"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_commands_for_one_class_a_clip_refuse(
    folder: Path, qwen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, *more in (
        ("attention", "--runs=[rooms]"),
        ("judge", *options(qwen), "--endpoint.model=x"),
        ("test", *options(qwen, "--endpoint.model=x", "--decision=null")),
        ("batch", *options(qwen, "--endpoint.model=x", "--decision=null")),
        ("mask", *options(qwen), "--names=[person]"),
        ("export", *options(qwen, "--format=llava", "--output=x.json")),
        ("fit", *options(qwen, "--stages=[rationale_class]", "--name=other")),
    ):
        with pytest.raises(SystemExit):
            rbft(folder, command, *more)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "needs clips of one class, but card 'rooms' has the key several" in said, command
    rbft(folder, "rationales", *options(qwen))
    assert "was not checked: a clip may have several classes" in capsys.readouterr().out
    rbft(folder, "report")
    assert "are not in the report" in json.dumps(capsys.readouterr().out)
