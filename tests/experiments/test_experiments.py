"""Every experiment file is small, is named after itself, stands in the table, and runs."""

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rbft.method import Method
from rbft.runtime.differences import flat
from tests.endpoint_server import serving
from tests.recipe.runs import EXPERIMENTS, LOGS, ROOT, rbft, read_json, read_lines
from tests.tiny import FamilyName
from tests.videos import make_video

FILES = sorted(EXPERIMENTS.glob("*.yaml"))
NAMES = [file.stem for file in FILES]
SERVERS = {
    "gpt41": "gpt-4.1-2025-04-14",
    "gpt4o": "gpt-4o-2024-08-06",
    "gpt4o_mini": "gpt-4o-mini-2024-07-18",
    "gemini25_flash": "gemini-2.5-flash",
    "gemini25_pro": "gemini-2.5-pro",
    "endpoint": "Qwen/Qwen2.5-VL-7B-Instruct",
}
ASKED = [f"{benchmark}_{row}" for benchmark in ("smarthome", "multihateclip") for row in SERVERS]
MASKED = [name for name in NAMES if "_masked_" in name]
TRAINED = [name for name in NAMES if name not in (*ASKED, *MASKED)]
PAPER = [name for name in TRAINED if not name.startswith("miniature")]
OVERLAYS = sorted((EXPERIMENTS / "hardware").glob("*.yaml"))
BEYOND = sorted((EXPERIMENTS / "beyond").glob("*.yaml"))
README = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made-up data of both benchmarks where the README puts it."""
    folder = tmp_path_factory.mktemp("experiments")
    write_smarthome(folder / "data/smarthome")
    write_multihateclip(folder / "data/multihateclip")
    return folder


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("RBFT_CACHE", str(tmp_path_factory.getbasetemp() / "experiments_cache"))


def write_table(file: Path, rows: list[list[str]], **style: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, **style).writerows(rows)


def write_videos(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        file, frames = folder / f"{name}.mp4", 20 + 5 * (number % 3)
        make_video(file, frames, height=56, width=56, first=100 * number)


def write_smarthome(folder: Path) -> None:
    names = [f"smartbench_{number:04d}" for number in range(1, 21)]
    header = ["Title", "Category", "Anomaly Tag", "Video Description"]
    rows = [[*header, "Reasoning behind Normality/Anomalies"]]
    for number, name in enumerate(names):
        tag = ("Normal", "Abnormal")[number % 2]
        rows.append([name, "Security", tag, f"A person, seen {number} times.", "It is usual."])
    write_table(folder / "Video_Annotation.csv", rows)
    urls = [[name, f"https://www.youtube.com/watch?v={name[-11:]}"] for name in names]
    write_table(folder / "Video_url.csv", [["Title", "URL"], *urls])
    write_videos(folder / "videos", names)


def write_multihateclip(folder: Path) -> None:
    header = ["Video_ID", "Majority_Voting", "Label", "Target_Victim", "Component", "Duration"]
    names = []
    for split, count in (("train", 9), ("valid", 3), ("test", 6)):
        rows = [header]
        for number in range(count):
            vote = ("Normal", "Offensive", "Hateful")[number % 3]
            names.append(f"{split}_{number:05d}"[:11].ljust(11, "x"))
            rows.append([names[-1], vote, f"['{vote}']", "[]", "[]", "[]"])
        file = folder / f"English_data/annotation/{split}.tsv"
        write_table(file, rows, delimiter="\t", quoting=csv.QUOTE_NONE)
    write_videos(folder / "videos", names)


def family(name: str) -> FamilyName:
    kinds: dict[str, FamilyName] = {"qwen2": "qwen2_vl", "qwen3": "qwen3_vl"}
    return kinds.get(name.partition("_")[2].partition("_")[0], "qwen2_5_vl")


def options(name: str, backbones: dict[str, Path], *more: str) -> list[str]:
    files = (f"{name}.yaml", "hardware/tiny.yaml")
    return [
        *(f"--config={EXPERIMENTS / file}" for file in files),
        f"--model.backbone={backbones[family(name)]}",
        "--trainer.enable_progress_bar=false",
        *more,
    ]


def printed_config(folder: Path, capsys: Any, *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        rbft(folder, "fit", *arguments, "--print_config")
    assert ended.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("name", ASKED)
def test_a_server_s_row_differs_from_the_backbone_s_in_who_is_asked(name, tmp_path, capsys):
    """The same clips, frames and words."""
    benchmark, row = name.split("_", 1)
    lines = (EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 8
    config = printed_config(tmp_path, capsys, f"--config={EXPERIMENTS / name}.yaml")
    other = printed_config(tmp_path, capsys, f"--config={EXPERIMENTS / benchmark}_qwen25.yaml")
    assert (config["name"], config["stages"], other["endpoint"]) == (name, [], None)
    endpoint = config["endpoint"]
    assert endpoint["model"] == SERVERS[row]
    changed = {"name", "stages", "endpoint.model"}
    vendor = "gemini" if row.startswith("gemini") else "own" if row == "endpoint" else "openai"
    url, key, logprobs = {
        "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY", 20),
        "gemini": ("https://generativelanguage.googleapis.com/v1beta/openai/", "GEMINI_API_KEY", 0),
        "own": ("http://localhost:8000/v1", None, 20),
    }[vendor]
    assert (endpoint["urls"], endpoint["key_variable"]) == ([url], key)
    assert endpoint["top_logprobs"] == logprobs
    assert endpoint["frames"] == ("video" if vendor == "own" else "images")
    changed |= {"model.max_new_tokens"} if vendor == "gemini" else set()
    found, expected = flat(config), flat(other)
    differing = {k for k in found if found[k] != expected.get(k) and not k.startswith("endpoint.")}
    assert differing - {"config"} == changed - {"endpoint.model"}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.usefixtures("own_cache")
def test_a_server_s_row_runs(name, data, tmp_path):
    """Against a server on this machine that says the first class of the card to everything."""
    word = "normal"
    with serving(text=lambda prompt, number: word, prompt_tokens=5000) as server:
        rbft(
            data,
            "test",
            *(f"--config={EXPERIMENTS / file}" for file in (f"{name}.yaml", "hardware/tiny.yaml")),
            f"--endpoint.urls=[{server.url}]",
            "--endpoint.key_variable=null",
            f"--endpoint.store={tmp_path / 'answers.jsonl'}",
            "--trainer.enable_progress_bar=false",
        )
    model = SERVERS[name.split("_", 1)[1]]
    folder = data / LOGS / name / f"endpoint-{model.replace('/', '-')}"
    result, rows = read_json(folder / "test.json"), read_lines(folder / "test_predictions.jsonl")
    assert result["n_scored"] == len(rows) == server.sent.total() >= 4
    assert {row["prediction"].lower() for row in rows} == {word}
    assert {body["model"] for body in server.bodies} == {model}


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_row_differs_from_the_run_s_in_what_is_masked(name, tmp_path, capsys):
    """So that a finished run, and Direct-SFT of the same backbone, can be scored with it."""
    benchmark, _, kind = name.split("_")
    base = "miniature" if benchmark == "miniature" else f"{benchmark}_qwen2"
    text = (EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 10
    boxes = f"lightning_logs/boxes/{benchmark}.jsonl"
    assert yaml.safe_load(text) == {
        "config": f"{base}.yaml",
        "name": name,
        "data": {"init_args": {"masking": {"kind": kind, "boxes": boxes}}},
    }
    config = printed_config(tmp_path, capsys, f"--config={EXPERIMENTS / name}.yaml")
    assert config["data"]["init_args"]["masking"] == {
        "boxes": boxes,
        "kind": kind,
        "fill": "constant",
        "repeats": 5,
        "seed": 0,
        "repeat": None,
    }


@pytest.mark.parametrize("command", ["fit", "rationalize", "predict"])
def test_nothing_is_trained_or_written_on_masked_clips(command, tmp_path, capsys):
    more = ["--videos=[a.mp4]"] if command == "predict" else []
    file = f"--config={EXPERIMENTS / 'smarthome_masked_objects.yaml'}"
    with pytest.raises(SystemExit):
        rbft(tmp_path, command, file, *more)
    assert capsys.readouterr().err == (
        f"error: data.masking masks parts of scored clips, and {command} would use masked ones for "
        "something else. Score a finished run with it: python -m rbft test with this --config and "
        "--weights lightning_logs/<run>. Or add --data.masking null.\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TRAINED)
def test_a_file_is_small_and_named_after_itself(name, tmp_path, capsys):
    file = EXPERIMENTS / f"{name}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 10
    assert all(not line.startswith("config:") for line in lines[1:])  # the first key
    config = printed_config(tmp_path, capsys, f"--config={file}")
    assert config["name"] == name
    backbones = {"qwen2": "Qwen/Qwen2-VL-7B-Instruct", "qwen25": "Qwen/Qwen2.5-VL-7B-Instruct"}
    backbones |= {"qwen3": "Qwen/Qwen3-VL-8B-Instruct"}
    benchmark, *rest = name.split("_")
    assert config["data"]["class_path"].rsplit(".", 1)[-1].lower() == benchmark
    assert config["model"]["backbone"] == (
        "rbft/miniature/base" if benchmark == "miniature" else backbones[rest[0]]
    )


@pytest.mark.parametrize("name", PAPER)
def test_only_what_its_name_says_differs_from_the_paper(name, tmp_path, capsys):
    """Appendix A stands in the resolved settings of every row of the tables."""
    config = printed_config(tmp_path, capsys, f"--config={EXPERIMENTS / name}.yaml")
    what = name.split("_", 2)[2] if name.count("_") == 2 else ""
    stages = {"direct": ["label"], "zeroshot": [], "pcr": ["class_rationale"]}
    stages |= {"prc": ["rationale_class"], "matched": ["label"]}
    assert config["stages"] == stages.get(what, ["rationale", "label"])
    model, trainer, data = config["model"], config["trainer"], config["data"]["init_args"]
    rates = [model[f"{part}learning_rate"] for part in ("", "merger_", "vision_")]
    assert rates == [1e-5, 1e-5, 2e-6]
    assert (model["weight_decay"], model["warmup_ratio"]) == (0.1, 0.03)
    epochs = 2 if what == "matched" else 1
    assert (trainer["max_epochs"], trainer["gradient_clip_val"]) == (epochs, 1.0)
    assert (data["fps"], data["max_pixels"], data["global_batch_size"]) == (1.0, 360 * 420, 16)
    assert model["gradient_checkpointing"] is True
    ratios = {"ratio0": 0.0, "ratio20": 0.2, "ratio60": 0.6}
    assert data["rationale_ratio"] == ratios.get(what, 1.0)
    assert data["rationale_prompt"] == (what if what in ("less", "least") else "rationale")


@pytest.mark.parametrize("name", [name for name in PAPER if name.endswith("_matched")])
@pytest.mark.usefixtures("own_cache")
def test_a_matched_row_trains_for_as_many_steps_as_both_stages(name, data, backbones, monkeypatch):
    """RQ1 says "same training budget"."""
    steps = []

    def count(method: Method, *_: Any, **__: Any) -> None:
        data, trainer = method.inputs.data, method.inputs.trainer
        per_stage = data.steps(trainer.world_size, trainer.max_epochs or 0)
        steps.append(len(method.stages) * per_stage)

    monkeypatch.setattr(Method, "fit", count)
    for row in (name, name.removesuffix("_matched"), name.replace("_matched", "_direct")):
        files = [f"--config={EXPERIMENTS / row}.yaml"]  # the tiny overlay has epochs of its own
        rbft(data, "fit", *files, f"--model.backbone={backbones[family(name)]}")
    matched, both_stages, one_stage = steps
    assert matched == both_stages == 2 * one_stage
    assert one_stage >= 1


def test_rows_that_are_not_the_paper_s_have_no_figures():
    rows = [line for line in README.splitlines() if "_matched.yaml" in line and "_qwen" in line]
    assert len(rows) == 4
    for row in rows:
        assert re.fullmatch(r"\| \| Direct-SFT, matched \| `\w+\.yaml` (\| )+\|", row)
    assert "The rows without figures are not in the paper" in " ".join(README.split())


def test_the_readme_s_tables_name_every_file_and_no_other():
    rows = [line for line in README.splitlines() if line.startswith("|")]
    named = set(re.findall(r"`?([\w/]+\.yaml)`?", "\n".join(rows)))
    assert named == {str(file.relative_to(EXPERIMENTS)) for file in (*FILES, *OVERLAYS, *BEYOND)}
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert all((EXPERIMENTS / link).exists() for link in linked)


def test_the_readme_s_notes_are_all_there():
    notes = set(re.findall(r"^(\d+)\. ", README, re.MULTILINE))
    assert set(re.findall(r"\[(\d+)\]", README)) == notes


def test_the_readme_s_commands_parse(tmp_path, capsys):
    commands = [line for block in BLOCKS for line in block.splitlines() if "rbft fit " in line]
    assert commands
    for command in commands:
        words = command.replace("experiments/", f"{EXPERIMENTS}/").split()
        assert words[:4] == ["python", "-m", "rbft", "fit"]
        printed_config(tmp_path, capsys, *words[4:])


def test_files_as_the_readme_writes_them_parse(tmp_path, capsys):
    texts = [block for block in BLOCKS if block.startswith("config:")]
    assert texts
    for text in texts:
        written = yaml.safe_load(text)
        file = tmp_path / f"{written['name']}.yaml"
        file.write_text(text.replace("config: ", f"config: {EXPERIMENTS}/"), encoding="utf-8")
        found, expected = flat(printed_config(tmp_path, capsys, f"--config={file}")), flat(written)
        del expected["config"]
        assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.usefixtures("own_cache")
def test_a_file_composes_with_the_tiny_overlay(name, data, backbones, monkeypatch):
    """As far as everything that `fit` checks before it loads a model."""
    checked = []

    def note(method: Method, *_: Any, **__: Any) -> None:
        checked.append(method)

    monkeypatch.setattr(Method, "fit", note)
    few = ["--data.train_size=4", "--data.test_size=4"] if name.startswith("miniature") else []
    if name == "miniature_sides":  # names its card by the path from the checkout
        few.append(f"--data.card={ROOT / 'rbft/miniature/sides.yaml'}")
    rbft(data, "fit", *options(name, backbones, *few))
    assert checked[0].settings.name == name
    assert checked[0].inputs.trainer.precision == "32-true"


@pytest.mark.parametrize("overlay", BEYOND, ids=lambda file: file.stem)
@pytest.mark.usefixtures("own_cache")
def test_what_is_beyond_the_paper_goes_with_every_row(overlay, data, backbones, monkeypatch):
    """A few lines on top of an experiment, and what its miniature has."""
    assert len(overlay.read_text(encoding="utf-8").splitlines()) <= 5
    checked = []
    monkeypatch.setattr(Method, "fit", lambda method, *_, **__: checked.append(method))
    more = [f"--config={overlay}"]
    for name in ("smarthome_qwen25", "multihateclip_qwen2"):
        benchmark = name.split("_")[0]
        if overlay.stem == "sides":
            more.append(f"--data.card={ROOT}/rbft/data/{benchmark}_sides.yaml")
        rbft(data, "fit", *options(name, backbones), *more)
    assert len(checked) == 2
    with overlay.open(encoding="utf-8") as stream:
        asked = flat(yaml.safe_load(stream))
    for method in checked:
        settings = flat(yaml.safe_load(method.inputs.settings))
        assert {name: settings[name] for name in asked} == asked


@pytest.mark.parametrize("overlay", BEYOND, ids=lambda file: file.stem)
def test_the_miniature_of_it(overlay, tmp_path, capsys):
    name = {"reward": "elicited_reward"}.get(overlay.stem, overlay.stem)
    found = printed_config(tmp_path, capsys, f"--config={EXPERIMENTS}/miniature_{name}.yaml")
    with overlay.open(encoding="utf-8") as stream:
        asked = flat(yaml.safe_load(stream))
    assert {name: flat(found)[name] for name in asked} == asked
    # As many optimiser steps as the compute-matched Direct-SFT.
    assert len(found["stages"]) * found["trainer"]["max_epochs"] == 12


def test_eight_gpus_train_as_the_paper_does(tmp_path, capsys):
    """tests/recipe/test_two_processes.py runs this overlay on two processes."""
    files = ("smarthome_qwen25.yaml", "hardware/eight_80gb_gpus.yaml")
    config = printed_config(tmp_path, capsys, *(f"--config={EXPERIMENTS / f}" for f in files))
    trainer, model, data = config["trainer"], config["model"], config["data"]["init_args"]
    assert (trainer["devices"], trainer["strategy"], trainer["precision"]) == (
        8,
        "fsdp2",
        "bf16-mixed",
    )
    assert trainer["gradient_clip_val"] == 1.0
    # The paper's, in most blocks; the others have room to keep their activations.
    assert 0.5 < model["gradient_checkpointing"] < 1
    assert model["lora"] is None
    assert model["vision_learning_rate"] > 0
    assert data["global_batch_size"] == 16
    assert data["global_batch_size"] == trainer["devices"] * data["batch_size"]


@pytest.mark.usefixtures("own_cache")
def test_a_callback_of_lightning_is_a_setting(tmp_path, backbones, monkeypatch):
    """A default that is a member of an Enum is written into the run's settings by its name."""
    written = []
    monkeypatch.setattr(
        Method, "fit", lambda self, *_, **__: written.append(self.experiment.as_yaml())
    )
    few = ("--data.train_size=4", "--data.test_size=4", "--trainer.callbacks+=Timer")
    rbft(tmp_path, "fit", *options("miniature", backbones, *few))
    (timer,) = yaml.safe_load(written[0])["trainer"]["callbacks"]
    assert timer["class_path"] == "lightning.pytorch.callbacks.Timer"
    assert timer["init_args"]["interval"] == "step"


