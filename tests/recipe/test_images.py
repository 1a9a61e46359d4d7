"""Frame lists and stills through the command line: scan, fit, test and predict."""

import json
from pathlib import Path

import av
import pytest

from rbft.miniature import folders
from tests.recipe.runs import LOGS, ROOT, rbft, read_json, read_lines

pytestmark = [pytest.mark.recipe, pytest.mark.long]


def as_images(video: Path) -> list[Path]:
    """Writes every frame of a video into a folder of its name, and removes the video."""
    folder = video.with_suffix("")
    folder.mkdir()
    found = []
    with av.open(str(video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            found.append(folder / f"{number}.png")
            frame.to_image().save(found[-1])
    video.unlink()
    return found


def test_images_and_videos_are_trained_on_and_predicted_together(
    backbones: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        folders.main(["--output", "videos"])
        rbft(tmp_path, "init", "--domain=a house", "--videos=videos", "--output=house.yaml")
    rows = []
    for number, path in enumerate(sorted((tmp_path / "videos").glob("*/*/*.mp4"))):
        split, label, _ = path.relative_to(tmp_path / "videos").parts
        row = {"id": path.stem, "label": label, "split": split}
        below = path.relative_to(tmp_path / "videos")
        if number % 3 == 0:
            images = as_images(path)
            names = [str(image.relative_to(tmp_path / "videos")) for image in images]
            if number % 2:
                row |= {"path": str(below.with_suffix("")), "fps": 10}
            else:  # the second half comes late
                half = len(names) // 2
                times = [n / 10 + 5 * (n >= half) for n in range(len(names))]
                row |= {"path": names, "times": times}
        elif number % 3 == 1:
            first, *others = as_images(path)
            for other in others:
                other.unlink()
            row["path"] = str(first.relative_to(tmp_path / "videos"))
        else:
            row["path"] = str(below)
        rows.append(row)
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "clips.jsonl").write_text(lines, encoding="utf-8")
    options = [
        "--config=house_experiment.yaml",
        f"--config={ROOT / 'experiments/hardware/tiny.yaml'}",
        f"--model.backbone={backbones['qwen3_vl']}",
        "--data.table=clips.jsonl",
        "--data.batch_size=2",
        "--trainer.enable_progress_bar=false",
    ]
    rbft(tmp_path, "scan", *options)
    rbft(tmp_path, "fit", *options)
    run = tmp_path / LOGS / "house_experiment"
    found = read_json(run / "label/test.json")
    assert found["n_scored"] == sum(row["split"] == "test" for row in rows)
    assert found["n_undecodable"] == 0
    weights = f"--weights={run}"
    (tmp_path / "list.csv").write_text(
        "id,path,fps,times\n"
        + "".join(
            '{},"{}",{},"{}"\n'.format(
                row["id"],
                json.dumps([f"videos/{one}" for one in row["path"]]).replace('"', '""')
                if isinstance(row["path"], list)
                else f"videos/{row['path']}",
                row.get("fps", ""),
                row.get("times", ""),
            )
            for row in rows
            if row["split"] == "test"
        ),
        encoding="utf-8",
    )
    rbft(tmp_path, "predict", weights, "--videos=list.csv", "--output=all.jsonl")
    predicted = {row["id"]: row for row in read_lines(tmp_path / "all.jsonl")}
    scored = {row["id"]: row for row in read_lines(run / "label/test_predictions.jsonl")}
    assert predicted.keys() == scored.keys()
    for name, row in predicted.items():
        assert row["probabilities"] == pytest.approx(scored[name]["probabilities"], abs=1e-5)
    capsys.readouterr()
    more = ("--data.images=frames", "--data.image_fps=10", "--output=frames.jsonl")
    rbft(tmp_path, "predict", weights, "--videos=videos", *more)
    assert sum("mp4" not in row["path"] for row in read_lines(tmp_path / "frames.jsonl")) > 5
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "predict", weights, "--videos=videos", more[0], "--output=x.jsonl")
    assert "images, and nothing says when they are shown" in capsys.readouterr().err
