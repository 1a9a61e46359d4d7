"""Bad settings end at once, say what to do, and leave nothing behind."""

import json
from pathlib import Path

import pytest
import torch

from tests.recipe.runs import EXPERIMENTS, rbft, rbft_process, small

pytestmark = pytest.mark.recipe
TINY = f"--config={EXPERIMENTS / 'hardware/tiny.yaml'}"
SMARTHOME = f"--config={EXPERIMENTS / 'smarthome_qwen25.yaml'}"
MULTIHATECLIP = f"--config={EXPERIMENTS / 'multihateclip_qwen25.yaml'}"
STAGES = (
    "'rationale', 'label', 'class_rationale', 'rationale_class', 'alternating', 'label_reward', "
    "'rationale_class_reward', 'label_distilled'"
)
# Command line, with {good} for the options of a run that works, and what it must end with.
CASES = {
    "a key in a file": (
        "fit --config=key.yaml",
        "error: there is no setting 'model.backbon'. Did you mean model.backbone",
    ),
    "a key of the data in a file": (
        "fit --config=data_key.yaml",
        "error: there is no setting 'data.train_sise'. Did you mean data.train_size",
    ),
    "a key at the top of a file": (
        "fit --config=top_key.yaml",
        "error: there is no setting 'nam'. Did you mean name?\n",
    ),
    "an option": (
        "fit {good} --model.lerning_rate=1",
        "error: there is no setting 'model.lerning_rate'. Did you mean model.learning_rate",
    ),
    "an option of the data": (
        "fit {good} --data.trainsize=1",
        "error: there is no setting 'data.trainsize'. Did you mean data.train_size",
    ),
    "half an option": (
        "fit {good} --trainer.max_epoch=1",
        "error: there is no setting 'trainer.max_epoch'. Did you mean trainer.max_epochs",
    ),
    "an option of another name": (
        "fit {good} --stage=label",
        "error: there is no setting 'stage'. Did you mean model.stage?\n",
    ),
    "a benchmark": (
        "fit --config=benchmark.yaml",
        "error: data is 'SmartHom', which is no benchmark; allowed are SmartHome, MultiHateClip, "
        "VideoFolder, Miniature.\n",
    ),
    "no benchmark": (
        "fit --config=no_data.yaml",
        "error: data names no benchmark. Name an experiment file (--config) that does, or add "
        "--data with one of SmartHome, MultiHateClip, VideoFolder, Miniature.\n",
    ),
    "no setting at all": (
        "fit",
        "error: model.backbone must be set. Name an experiment file (--config) that does, or add "
        "--model.backbone.\n",
    ),
    "no videos": (
        "predict {good}",
        "error: videos must be set. Name an experiment file (--config) that does, or add "
        "--videos.\n",
    ),
    "a type": (
        "fit {good} --trainer.max_epochs=many",
        "error: trainer.max_epochs is 'many'; allowed is a whole number or null.\n",
    ),
    "a choice": (
        "fit {good} --model.answer=write",
        "error: model.answer is 'write'; allowed is 'score', 'generate'.\n",
    ),
    "a number of the data": (
        "fit {good} --data.train_size=0",
        "error: data.train_size (0) must be 1 or more.\n",
    ),
    "a share": (
        "fit {good} --data.rationale_ratio=1.5",
        "error: data.rationale_ratio (1.5) must be from 0 to 1.\n",
    ),
    "a number of the model": (
        "fit {good} --model.learning_rate=-1",
        "error: model.learning_rate (-1) must be 0 or more; 0 freezes the language model.\n",
    ),
    "a number that is none": (
        "fit {good} --model.weight_decay=.nan",
        "error: model.weight_decay (nan) must be 0 or more.\n",
    ),
    "no epochs": (
        "fit {good} --trainer.max_epochs=0",
        "error: trainer.max_epochs (0) must be 1 or more; rbft trains no stage for 0 epochs, nor "
        "without an end.\n",
    ),
    "a prompt": (
        "fit {good} --data.rationale_prompt=mystery",
        "error: Card 'miniature' has no prompt 'mystery' (data.rationale_prompt); it has label, "
        "rationale, less, least.\n",
    ),
    "a stage in a file": (
        "fit --config=stage.yaml",
        f"error: stages is 'lable'; allowed is {STAGES}.\n",
    ),
    "a stage as an option": (
        "fit {good} --model.stage=lable",
        "error: There is no stage 'lable'; stages are rationale, label, class_rationale, "
        "rationale_class, alternating, label_reward, rationale_class_reward, label_distilled.\n",
    ),
    "the kind of backbone": (
        "fit {good} --model.backbone=llama",
        "error: model.backbone 'llama' is of kind 'llama'; supported are qwen2_vl, qwen2_5_vl, "
        "qwen3_vl, qwen3_vl_moe, qwen3_5. See CONTRIBUTING.md for how to add a family.\n",
    ),
    "a backbone that is not there": (
        "fit {good} --model.backbone=./nowhere",
        "error: model.backbone './nowhere' cannot be read: ",
    ),
    "a backbone that the hub's cache does not hold": (
        "fit {good} --model.backbone=nobody/nothing",
        "Give a folder that holds config.json, model weights and processor, or the hub id of a "
        "Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Qwen3.5.\n",
    ),
    "a batch that does not divide": (
        "fit {good} --data.batch_size=3",
        "error: data.global_batch_size (4) must be a multiple of devices x data.batch_size (1 x 3 "
        "= 3). Change data.batch_size, trainer.devices or data.global_batch_size.\n",
    ),
    "annotations that are not there": (
        f"fit {SMARTHOME} {TINY} --model.backbone={{backbone}}",
        "error: File data/smarthome/Video_Annotation.csv does not exist. Put it there "
        "(experiments/README.md says what goes where), or set its path in the data settings.\n",
    ),
    "annotations of the other benchmark": (
        f"fit {MULTIHATECLIP} {TINY} --model.backbone={{backbone}}",
        "error: File data/multihateclip/English_data/annotation/train.tsv does not exist. Put it",
    ),
    "an experiment that is not there": (
        "fit --config=nowhere.yaml",
        "error: there is no experiment 'nowhere.yaml', neither a file nor one of rbft's. python -m "
        "rbft experiments lists them.\n",
    ),
    "a checkpoint of two stages": (
        "fit {good} --ckpt_path=rationale.ckpt",
        "error: --ckpt_path resumes one stage, but this run has 2: rationale, label. Add "
        "--model.stage, or leave it out: fit finds its own checkpoints.\n",
    ),
    "a checkpoint that is not there": (
        "fit {good} --model.stage=label --ckpt_path=nowhere.ckpt",
        "error: --ckpt_path nowhere.ckpt does not exist. Leave it out: fit finds its own "
        "checkpoints.\n",
    ),
    "a checkpoint that is none": (
        "fit {good} --model.stage=label --ckpt_path=key.yaml",
        "error: --ckpt_path key.yaml is no checkpoint that Lightning has written, or is cut off. "
        "Leave it out: fit finds its own checkpoints.\n",
    ),
    "a checkpoint of another stage": (
        "fit {good} --model.stage=label --ckpt_path=rationale.ckpt",
        "error: The checkpoint is of stage 'rationale', this is stage 'label'. A checkpoint only "
        "resumes its own stage; to start from another stage's result, set model.weights to its "
        "weights folder.\n",
    ),
    "weights that are not there": (
        "fit {good} --model.stage=label --model.weights=nowhere",
        "error: model.weights nowhere is no weights folder: it holds no config.json. Give a folder "
        "such as lightning_logs/small/rationale/weights, or leave it out to start from the "
        "backbone.\n",
    ),
    "a run that is not there": (
        "test {good}",
        "error: The run lightning_logs/small has no finished stage (rationale, label). Run fit "
        "first, or give --weights backbone or a weights folder.\n",
    ),
    "weights of another family": (
        "fit {good} --model.stage=label --model.weights=llama",
        "error: model.weights 'llama' is of kind 'llama'; supported are qwen2_vl, qwen2_5_vl, ",
    ),
    "weights to test that are not there": (
        "test {good} --weights=nowhere",
        "error: --weights nowhere does not exist. Give a folder that rbft left: that of a run "
        "(lightning_logs/<run>), one of its weights folders (<run>/<stage>/weights), or one that "
        "export wrote.\n",
    ),
    "no validation split": (
        "validate {good} --weights=backbone",
        "error: Miniature has no val split. Set data.val_fraction to carve a validation split from "
        "the training clips.\n",
    ),
    "a video that is not there": (
        "predict {good} --weights=backbone --videos=nowhere.mp4",
        "error: --videos nowhere.mp4 does not exist. Give video files or folders.\n",
    ),
    "a folder without videos": (
        "predict {good} --weights=backbone --videos=llama",
        "error: --videos holds no video files; looked for ",
    ),
    "four bits without adapters": (
        "fit {good} --model.quantize=4bit",
        "error: model.quantize is 4bit, but weights in 4 bits cannot be trained, only adapters on "
        "them. Set model.lora (for instance --model.lora.rank 64), or model.quantize to null to "
        "train all weights.\n",
    ),
    "adapters beside a vision tower that trains": (
        "fit {good} --model.lora.rank=8",
        "error: model.vision_learning_rate is 0.0002, but with adapters (model.lora) the vision "
        "tower is frozen. Set model.vision_learning_rate to 0, or model.lora to null to train all "
        "weights.\n",
    ),
    "adapters of no rank": (
        "fit {good} --model.lora.rank=0",
        "error: model.lora.rank (0) must be 1 or more.\n",
    ),
    "a setting of adapters": (
        "fit {good} --model.lora.rnak=8",
        "error: there is no setting 'model.lora.rnak'. Did you mean model.lora.rank",
    ),
    "adapters as if they were a switch": (
        "fit {good} --model.lora=true",
        "error: model.lora is 'true'; it takes settings of its own, each an option (or null for "
        "none). python -m rbft fit --help model.lora lists them.\n",
    ),
    "neither yes nor no": (
        "fit {good} --score_each_stage=maybe",
        "error: score_each_stage is 'maybe'; allowed is true or false.\n",
    ),
    "no list": (
        "fit {good} --stages=label",
        "error: stages is 'label'; allowed is a list, [one, two].\n",
    ),
    "no logger": (
        "fit {good} --trainer.logger=Nonsense",
        "error: trainer.logger is 'Nonsense'; allowed is the name of a Logger or true or false or "
        "null.\n",
    ),
    "a logger without a folder": (
        "fit {good} --trainer.logger=CSVLogger",
        "error: the logger needs a folder: add --trainer.logger.save_dir lightning_logs.\n",
    ),
    "an accelerator that there is not": (
        "fit {good} --trainer.accelerator=gup",
        "error: Lightning's Trainer refuses its settings (trainer: accelerator gup, devices 1, "
        "num_nodes 1, strategy auto, precision 32-true): You selected an invalid accelerator name: "
        "`accelerator='gup'`. Available names are: ",
    ),
    "devices that are no number": (
        "fit {good} --trainer.devices=two",
        "`devices` selected with `CPUAccelerator` should be an int > 0. Correct what is named; on "
        "a machine without a GPU leave trainer.accelerator out, or add --config hardware/cpu.\n",
    ),
    "a run below a file": (
        "fit {good} --trainer.default_root_dir=key.yaml/logs",
        "key.yaml/logs cannot be read or written: a file stands where a folder should be. Correct "
        "that, or name another place: trainer.default_root_dir for runs, ",
    ),
    "predictions below a file": (
        "predict {good} --weights=backbone --videos=key.yaml --output=key.yaml/p.jsonl",
        "key.yaml cannot be read or written: a file stands where a folder should be. Correct ",
    ),
    "predictions where no file can be": (
        "predict {good} --weights=backbone --videos=key.yaml --output=/proc/p.jsonl",
        "error: --output /proc/p.jsonl cannot be written: No such file or directory. Name a place ",
    ),
    "a setting of another benchmark": (
        "fit {good} --data.vague=class",
        "error: data.vague is a setting of SmartHome, but data is Miniature, whose own are "
        "data.clip_seed, ",
    ),
    "another precision than there is": (
        "export {good} --output=out --dtype=int8",
        "error: dtype is 'int8'; allowed is 'base', 'float32', 'bfloat16', 'float16' or null.\n",
    ),
    "the backbone to export": (
        "export {good} --output=out --weights=backbone",
        "error: --weights backbone has nothing to export: it is the backbone itself.\n",
    ),
    "a command": (
        "train",
        "(choose from 'fit', 'rationalize', 'rationales', 'judge', 'batch', 'test', ",
    ),
}
FILES = {
    "key.yaml": "name: x\nmodel: {backbon: tiny}\ndata: Miniature\n",
    "data_key.yaml": "model: {backbone: tiny}\n"
    "data: {class_path: Miniature, init_args: {train_sise: 3}}\n",
    "top_key.yaml": "nam: x\nmodel: {backbone: tiny}\ndata: Miniature\n",
    "benchmark.yaml": "name: x\nmodel: {backbone: tiny}\ndata: SmartHom\n",
    "no_data.yaml": "name: x\nmodel: {backbone: tiny}\n",
    "stage.yaml": "model: {backbone: tiny}\ndata: Miniature\nstages: [rationale, lable]\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text(json.dumps({"model_type": "llama"}))
    torch.save({"rbft_stage": "rationale"}, tmp_path / "rationale.ckpt")
    return tmp_path


def content(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_the_message_says_what_to_do(case, folder, qwen, cache, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)
    line, expected = CASES[case]
    arguments = []
    for part in line.split():
        arguments += small(qwen) if part == "{good}" else [part.format(backbone=qwen)]
    before = content(folder)
    with pytest.raises(SystemExit) as ended:
        rbft(folder, *arguments)
    assert ended.value.code == 2
    assert content(folder) == before
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("error: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(folder, qwen, capsys):
    with pytest.raises(SystemExit, match="2"):
        rbft(folder, "fit", *small(qwen), "--trainer.accelerator=gpu")
    assert capsys.readouterr().err == (
        "error: Lightning's Trainer refuses its settings (trainer: accelerator gpu, devices 1, "
        "num_nodes 1, strategy auto, precision 32-true): No supported gpu backend found! Correct "
        "what is named; on a machine without a GPU leave trainer.accelerator out, or add --config "
        "hardware/cpu.\n"
    )


def test_a_fault_of_ours_ends_with_where_to_report_it(folder, qwen, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("rbft.commands.fit.check_inputs", broken)
    with pytest.raises(RuntimeError, match="broken") as error:
        rbft(folder, "fit", *small(qwen))
    assert error.value.__notes__ == [
        "This looks like a fault of rbft, not of yours: report it with this traceback and the "
        "settings (lightning_logs/small/settings.yaml, or what --print_config prints)."
    ]


def annotations(folder: Path) -> Path:
    header = "Title,Category,Anomaly Tag,Video Description,Reasoning behind Normality/Anomalies"
    tags = ("Normal", "Abnormal") * 10
    rows = [f"smartbench_{n:04d},Security,{tag},x,y" for n, tag in enumerate(tags, 1)]
    urls = [f"smartbench_{n:04d},https://youtu.be/{n}" for n in range(1, 21)]
    (folder / "Video_Annotation.csv").write_text("\n".join([header, *rows]))
    (folder / "Video_url.csv").write_text("\n".join(["Title,URL", *urls]))
    return folder / "Video_Annotation.csv"


def test_missing_videos_are_counted(folder, qwen, capsys):
    table = f"--data.annotations={annotations(folder)}"
    before = content(folder)
    with pytest.raises(SystemExit, match="2"):
        rbft(folder, "fit", SMARTHOME, TINY, f"--model.backbone={qwen}", table)
    error = capsys.readouterr().err
    assert "error: 16 of 16 train clips of SmartHome are not usable (16 missing; first: " in error
    assert "smartbench_0001.mp4: no such file, smartbench_0002.mp4: " in error
    assert "Set data.on_missing to skip or warn to go on without them.\n" in error
    assert content(folder) == before


def test_a_process_says_no_more_than_what_is_wrong(folder, qwen):
    process = rbft_process(folder, "fit", *small(qwen), "--model.stage=lable")
    assert process.returncode == 2
    assert process.stderr.startswith(
        "fit: loading torch and transformers\nerror: There is no stage 'lable'; stages are "
    )
    assert process.stdout == ""
    assert not (folder / "lightning_logs").exists()
