"""Commands about data: scan, init, predict, export, cache, and the README's recipes with them."""

import csv
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbft import load
from rbft.card import Card
from rbft.commands.help_page import asked_group, help_page
from rbft.commands.overview import in_full
from rbft.data.videofolder import VideoFolder
from rbft.miniature import folders
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import VideoError, decode_video
from tests.recipe.runs import (
    LOGS,
    ROOT,
    STAGES,
    VIDEO_INDICES,
    command_blocks,
    rationales,
    rbft,
    rbft_process,
    read_json,
    read_lines,
)
from tests.videos import make_video

pytestmark = pytest.mark.recipe


def chapter(title: str) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands(text: str) -> list[list[str]]:
    """The command lines of a text, in order."""
    lines = "".join(command_blocks(text)).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("python -m rbft")]


def run(folder: Path, command: list[str]) -> None:
    _, _, module, *args = command
    if module == "rbft":
        rbft(folder, *args)
    else:
        assert module == "rbft.miniature.folders"
        folders.main(args)


# Your own clips, from zero


class Own:
    """The README's recipe, run to its end: folder, and what each command printed."""

    def __init__(self, folder: Path, backbone: Path, cache: Path) -> None:
        self.folder = folder
        for name in ("experiments", "rbft"):
            (folder / name).symlink_to(ROOT / name)
        self.commands = [
            [part.replace("rbft/miniature/base", str(backbone)) for part in command]
            for command in commands(chapter("Your own clips"))
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("sys.argv", ["rbft"])
            for command in self.commands:
                run(folder, command)
        self.cached = list(cache.rglob("*.clip"))

    @property
    def options(self) -> list[str]:
        """Those of the recipe's `fit`."""
        (fit,) = (command[4:] for command in self.commands if command[3] == "fit")
        return [*fit, "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, Path], cache: Path) -> Own:
    return Own(tmp_path_factory.mktemp("own"), backbones["qwen2_5_vl"], cache)


def test_the_recipe_leaves_what_it_says(own: Own) -> None:
    said = [command[3] for command in own.commands if command[2] == "rbft"]
    assert said == ["init", "scan", "fit", "predict", "export", "cache"]
    run_folder = own.folder / LOGS / "house_experiment"
    rows = read_lines(run_folder / "manifest.jsonl")
    assert len(rows) == 36
    assert {row["status"] for row in rows} == {"ok"}
    assert not (run_folder / "missing.txt").exists()
    assert read_json(run_folder / "label/test.json")["n_scored"] == 12
    predictions = read_lines(own.folder / "predictions.jsonl")
    assert len(predictions) == 12
    assert all("rationale" in row for row in predictions)
    with (own.folder / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["id"] for row in table] == [row["id"] for row in predictions]
    assert len(read_json(own.folder / "rationales.json")) == 24
    assert own.cached == []  # the last command clears the frames


def test_the_gpu_s_line_is_a_valid_one(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    """Its model cannot be had in a test; all its settings are read and checked."""
    (line,) = re.findall(r"`(python -m rbft fit --config house_\S+)`", chapter("Your own clips"))
    with pytest.raises(SystemExit, match="0"):
        rbft(own.folder, *shlex.split(line)[3:], "--print_config")
    printed = capsys.readouterr().out
    assert "backbone: Qwen/Qwen2.5-VL-7B-Instruct" in printed
    assert "root: videos" in printed


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_weights_alone_predict_what_they_predict_with_the_experiment(
    own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's command, the experiment's, those of moved weights, and Python."""
    (first,) = (command for command in own.commands if command[3] == "predict")
    assert not any("config" in part or "backbone" in part for part in first)
    expected = (own.folder / "predictions.jsonl").read_bytes()
    asked = ("--videos=videos/test", "--rationale=true")
    rbft(own.folder, "predict", *own.options, *asked, "--output=by_experiment.jsonl")
    assert (own.folder / "by_experiment.jsonl").read_bytes() == expected
    run_folder = own.folder / LOGS / "house_experiment"
    moved = shutil.copytree(run_folder / "label/weights", tmp_path / "mine")
    rbft(own.folder, "predict", f"--weights={moved}", *asked, "--output=moved.jsonl")
    assert (own.folder / "moved.jsonl").read_bytes() == expected
    shown = capsys.readouterr().out.splitlines()
    place = next(
        n for n, line in enumerate(shown) if line.startswith("Weights: ") and "mine" in line
    )
    assert shown[place + 1] == "         run house_experiment, trained on rationale -> label"
    assert shown[place + 3].split() == ["video", "class", "probability"]
    rows = read_lines(own.folder / "moved.jsonl")
    for line, row in zip(shown[place + 5 : place + 10], rows, strict=False):
        share = row["probabilities"][row["label"]]
        assert line.split() == [row["path"], row["label"], f"{share:.4f}"]
    assert max(map(len, shown[place:])) <= 80

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(own.folder)
        model = load("lightning_logs/house_experiment")
        found = model.predict([row["path"] for row in rows], rationale=True)
        for row, one in zip(rows, found, strict=True):
            assert (one.label, one.probabilities) == (row["label"], row["probabilities"])
            assert one.rationale == row["rationale"]
        more = ("--output=half.jsonl", "--trainer.precision=bf16-true")
        rbft(own.folder, "predict", f"--weights={moved}", *asked, *more)
        paths = [row["path"] for row in rows]
        rounded = load(moved, settings={"trainer.precision": "bf16-true"})
        half = rounded.predict(paths, rationale=True)
        for row, one, exact in zip(read_lines(Path("half.jsonl")), half, found, strict=True):
            assert one.probabilities == row["probabilities"] != exact.probabilities
        # Windows are as segments are.
        more = ("--every=1", "--output=every_second.jsonl")
        rbft(own.folder, "predict", f"--weights={moved}", f"--videos={paths[0]}", *more)
        given = model.predict_windows(paths[0], every=1)
        for row, one in zip(read_lines(Path("every_second.jsonl")), given, strict=True):
            assert (one.start, one.end) == (row["start"], row["end"])
            assert one.probabilities == row["probabilities"]
        # What README and page show, as it stands there.
        for name in ("clip", "a", "b"):
            shutil.copy(rows[0]["path"], f"{name}.mp4")
        Path("many.txt").write_text("a.mp4\nb.mp4\n")
        for page in (ROOT / "README.md", ROOT / "docs/predict.md"):
            blocks = python_blocks(page)
            assert "load(" in blocks[0]
            exec("\n".join(blocks), {"open": opened})
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("Prediction(path=PosixPath('clip.mp4')") for line in said) == 2
    assert sum(line.startswith(("a.mp4 ", "b.mp4 ")) for line in said) == 4

    note = read_json(moved / "rbft.json")
    del note["inference"]
    (moved / "rbft.json").write_text(json.dumps(note))
    with pytest.raises(SystemExit, match="2"):
        rbft(own.folder, "predict", f"--weights={moved}", *asked, "--output=old.jsonl")
    assert "an earlier version of rbft left it" in capsys.readouterr().err
    rbft(own.folder, "predict", *own.options, *asked, f"--weights={moved}", "--output=old.jsonl")
    assert (own.folder / "old.jsonl").read_bytes() == expected


def opened(file: str) -> io.StringIO:
    """The docs leave a file open."""
    return io.StringIO(Path(file).read_text(encoding="utf-8"))


def test_the_commands_of_the_page_about_prediction(own: Own) -> None:
    page = (ROOT / "docs/predict.md").read_text(encoding="utf-8")
    predict, windows, demo = commands(page)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(own.folder)
        patch.setattr("sys.argv", ["rbft"])
        rbft(own.folder, *in_full(predict[3:]))
        rbft(own.folder, *in_full(windows[3:]))
        patch.setitem(sys.modules, "gradio", None)
        with pytest.raises(SystemExit, match="2"):  # it has come to where Gradio is needed
            rbft(own.folder, *demo[3:])
    rows = read_lines(own.folder / "windows.jsonl")
    files = dict.fromkeys(row["path"] for row in rows)
    assert len(files) == 12
    pictures = {file.stem for file in (own.folder / "windows_timelines").iterdir()}
    assert pictures == {Path(path).stem for path in files}
    for row in rows:
        assert row["id"] == f"{row['path']}_{row['start']:g}_{row['end']:g}"
        assert row["start"] % 2 == 0
        assert row["end"] - row["start"] <= 4
    options = set(re.findall(r"`(?:[^`]* )?(--[a-z_.]+)", page))
    assert {"--videos", "--weights", "--config", "--port", "--host"} <= options


def test_predict_takes_up_what_is_there(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    broken = own.folder / "broken.mp4"
    broken.write_bytes(next(own.folder.rglob("videos/test/*/*.mp4")).read_bytes()[:2000])
    listed = own.folder / "list.txt"
    names = [str(path.relative_to(own.folder)) for path in own.folder.rglob("videos/test/*/*.mp4")]
    listed.write_text("\n".join([*names[:2], "broken.mp4", "gone.mp4"]), encoding="utf-8")
    predict = ["predict", *own.options, "--videos=list.txt", "--output=out/p.jsonl"]
    with pytest.raises(SystemExit, match="1"):
        rbft(own.folder, *predict)
    rows = read_lines(own.folder / "out/p.jsonl")
    assert [row["path"] for row in rows] == listed.read_text(encoding="utf-8").split("\n")
    assert rows[3]["error"] == "Video gone.mp4 does not exist."
    assert rows[2]["error"].startswith("Video broken.mp4 ")
    assert all("error" not in row and row["margin"] >= 0 for row in rows[:2])
    out = capsys.readouterr().out
    assert "Wrote 2 predictions to out/p.jsonl and out/p.csv." in out
    assert "2 of 4 videos could not be predicted:\n  Video broken.mp4 " in out
    assert "\n  Video gone.mp4 does not exist.\n" in out

    broken.write_bytes((own.folder / names[2]).read_bytes())
    with pytest.raises(SystemExit, match="1"):
        rbft(own.folder, *predict)
    assert "2 of 4 videos stand in out/p.jsonl already." in capsys.readouterr().out
    again = read_lines(own.folder / "out/p.jsonl")
    assert again[:2] == rows[:2]
    assert "error" not in again[2]
    with pytest.raises(SystemExit, match="2"):
        rbft(own.folder, *predict, "--rationale=true")
    error = capsys.readouterr().err
    assert "that were made otherwise (rationale: False -> True). Name another --output" in error


def test_a_killed_predict_goes_on(own: Own) -> None:
    """It is killed once lines are there; they stay, and the rest follows in order."""
    folder, output = own.folder, own.folder / "killed/p.jsonl"
    options = [*own.options, "--videos=videos/train", f"--output={output}"]
    predict = [sys.executable, "-m", "rbft", "predict", *options, "--data.eval_batch_size=1"]
    process = subprocess.Popen(predict, cwd=folder, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (output.exists() and output.read_bytes().count(b"\n") > 2):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "no lines appear"
        time.sleep(0.002)
    process.kill()
    process.communicate()
    left = output.read_bytes().rpartition(b"\n")[0].decode().splitlines()
    expected = sorted(str(path.relative_to(folder)) for path in folder.rglob("videos/train/*/*"))
    assert 2 < len(left) < len(expected) == 24
    assert [json.loads(line)["path"] for line in left] == expected[: len(left)]
    assert not output.with_suffix(".csv").exists()

    rbft(folder, "predict", *options)
    rows = read_lines(output)
    assert [row["path"] for row in rows] == expected
    assert output.read_text(encoding="utf-8").splitlines()[: len(left)] == left
    with output.with_suffix(".csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["path"] for row in table] == expected
    for row, cells in zip(rows, table, strict=True):
        shares = row["probabilities"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert {name: float(cells[f"probability_{name}"]) for name in shares} == shares
        assert (cells["id"], cells["label"]) == (row["id"], row["label"])
        assert float(cells["margin"]) == row["margin"]


def test_exports_are_read_as_clips_of_one_s_own(own: Own) -> None:
    settings = {
        "fps": 1.0,
        "max_pixels": 3136,
        "min_pixels": 784,
        "min_frames": 2,
        "max_frames": 4,
        "global_batch_size": 4,
        "rationale_ratio": 1.0,
        "card": own.folder / "house.yaml",
    }
    whole = VideoFolder(own.folder / "videos", **settings)
    for form, name in (("llava", "a.json"), ("llamafactory", "b.json"), ("swift", "c.jsonl")):
        for answers in ("label", "rationale"):
            output = own.folder / answers / name
            rbft(
                own.folder,
                "export",
                *own.options,
                *(f"--format={form}", f"--answers={answers}", f"--output={output}"),
            )
            read = VideoFolder(own.folder / "videos", output, **settings).clips("train")
            expected = [(clip.id, clip.path, clip.label) for clip in whole.clips("train")]
            assert [(clip.id, clip.path, clip.label) for clip in read] == expected
            assert all((clip.reference is None) == (answers == "label") for clip in read)


# What is missing or broken


def damage(video: Path) -> Path:
    """Zeroes in the middle: headers, the list of frames and the first frame are whole."""
    data = bytearray(video.read_bytes())
    start, stop = int(len(data) * 0.3), int(len(data) * 0.5)
    data[start:stop] = bytes(stop - start)
    video.write_bytes(data)
    return video


def test_a_run_goes_on_past_files_that_cannot_be_decoded(
    tmp_path: Path, backbones: dict[str, Path]
) -> None:
    """Files that the scan can open break when they are decoded, in worker processes."""
    latin = os.fsdecode(b"caf\xe9.mp4")  # no UTF-8
    train, test = (latin, "b c ü.mp4", "-d.mp4"), ("a.mp4", latin)
    number = 0
    for split, names in (("train", train), ("test", test)):
        for label in ("pass", "fail"):
            (tmp_path / split / label).mkdir(parents=True)
            for name in names:
                file = tmp_path / split / label / name
                make_video(file, frames=120, options={"g": "250"}, first=number)
                number += 120
    damage(tmp_path / "train/fail" / train[1])
    damage(tmp_path / "test/pass" / latin)
    with pytest.raises(VideoError, match="is damaged: frame"):
        decode_video(
            tmp_path / "train/fail" / train[1],
            FrameSettings(fps=1.0, min_pixels=784, max_pixels=3136),
        )
    rbft(tmp_path, "init", "--domain=belt", "--classes=[pass, fail]", "--output=belt.yaml")
    options = (
        "--config=belt_experiment.yaml",
        f"--config={ROOT}/experiments/hardware/tiny.yaml",
        f"--model.backbone={backbones['qwen2_5_vl']}",
        "--data.root=.",
        "--trainer.max_epochs=2",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
    )
    rbft(tmp_path, "scan", *options)
    folder = tmp_path / LOGS / "belt_experiment"
    rows = read_lines(folder / "manifest.jsonl")
    assert [row["status"] for row in rows] == ["ok"] * 10

    process = rbft_process(tmp_path, "fit", *options)
    assert process.returncode == 0, process.stderr[-3000:]
    counts = "VideoFolder: a folder per split and class in .: 10 clips (4 test, 6 train)."
    assert counts in process.stdout
    records = {record["id"]: record for record in read_lines(rationales(tmp_path))}
    assert len(records) == 6
    lost = {name for name, record in records.items() if record["finish"] == "undecodable"}
    assert lost == {"train/fail/b c ü"}
    for place in VIDEO_INDICES:
        result = read_json(folder / place / "test.json")
        assert (result["n_scored"], result["n_unparsed"]) == (4, 1)
        assert (result["n_undecodable"], result["undecodable"]) == (
            1,
            [f"test/pass/{latin.removesuffix('.mp4')}"],
        )
        (row,) = (
            row for row in read_lines(folder / place / "test_predictions.jsonl") if "error" in row
        )
        assert "is damaged: frame " in row["error"]
        assert row["prediction"] is None
    for stage in STAGES:
        events = EventAccumulator(str(folder / stage))
        events.Reload()
        # Once in each of the two epochs.
        assert sum(event.value for event in events.Scalars("train/replaced")) == 2
    said = [
        line for line in process.stderr.splitlines() if "takes the place of train/fail/b c" in line
    ]
    assert len(said) == 4
    assert sum("is damaged: frame " in message for message in said) == 2  # labels need no rationale


def test_scan_names_what_is_missing_and_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    make_video(tmp_path / "clips/a.mp4", frames=8)
    (tmp_path / "clips/b.mp4").write_bytes(b"no video")
    (tmp_path / "clips.csv").write_text(
        "id,label,split,url\na,pass,train,\nb,fail,train,\nc,fail,test,https://x/c\nd,pass,test,\n"
    )
    rbft(tmp_path, "init", "--domain=conveyor belt", "--classes=[pass, fail]")
    assert Card.load(tmp_path / "card.yaml").classes == ("pass", "fail")
    rbft(
        tmp_path,
        *("scan", "--config=card_experiment.yaml", "--model.backbone=nowhere"),
        *("--data.root=clips", "--data.table=clips.csv"),
    )
    out = capsys.readouterr().out
    assert re.search(r"split +class +ok +missing +unreadable +clips", out)
    assert "unreadable: clips/b.mp4: " in out
    folder = LOGS / "card_experiment"
    assert f"2 missing files, by URL or id, for a downloader of your own: {folder}/missing" in out
    assert (tmp_path / folder / "missing.txt").read_text() == "https://x/c\nd\n"
    statuses = [row["status"] for row in read_lines(tmp_path / folder / "manifest.jsonl")]
    assert statuses == ["ok", "unreadable", "missing", "missing"]


def test_a_disk_without_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system refuses what goes beyond 800 bytes a file: the manifest, but not the scan's."""
    make_video(tmp_path / "a.mp4", frames=8)
    rows = [f"{n},a.mp4,{label}" for n, label in enumerate(("pass", "fail") * 5)]
    (tmp_path / "clips.csv").write_text("\n".join(["id,path,label", *rows]))
    rbft(tmp_path, "init", "--domain=belt", "--classes=[pass, fail]")
    scan = ("scan", "--config=card_experiment.yaml", "--model.backbone=nowhere")
    scan += ("--data.root=.", "--data.table=clips.csv", "--data.cache_folder=cache")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (800, before[1]))
    try:
        with pytest.raises(SystemExit, match="2"):
            rbft(tmp_path, *scan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: .* cannot be written: File too large\. .* Make room;", error)
    assert not (tmp_path / LOGS / "card_experiment/manifest.jsonl").exists()
    rbft(tmp_path, *scan)
    assert len(read_lines(tmp_path / LOGS / "card_experiment/manifest.jsonl")) == 10


# The paper's benchmarks


def test_the_papers_benchmarks_are_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/data.md, with annotations in their place and no video at all."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    smart = tmp_path / "data/smarthome"
    smart.mkdir(parents=True)
    header = "Title,Category,Anomaly Tag,Video Description,Reasoning behind Normality/Anomalies\n"
    tags = ("Normal", "Abnormal") * 5
    rows = [f"smartbench_{n:04},Wildlife,{tag},A bear.,It is wild.\n" for n, tag in enumerate(tags)]
    (smart / "Video_Annotation.csv").write_text(header + "".join(rows))
    urls = [f"smartbench_{n:04},https://x/{n}\n" for n in range(9)]
    lines = ["Title,URL\n", *urls, "smartbench_0009,privacy url\n"]
    (smart / "Video_url.csv").write_text("".join(lines))
    hate = tmp_path / "data/multihateclip/English_data"
    (hate / "annotation").mkdir(parents=True)
    columns = "Video_ID\tMajority_Voting\tLabel\tTarget_Victim\tComponent\tDuration\n"
    for split in ("train", "valid", "test"):
        row = f"-{split}\tNormal\t['Normal', 'Normal']\t[]\t[]\t[]\n"
        (hate / f"annotation/{split}.tsv").write_text(columns + row)
    monkeypatch.chdir(tmp_path)
    given = commands((ROOT / "docs/data.md").read_text(encoding="utf-8"))
    assert [line[3] for line in given] == ["scan", "scan"]
    for line in given:
        run(tmp_path, line)
    out = capsys.readouterr().out
    assert re.search(r"^private +abnormal +0 +0 +1 +1$", out, re.MULTILINE)
    assert re.search(r"^all +0 +9 +1 +10$", out, re.MULTILINE)
    assert re.search(r"^all +0 +3 +3$", out, re.MULTILINE)
    missing = (LOGS / "smarthome_qwen25/missing.txt").read_text().splitlines()
    assert missing == [f"https://x/{n}" for n in range(9)]
    missing = (LOGS / "multihateclip_qwen25/missing.txt").read_text().splitlines()
    assert [name.endswith(("train", "valid", "test")) for name in missing] == [True] * 3


# Without an experiment


def test_init_writes_nothing_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init = ("init", "--domain=conveyor belt", "--classes=[pass, fail]", "--output=my_card.yaml")
    rbft(tmp_path, *init)
    assert capsys.readouterr().out == (
        "Wrote my_card.yaml: put your own words into it.\n"
        "Wrote my_card_experiment.yaml: say there where your videos are (data.init_args.root).\n"
        "Then: python -m rbft scan my_card_experiment.yaml\n"
    )
    for wrong, message in (
        (init, "my_card.yaml exists. Give --output another name, or remove it."),
        (init[:2], "The classes must be known: add --videos FOLDER, with a folder of clips for"),
        ((*init[:2], "--classes=[pass]", "--output=b.yaml"), "needs at least 2"),
    ):
        with pytest.raises(SystemExit, match="2"):
            rbft(tmp_path, *wrong)
        assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"my_card.yaml", "my_card_experiment.yaml"}


def test_cache_says_how_large_it_is_and_clears_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    (folder / "frames").mkdir(parents=True)
    (folder / "frames/a.clip").write_bytes(b"x" * 250_000)
    rbft(tmp_path, "cache", f"--folder={folder}")
    out = capsys.readouterr().out
    assert out.splitlines()[0] == str(folder)
    assert re.search(r"frames +decoded clips +0\.2\n", out)
    rbft(tmp_path, "cache", f"--folder={folder}", "--clear=scans")
    assert (folder / "frames/a.clip").exists()
    rbft(tmp_path, "cache", f"--folder={folder}", "--clear=frames")
    assert not (folder / "frames/a.clip").exists()
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "cache", "--clear=everything")
    error = capsys.readouterr().err
    assert "clear is 'everything'; allowed is 'frames', 'features', 'scans'" in error


def test_the_settings_of_a_benchmark_are_explained() -> None:
    (command,) = re.findall(r"`python -m rbft (fit --help \w+)`", chapter("Your own clips"))
    name, *args = command.split()
    group = asked_group(args)
    assert group is not None
    assert "\n  --data.label_regex  text|null  (default null)\n" in help_page(name, group)
