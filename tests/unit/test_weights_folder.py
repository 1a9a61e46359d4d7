"""What a weights folder says of itself, and what is said where it does not."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rbft.backbone.adapters import find_base
from rbft.runs.folder import PROVENANCE, read_json
from rbft.runtime.files import write_json
from rbft.weights_folder import (
    find_weights_folder,
    named_folders,
    own_options,
    with_own_settings,
)
from tests.weights import adapter, whole_weights


def test_a_folder_by_itself_that_of_a_stage_and_that_of_a_run(qwen: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    label = whole_weights(run / "label/weights", qwen)
    assert find_weights_folder(label) == label
    assert find_weights_folder(run / "label") == label
    assert find_weights_folder(run) == label  # a stage that was trained alone
    rationale = shutil.copytree(label, run / "rationale/weights")
    with pytest.raises(ValueError, match="several stages") as error:
        find_weights_folder(run)
    assert str(error.value) == (
        f"--weights {run} holds weights of several stages (label, rationale). Name one of them: "
        f"--weights {rationale}."
    )
    (run / "settings.yaml").write_text("stages: [rationale, label, class_rationale]\n")
    assert find_weights_folder(run) == label  # the last finished one
    shutil.rmtree(label)
    assert find_weights_folder(run) == rationale
    shutil.rmtree(rationale)
    with pytest.raises(ValueError, match=r"has no finished stage \(rationale, label, class_rat"):
        find_weights_folder(run)


def test_what_is_no_weights_folder(qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist\. Give a folder that rbft left"):
        find_weights_folder(tmp_path / "nowhere")
    for folder in (qwen, tmp_path, qwen / "config.json"):
        with pytest.raises(ValueError, match=r"is no weights folder of rbft: it holds no rbft\.js"):
            find_weights_folder(folder)


def test_whole_weights_say_all(qwen: Path, tmp_path: Path) -> None:
    folder = whole_weights(tmp_path / "mine", qwen)
    assert own_options(folder) == [
        "--stages=[rationale,label]",
        "--data=rbft.data.unlabelled.Unlabelled",
        f"--data.card={folder}/card.yaml",
        "--data.fps=2.0",
        "--data.min_pixels=784",
        "--data.max_pixels=3136",
        "--data.min_frames=2",
        "--data.max_frames=6",
        "--data.sampling=frame",
        "--data.damaged=error",
        "--data.eval_batch_size=3",
        "--model.answer=score",
        "--model.max_new_tokens=5",
        "--model.attention=sdpa",
        "--model.packing=true",
        "--model.liger=false",
        "--model.cudnn_attention=false",
        f"--model.backbone={folder}",
    ]


def test_an_adapter_names_its_base_as_long_as_it_is_there(qwen: Path, tmp_path: Path) -> None:
    base = shutil.copytree(qwen, tmp_path / "base")
    folder = adapter(tmp_path / "mine", base)
    assert own_options(folder)[-1] == f"--model.backbone={base}"
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(ValueError, match="no longer there") as error:
        own_options(folder)
    known = read_json(folder / PROVENANCE)["base"]["fingerprint"]
    assert str(error.value) == (
        f"weights folder {folder} is an adapter of {base} (fingerprint {known}), which is no "
        "longer there. Say where it lies now: --model.backbone FOLDER."
    )
    assert not any("backbone" in one for one in own_options(folder, backbone=False))
    args = ["demo", f"--weights={folder}", f"--model.backbone={tmp_path / 'moved'}"]
    assert with_own_settings(args)[-2:] == args[-2:]
    note = read_json(folder / PROVENANCE)
    note["base"]["name"] = "Qwen/Qwen2.5-VL-7B-Instruct"  # of the hub
    write_json(folder / PROVENANCE, note)
    assert own_options(folder)[-1] == "--model.backbone=Qwen/Qwen2.5-VL-7B-Instruct"
    for gone in ("gone", "models/of/mine"):  # no ids
        note["base"]["name"] = gone
        write_json(folder / PROVENANCE, note)
        with pytest.raises(ValueError, match=f"is an adapter of {gone} .* no longer there"):
            own_options(folder)
    del note["base"]
    write_json(folder / PROVENANCE, note)
    with pytest.raises(ValueError, match=r"which weights it was trained on\. Name them: --model"):
        own_options(folder)


def test_a_base_is_noted_by_its_whole_path(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(qwen.parent)
    folder = adapter(tmp_path / "mine", Path(qwen.name))
    monkeypatch.chdir(tmp_path)
    assert own_options(folder)[-1] == f"--model.backbone={qwen}"


def test_folders_that_say_too_little(qwen: Path, tmp_path: Path) -> None:
    old = whole_weights(tmp_path / "old", qwen, inference=None)
    with pytest.raises(ValueError, match="does not say") as error:
        own_options(old)
    assert str(error.value) == (
        f"weights folder {old} does not say which frames the model is shown and how it is asked: "
        "an earlier version of rbft left it, or a file was lost. Name the experiment that made it, "
        "run 'yard_run', with --config (in Python: load(..., config=...)), or export it anew."
    )
    (old / "card.yaml").unlink()
    with pytest.raises(ValueError, match=r"how it is asked and its words \(card\.yaml\): an earl"):
        own_options(old)


def test_what_is_given_wins_and_an_experiment_needs_nothing(qwen: Path, tmp_path: Path) -> None:
    folder = whole_weights(tmp_path / "mine", qwen)
    own = own_options(folder)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("data: {init_args: {fps: 4}}\n")
    for more in (
        [f"--weights={folder}", "--data.fps=4", "--videos+=a.mp4"],
        ["--videos=a.mp4", "--weights", str(folder)],
        [f"--config={overlay}", "--weights=run", f"--weights={folder}", "--videos", "a.mp4"],
    ):
        assert with_own_settings(["predict", *more]) == ["predict", *own, *more]
        assert with_own_settings(["demo", *more]) == ["demo", *own, *more]
        assert with_own_settings(["test", *more]) == ["test", *more]
    shown = [f"--weights={folder}", "--print_config"]
    assert with_own_settings(["predict", *shown]) == ["predict", *own, *shown]
    tiny = ["--config=hardware/tiny", f"--weights={folder}", "--videos=a.mp4"]
    assert with_own_settings(["predict", *tiny]) == ["predict", *own, *tiny]
    experiment, built = tmp_path / "experiment.yaml", tmp_path / "built.yaml"
    experiment.write_text("data: {class_path: Miniature}\n")
    built.write_text("config: experiment.yaml\nname: built\n")
    for more in (
        [f"--config={experiment}", f"--weights={folder}"],
        ["-c", str(built), f"--weights={folder}"],
        ["--config=gone.yaml", f"--weights={folder}"],  # which is refused later
        ["--data=Miniature", f"--weights={folder}"],
        ["--config=miniature", f"--weights={folder}"],  # one of rbft's
        ["--help"],
        ["--weights=run", "--print_config"],
        [],
    ):
        args = ["predict", *more] if more else []
        assert with_own_settings(args) == args


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("", "predict needs a model. Add --weights FOLDER, the folder of a run"),
        ("--weights run", "predict needs a model. --weights run takes an experiment, and none is"),
        ("--weights=backbone", "a model. --weights backbone takes an experiment, and none is na"),
        ("--videos a.mp4", "or name an experiment (--config)."),
        ("--weights mine", "predict needs videos: add --videos with files, folders, patterns or"),
    ],
)
def test_neither_weights_nor_experiment(args: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        with_own_settings(["predict", *args.split()])


def test_the_note_is_json(qwen: Path, tmp_path: Path) -> None:
    average = {"samples": 3, "temperature": 0.7}
    folder = whole_weights(tmp_path / "mine", qwen, inference={"model.self_consistency": average})
    assert f"--model.self_consistency={json.dumps(average)}" in own_options(folder)


def test_folders_by_name(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = adapter(Path("logs/one/label/weights"), qwen, run="one_run")
    two = shutil.copytree(one, "a=b")
    assert named_folders(["yard=logs/one", "a=b"]) == {"yard": one, "one_run": Path(two)}
    note = read_json(one / PROVENANCE)
    write_json(one / PROVENANCE, {**note, "run": None})
    assert named_folders(["logs/one/label"]) == {"weights": one}
    with pytest.raises(ValueError, match="twice") as error:
        named_folders(["yard=logs/one", "yard=a=b"])
    assert str(error.value) == (
        "--adapters has the name 'yard' twice (logs/one/label/weights and a=b). Give each a name "
        "of its own: NAME=FOLDER."
    )
    with pytest.raises(ValueError, match=r"^--adapters nowhere does not exist\. Give a folder"):
        named_folders(["yard=nowhere"])


def test_export_knows_its_base_from_the_folder(qwen: Path, tmp_path: Path) -> None:
    one = adapter(tmp_path / "one", qwen)
    own = own_options(one)
    output = "--output=out"
    for given in (
        [f"--adapters=[a={one}, b=elsewhere]", output],
        [f"--adapters+=a={one}", "--adapters+=b=elsewhere", output],
        ["--adapters", f"a={one}", output],
        [f"--weights={one}", output],
    ):
        assert with_own_settings(["export", *given]) == ["export", *own, *given]
    moved = [f"--weights={one}", "--model.backbone=there"]
    assert with_own_settings(["export", *moved]) == ["export", *own[:-1], *moved]
    for given in (["--weights=run"], [], ["--adapters=[]"], ["--data=Yard", f"--weights={one}"]):
        assert with_own_settings(["export", *given]) == ["export", *given]


def test_a_base_beside_the_adapter(qwen: Path, tmp_path: Path) -> None:
    """As `export --adapters` leaves it; the whole folder may be moved."""
    one = adapter(tmp_path / "all/one", qwen)
    note = read_json(one / PROVENANCE)
    write_json(one / PROVENANCE, {**note, "base": {**note["base"], "name": "../base"}})
    shutil.copytree(qwen, tmp_path / "all/base")
    for place in ("all", "moved"):
        if place == "moved":
            (tmp_path / "all").rename(tmp_path / place)
        expected = tmp_path / place / "base"
        assert own_options(tmp_path / place / "one")[-1] == f"--model.backbone={expected}"
        assert find_base("hub/other", tmp_path / place / "one") == str(expected)