def check_rbft(run: Path, name: str) -> None:
    (file,) = (run.parent / "rationales").glob(f"{name}-*.jsonl")
    records = read_lines(file)
    assert len(records) > 5
    for step in ("zero_shot", "rationale", "label"):
        assert read_json(run / step / "test.json")["n_scored"] >= 4
    assert (run / "label/weights/model.safetensors").exists()


def check_one_stage(stage: str) -> Callable[[Path, str], None]:
    def check(run: Path, name: str) -> None:
        results = read_json(run / stage / "test.json")
        assert results["n_scored"] >= 4
        assert {path.name for path in run.iterdir() if path.is_dir()} == {
            "usage",
            "zero_shot",
            stage,
        }
        texts = [row.get("text") for row in read_lines(run / stage / "test_predictions.jsonl")]
        # Only P+R+C writes before it answers.
        assert all(texts) if stage == "rationale_class" else not any(texts)
        assert any((run.parent / "rationales").glob(f"{name}-*.jsonl")) == (stage != "label")

    return check


def check_references_alone(run: Path, name: str) -> None:
    assert not any((run.parent / "rationales").glob(f"{name}-*.jsonl"))
    assert len(read_json(run / "rationale/rationales.json")) == 16
    for step in ("zero_shot", "rationale", "label"):
        assert read_json(run / step / "test.json")["n_scored"] >= 4


