"""Labels on a scale, and annotators' votes, through the command line."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error

from rbft import load
from rbft.card import Card
from tests.examples import CARD
from tests.recipe.killing import run_two
from tests.recipe.runs import EXPERIMENTS, LOGS, digest, rbft, read_json, read_lines, weights_file
from tests.videos import make_video

pytestmark = [pytest.mark.recipe, pytest.mark.long]
# Of one length: a random backbone would be sure of the shortest.
WORDS = {"calm": "ab", "uneasy": "cd", "wild": "ef"}
SPLITS = (
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "val",
    "val",
    "test",
    "test",
    "test",
)


def rank_correlation(a: Any, b: Any) -> float:
    """Of scipy."""
    found: Any = spearmanr(a, b)
    return found.statistic


def experiment(folder: Path, backbone: Path, card: Card, name: str = "small", **data: Any) -> str:
    """Writes clips, card and an experiment file; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clips").mkdir(exist_ok=True)
    for number in range(len(SPLITS)):
        if not (file := folder / f"clips/{number}.mp4").exists():
            make_video(file, frames=20, height=56, width=56, first=37 * number)
    card.save(folder / "card.yaml")
    given = {"root": "clips", "table": "table.csv", "card": "card.yaml", **data}
    content = {
        "name": name,
        "model": {"backbone": str(backbone)},
        "data": {"class_path": "VideoFolder", "init_args": given},
        "trainer": {"max_epochs": 2, "enable_progress_bar": False},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return f"{name}.yaml"


def options(file: str, *more: str) -> list[str]:
    return [f"--config={file}", f"--config={EXPERIMENTS}/hardware/tiny.yaml", *more]


def write_table(folder: Path, header: list[str], rows: list[list[Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["video", "split", *header], *rows])


def test_levels(qwen: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture) -> None:
    values = {"calm": 1, "uneasy": 2, "wild": 4}
    labels = ["1", "2.0", "wild", "calm", "4", "uneasy", "1", "4", "calm", "2", "ef"]
    true = [1.0, 2.0, 4.0]
    rows = [
        [f"{n}.mp4", split, label]
        for n, (split, label) in enumerate(zip(SPLITS, labels, strict=True))
    ]
    write_table(tmp_path, ["label"], rows)
    file = experiment(tmp_path, qwen, replace(CARD, words=WORDS, values=values))
    stages = ("--stages=[label]", "--keep=best", "--keep_metric=val/mae")
    rbft(tmp_path, "fit", *options(file, *stages))
    assert "median level" in capsys.readouterr().out

    run = tmp_path / LOGS / "small"
    kept = read_json(run / "label/weights/rbft.json")["kept"]
    assert kept["metric"] == "val/mae"
    assert kept["score"] == min(one["score"] for one in kept["validations"])
    for place in ("zero_shot", "label"):
        result = read_json(run / place / "test.json")
        answers = read_lines(run / place / "test_predictions.jsonl")
        assert [values[one["label"]] for one in answers] == true
        found = [one["expected"] for one in answers]
        assert result["metrics"]["mae"] == pytest.approx(mean_absolute_error(true, found), abs=1e-5)
        assert result["metrics"]["spearman"] == pytest.approx(rank_correlation(true, found))

    # The same values of files, in Python and for any video.
    rbft(
        tmp_path, "predict", "--weights", str(run), "--videos", "clips", "--trainer.accelerator=cpu"
    )
    lines = {one["id"]: one for one in read_lines(tmp_path / "predictions.jsonl")}
    scored = read_lines(run / "label/test_predictions.jsonl")
    for one in scored:
        (line,) = (x for name, x in lines.items() if Path(name).stem == one["id"])
        assert line["expected"] == pytest.approx(one["expected"], abs=1e-4)
    with (tmp_path / "predictions.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [float(row["expected"]) for row in table] == [one["expected"] for one in lines.values()]
    model = load(run, settings={"trainer.accelerator": "cpu"})
    prediction = model.predict(tmp_path / "clips/8.mp4")
    assert prediction.expected == pytest.approx(scored[0]["expected"], abs=1e-4)

    rbft(tmp_path, "test", *options(file, *stages, "--model.answer=generate"))
    (written,) = (run / "label").glob("test-????????.json")
    assert read_json(written)["metrics"]["mae"] is None  # it answers in no class word yet
    rbft(tmp_path, "report", "--output", "report.html")
    assert "Levels 1 to 4: calm, uneasy, wild" in (tmp_path / "report.html").read_text("utf-8")


def test_two_processes_weigh_and_rank_the_same(qwen: Path, tmp_path: Path, cache: Path) -> None:
    """Clips have other numbers of answers in each process; levels are ranked over both."""
    votes = [(3, 1), (1, 1), (2, 0), (1, 2), (1, 0), (0, 4), (1, 0), (0, 1), (1, 0), (0, 1), (2, 0)]
    rows = [
        [f"{n}.mp4", split, *own] for n, (split, own) in enumerate(zip(SPLITS, votes, strict=True))
    ]
    card = replace(CARD, words={"calm": "ab", "wild": "cd"}, values={"calm": 1, "wild": 5})
    found = []
    for place in ("one", "two"):
        folder = tmp_path / place
        write_table(folder, ["n_calm", "n_wild"], rows)
        given = {"columns": {"votes": "n_{label}"}, "soft_labels": True}
        file = experiment(folder, qwen, card, **given)
        chosen = options(file, "--stages=[label]", "--trainer.max_epochs=1")
        if place == "one":
            rbft(folder, "fit", *chosen)
        else:
            both = ("--trainer.devices=2", "--data.batch_size=1")
            assert run_two(folder, [*chosen, *both]) == 0
        metrics = read_json(folder / LOGS / "small/label/test.json")["metrics"]
        found.append((load_file(weights_file(folder, "label")), metrics))
    (one, ours), (two, theirs) = found
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert theirs == pytest.approx(ours, abs=1e-3)
    assert ours["n"] == 3


def test_votes(qwen: Path, tmp_path: Path, cache: Path) -> None:
    card = replace(CARD, words={"calm": "calm", "wild": "very wild"})
    clear = [(3, 0), (0, 1), (2, 0), (0, 2), (1, 0), (0, 4), (1, 0), (0, 1), (1, 0), (0, 1), (2, 0)]
    divided = [(3, 1), (1, 1), *clear[2:]]
    short = "--trainer.max_epochs=1"

    def fit(place: str, votes: list[tuple[int, int]], *more: str, **data: Any) -> Path:
        folder = tmp_path / place
        rows = [
            [f"{n}.mp4", split, *own]
            for n, (split, own) in enumerate(zip(SPLITS, votes, strict=True))
        ]
        write_table(folder, ["n_calm", "n_wild"], rows)
        file = experiment(folder, qwen, card, columns={"votes": "n_{label}"}, **data)
        rbft(folder, "fit", *options(file, short, "--score_each_stage=false", *more))
        return folder

    hard = fit("hard", clear)
    # Votes that agree train the same weights in both stages, to the bit.
    agreed = fit("agreed", clear, soft_labels=True)
    for stage in ("rationale", "label"):
        assert digest(weights_file(agreed, stage)) == digest(weights_file(hard, stage))
    # Votes that do not agree leave Stage I alone.
    soft = fit("soft", divided, soft_labels=True)
    assert digest(weights_file(soft, "rationale")) == digest(weights_file(hard, "rationale"))
    assert digest(weights_file(soft, "label")) != digest(weights_file(hard, "label"))
    known = read_json(soft / LOGS / "small/clips.json")
    assert [clip["votes"] for clip in known["train"][:3]] == [[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]
    # Results stand in one table: the scored clips are the same.
    one, other = (read_json(folder / LOGS / "small/label/test.json") for folder in (hard, soft))
    assert one["made"]["clips"] == other["made"]["clips"]
    assert "2 of them divided" in (soft / LOGS / "small/log.txt").read_text("utf-8")
    # A run does not go on with other votes.
    with pytest.raises(SystemExit):
        fit("soft", [(1, 1), *divided[1:]], soft_labels=True)
    # With a rationale before the class, or in turns.
    fit("elicited", divided, "--stages=[rationale_class]", soft_labels=True)
    fit("turns", divided, "--stages=[alternating]", "--dry_run=true", soft_labels=True)
