"""Settings that are none are refused before torch is imported, with what may be meant."""

from pathlib import Path

import pytest

from rbft.commands.misspelt import check_settings
from rbft.commands.options import options
from rbft.commands.overview import in_full
from rbft.runtime.near_misses import OTHER_NAMES, near_misses, unknown_setting

KNOWN = {one.name for one in options("fit")}


def refused(line: str) -> str:
    name, *args = in_full(line.split())
    with pytest.raises(ValueError, match=r".") as error:
        check_settings(name, args)
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "fit --model.lr 1e-4",
            "there is no setting 'model.lr'. Did you mean model.learning_rate?",
        ),
        ("fit --lr=1", "there is no setting 'lr'. Did you mean model.learning_rate?"),
        ("fit --epochs 3", "there is no setting 'epochs'. Did you mean trainer.max_epochs?"),
        ("fit --batch-size 3", "there is no setting 'batch-size'. Did you mean data.batch_size?"),
        ("fit --num_frames 3", "there is no setting 'num_frames'. Did you mean data.num_frames?"),
        (
            "fit --model.learning_rat 3",
            "there is no setting 'model.learning_rat'. Did you mean model.learning_rate or "
            "model.vision_learning_rate or model.merger_learning_rate?",
        ),
        (
            "fit --model.lora.rnk 3",
            "there is no setting 'model.lora.rnk'. Did you mean model.lora.rank or model.lora or "
            "model.lora.dropout?",
        ),
        ("fit --zzzzzz", "there is no setting 'zzzzzz'."),
        ("scan --dry_run=true", "dry_run is an option of fit, not of scan. Leave it out."),
        ("compare --seed 3", "there is no setting 'seed'. Did you mean seeds?"),
        (
            "fit miniature --data.root x",
            "data.root is a setting of VideoFolder, but data is Miniature, whose own are "
            "data.clip_seed, data.clips_folder, data.test_size, data.train_size, data.val_size. "
            "Name the other benchmark (--data VideoFolder), or leave it out.",
        ),
        (
            "fit nowhere.yaml",
            "there is no experiment 'nowhere.yaml', neither a file nor one of rbft's. python -m "
            "rbft experiments lists them.",
        ),
    ],
)
def test_what_is_said(line: str, said: str) -> None:
    assert refused(line) == said


@pytest.mark.parametrize(
    "line",
    [
        "fit miniature --dry_run --gpu_gb 24",
        "fit --config=miniature -c hardware/tiny --print_config=skip_null",
        "test smarthome_qwen25 --data.vague class --data.init_args.fps=2 --weights backbone",
        "fit --data VideoFolder --data.root x --data.columns.id name --data.columns {}",
        "fit --data rbft.data.smarthome.SmartHome --data.videos x",
        "fit --data.class_path SmartHome --data.videos x",
        "fit --data my.Own --data.anything x",
        "fit --model.lora.rank 8 --model.lora null --endpoint.model x --decision.recall 0.9",
        "fit --trainer.strategy.init_args.find_unused_parameters true --trainer.logger+=CSVLogger",
        "fit --model model.yaml --trainer trainer.yaml",
        "fit --help",
        "fit --data.help=Miniature",
        "fit --config",  # the parser says that its value is missing
        "compare --configs [a.yaml] --matched",
    ],
)
def test_what_there_is_passes(line: str) -> None:
    name, *args = in_full(line.split())
    check_settings(name, args)


def test_settings_of_a_file_are_looked_at_too(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: a\nmodel: {lr: 1}\n")
    assert refused(f"fit {file}").startswith("there is no setting 'model.lr'. Did you mean ")
    file.write_text("config: miniature.yaml\nname: a\ndata: {init_args: {vague: class}}\n")
    assert refused(f"fit {file}").startswith("data.vague is a setting of SmartHome, but data is ")
    file.write_text("data: {class_path: my.Own, init_args: {vague: class}}\nname: a\n")
    check_settings("fit", [f"--config={file}"])
    assert refused(f"fit {file} --data Miniature").startswith("data.vague is a setting of ")
    file.write_text("model: {lora: {rank: 8}, costs: {a: {b: 2}}}\ndry_run: true\n")
    check_settings("fit", [f"--config={file}"])
    assert refused(f"test {file}") == "dry_run is an option of fit, not of test. Leave it out."


def test_other_names_are_no_names_of_ours_and_lead_to_ours() -> None:
    assert {one for found in OTHER_NAMES.values() for one in found} <= KNOWN
    assert not set(OTHER_NAMES) & KNOWN


def test_near_misses() -> None:
    assert near_misses("training.learning_rate", KNOWN) == ["model.learning_rate"]
    assert near_misses("optim.weight_decya", KNOWN) == ["model.weight_decay"]
    assert near_misses("lr", ["other"]) == []
    assert unknown_setting("a", ["abc"]) == "there is no setting 'a'."