def check_zero_shot(run: Path, name: str) -> None:
    assert read_json(run / "zero_shot/test.json")["n_scored"] == 6
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"usage", "zero_shot"}


KINDS: dict[str, Callable[[Path, str], None]] = {
    "smarthome_qwen25": check_rbft,
    "smarthome_qwen2_direct": check_one_stage("label"),
    "smarthome_qwen2_ratio0": check_references_alone,
    "smarthome_qwen2_ratio20": check_rbft,
    "smarthome_qwen25_least": check_rbft,
    "smarthome_qwen25_pcr": check_one_stage("class_rationale"),
    "smarthome_qwen2_prc": check_one_stage("rationale_class"),
    "multihateclip_qwen2": check_rbft,
    "multihateclip_qwen25_zeroshot": check_zero_shot,
}


@pytest.mark.recipe
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("own_cache")
def test_one_experiment_of_each_kind_runs(name, data, backbones, capsys, tmp_path):
    if name.endswith("_ratio0"):  # whose rationale file must not be that of another
        write_smarthome(tmp_path / "data/smarthome")
        data = tmp_path
    rbft(data, "fit", *options(name, backbones))
    benchmark = name.split("_")[0]
    prompt = "least" if name.endswith("least") else "rationale"
    KINDS[name](data / LOGS / name, f"{benchmark}-{family(name)}-{prompt}")
    assert "majority class" in capsys.readouterr().out


@pytest.mark.recipe
@pytest.mark.usefixtures("own_cache")
def test_the_rationales_of_all_prompts_are_written_at_once(data, backbones, monkeypatch):
    """The README's command; the experiments with the other prompts then lack none."""
    (command,) = re.findall(r"^python -m rbft rationalize .*", README, re.MULTILINE)
    words = shlex.split(command)
    assert words[4:6] == ["--config", "experiments/smarthome_qwen25.yaml"]
    rbft(data, "rationalize", *options("smarthome_qwen25", backbones), *words[6:])
    folder = data / LOGS / "rationales"
    assert {file.name.rpartition("-")[0] for file in folder.glob("*.jsonl")} >= {
        f"smarthome-{family('smarthome_qwen25')}-{prompt}"
        for prompt in ("rationale", "less", "least")
    }

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)
    for name in ("smarthome_qwen25", "smarthome_qwen25_less", "smarthome_qwen25_least"):
        rbft(data, "rationalize", *options(name, backbones))


@pytest.mark.recipe
@pytest.mark.usefixtures("own_cache")
def test_a_ratio_mixes_in_the_benchmark_s_own_rationales(data, backbones, monkeypatch):
    """At 20 % of 16 clips, 3 learn what the model wrote and 13 what people wrote."""
    mixed: list[dict[str, str]] = []
    from rbft.data.base import VideoDataModule
    from rbft.data.learnt_rationales import LearntRationales

    rationales = VideoDataModule.rationales

    def keep(self: VideoDataModule, split: str) -> LearntRationales:
        found = rationales(self, split)
        mixed.append(found.texts)
        return found

    monkeypatch.setattr(VideoDataModule, "rationales", keep)
    more = ("--name=mixed", "--model.stage=rationale", "--score_each_stage=false")
    rbft(data, "fit", *options("smarthome_qwen2_ratio20", backbones, *more))
    texts = mixed[0].values()
    human = [text for text in texts if text.startswith("A person, seen ")]
    assert len(mixed[0]) == 16
    assert len(human) == 13
    assert json.dumps(sorted(human)).count("It is usual.") == 13
