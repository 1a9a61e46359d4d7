import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

from rbft import load
from rbft.backbone.loading import fingerprint, load_config, load_model, load_processor
from rbft.backbone.positions import POSITION_RULE
from rbft.card import Card
from rbft.collator import Collator
from rbft.commands.export_weights import base_licence, export_weights, model_card
from rbft.decision import find_decision
from rbft.runs.folder import PROVENANCE, read_json
from rbft.runs.inference import INFERENCE
from rbft.runtime.files import write_json
from rbft.stages import STAGES
from tests.examples import CARD, examples, prompt_of
from tests.several import PETS
from tests.trust import OPENED, note_trust
from tests.videos import make_video
from tests.weights import NOTE, adapter


@pytest.fixture
def weights(qwen: Path, tmp_path: Path) -> Path:
    """An adapter as a run leaves it."""
    facts: dict[str, Any] = {
        "backbone": "abc",
        "revision": "1234",
        INFERENCE: {**NOTE, "model.quantize": "4bit"},
    }
    return adapter(tmp_path / "run/label/weights", qwen, **facts)


@pytest.fixture
def half(qwen: Path, tmp_path: Path) -> Path:
    """The same base as the hub has them: in bf16, with files of its own and a licence."""
    folder = shutil.copytree(qwen, tmp_path / "half")
    model: Any = load_model(str(qwen), "sdpa", False)
    model.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"torch_dtype": "bfloat16", "max_window_layers": 70, "of_the_maker": True}
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", {"image_processor_type": "of the maker"})
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    return folder


@pytest.mark.parametrize(
    ("dtype", "expected"), [("base", torch.bfloat16), ("float32", torch.float32)]
)
def test_the_base_decides_precision_and_form(
    weights: Path, half: Path, tmp_path: Path, dtype: str, expected: torch.dtype
) -> None:
    output = tmp_path / "out/mine"
    export_weights(weights, str(half), output, dtype)
    model = AutoModelForImageTextToText.from_pretrained(output, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    config = json.loads((output / "config.json").read_text())
    name = str(expected).removeprefix("torch.")
    assert (config["torch_dtype"], config["dtype"], config["of_the_maker"]) == (name, name, True)
    kept = json.loads((output / "preprocessor_config.json").read_text())
    assert kept == {"image_processor_type": "of the maker"}
    assert AutoProcessor.from_pretrained(output).chat_template
    assert not list(output.parent.glob(".*")), "parts are left"
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in output.iterdir())


def test_the_model_card_s_lines_classify_a_clip(
    weights: Path, qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    export_weights(weights, str(qwen), output, "float32")
    assert read_json(output / PROVENANCE)[INFERENCE] == NOTE
    clip = make_video(tmp_path / "my clip.mp4", frames=30)
    readme = (output / "README.md").read_text(encoding="utf-8")
    block, _ = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    made: dict[str, Any] = {}
    exec(block.replace("FOLDER", str(output)).replace("clip.mp4", str(clip)), made)
    found = load(output).predict(clip, rationale=True)
    assert capsys.readouterr().out.splitlines()[-1] == str(found)
    assert found.label in CARD.classes
    assert found.rationale
    # The adapter was merged: it says what the adapter says.
    adapter = load(weights, settings={"model.quantize": None}).predict(clip)
    assert found.probabilities == pytest.approx(adapter.probabilities, abs=1e-5)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("trust", [True, False])
def test_the_base_s_own_code_is_trusted_as_asked(
    weights: Path, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust, whole
) -> None:
    told = note_trust(monkeypatch)
    folder = weights
    if whole:
        folder = shutil.copytree(qwen, tmp_path / "whole")
        for name in ("card.yaml", PROVENANCE):
            shutil.copyfile(weights / name, folder / name)
    export_weights(folder, str(qwen), tmp_path / "out", trust=trust)
    assert {name for name, _ in told} == {"AutoConfig", "AutoProcessor", OPENED}
    assert {given for _, given in told} == {trust}


def test_nothing_is_overwritten(weights: Path, qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists") as error:
        export_weights(weights, str(qwen), tmp_path)
    assert str(error.value) == (
        f"--output {tmp_path} exists. Name a folder that does not, or remove it."
    )


def test_a_full_disk_is_seen_before_it_is_full(
    weights: Path, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="left") as error:
        export_weights(weights, str(qwen), output)
    assert str(error.value) == (
        f"--output {output} needs 0.0 GB, but the disk has 0.0 GB left. Make room, name a folder "
        "elsewhere, or set --dtype bfloat16."
    )
    assert not output.exists()


def test_a_folder_appears_whole_or_not_at_all(
    weights: Path, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rbft.commands.export_weights.model_card", fail)
        with pytest.raises(OSError, match="No space left"):
            export_weights(weights, str(qwen), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_weights(weights, str(qwen), tmp_path / "out")
    assert (tmp_path / "out/README.md").exists()


def head_of(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---")[1])


def test_the_threshold_goes_with_the_weights(weights: Path, half: Path, tmp_path: Path) -> None:
    sides: dict[str, Any] = {"n": 10, "positives": 4, "misses": 3, "false_alarms": 0}
    test = {"likeliest": sides, "threshold": {**sides, "misses": 1, "false_alarms": 2}}
    wanted = {"positive": "alarm", "miss": 9.0, "false_alarm": 1.0, "recall": None}
    content = {
        "weights": "abc",
        "wanted": wanted,
        "threshold": 0.123456,
        "decided": {"n": 20},
        "test": test,
    }
    file = weights.parent / "decision.json"
    write_json(file, content)
    export_weights(weights, str(half), tmp_path / "out", threshold=file)
    exported = fingerprint(str(tmp_path / "out"))
    own = {"weights": exported, "chosen_for": "abc"}
    assert read_json(tmp_path / "out/decision.json") == {**content, **own}
    assert find_decision(tmp_path / "out", exported) is not None
    assert (
        "## Threshold\n\nCall a clip 'alarm' from a probability of 0.1235 on (a miss costs 9, a "
        "false alarm 1), and else the likeliest of the other classes. The probability is that of "
        "the class word, normalised over the class words. The threshold was chosen on 20 "
        "validation clips; on the test split it misses 1 of 4 clips of 'alarm' (the likeliest "
        "class: 3) and raises 2 false alarms on 6 others (the likeliest class: 0). "
        "`decision.json` has all figures.\n"
    ) in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    file.unlink()


def test_the_model_card_says_what_a_reader_needs(weights: Path, half: Path) -> None:
    settings = {
        "stages": ["rationale", "label"],
        "seed_everything": 3,
        "model": {"learning_rate": 1e-4, "lora": {"rank": 4}, "quantize": None},
        "data": {"class_path": "yards.Yard", "init_args": {"fps": 1.0, "root": "/home/me/secret"}},
    }
    (weights.parents[1] / "settings.yaml").write_text(yaml.safe_dump(settings))
    results = {"n_expected": 7, "n_scored": 6, "classes": {"quiet": 4, "alarm": 2}}
    results["metrics"] = {"accuracy": 0.83333, "f1/quiet": 0.75, "f1/alarm": None, "n": 6.0}
    ends = {"accuracy": {"low": 0.4365, "high": 0.96994}, "f1/alarm": {"low": None, "high": None}}
    results["intervals"] = ends
    write_json(weights.parent / "test.json", results)

    text = model_card(weights, str(half), "bfloat16")
    assert head_of(text) == {
        "library_name": "transformers",
        "pipeline_tag": "video-text-to-text",
        "tags": ["rbft", "video-classification"],
        "license": "apache-2.0",
    }
    for expected in (
        "# yard_run\n",
        "(rationale-bootstrapped fine-tuning, stages rationale -> label) to classify videos into "
        "quiet (`normal`), alarm (`abnormal`).",
        "the answer is one of the class words (`card.yaml` holds all words):\n\n"
        "```text\nIs it normal or abnormal? [the clip's own text]\n```\n\n"
        "For `[the clip's own text]` stood what the benchmark knows of each clip, such as its "
        "title or transcript; for a clip without any, nothing, and no blanks at the prompt's "
        "end.\n",
        POSITION_RULE,
        '| data.class_path | "yards.Yard" |\n',
        "| data.init_args.fps | 1.0 |\n",
        '| model.lora | {"rank": 4} |\n',
        "| seed_everything | 3 |\n",
        "On 6 of 7 test clips (4 quiet, 2 alarm):\n",
        "| metric | value | 95 % interval |\n",
        "| accuracy | 0.8333 | 0.4365 to 0.9699 |\n",
        "| f1/quiet | 0.75 |  |\n",  # results of before the intervals
        "| f1/alarm | - |  |\n",
        "Weights in bfloat16. Libraries: rbft 0.1.0, torch ",
        "Revision of rbft: 1234.\n",
        "apache-2.0, which these weights are under as well.\n",
    ):
        assert expected in text, expected
    assert "/home/me" not in text
    assert "quantize" not in text
    assert str(half) not in text


@pytest.mark.parametrize(
    ("stage", "answer"),
    [
        ("label", "one of the class words"),
        ("rationale", "a rationale, not a class"),
        ("class_rationale", "one of the class words, and below it a rationale"),
        ("rationale_class", "a rationale, and below it one of the class words"),
    ],
)
@pytest.mark.parametrize("text", ["Title of the video: A door.\n\nIt opens.", ""])
def test_who_follows_the_model_card_asks_what_was_trained(
    weights: Path, qwen: Path, stage: str, answer: str, text: str
) -> None:
    card = Card(
        name="hall",
        persona="Guard",
        words={"quiet": "normal", "alarm": "abnormal", "unclear": "I cannot say"},
        prompts={
            "label": "Is it {words}?\n\nAnswer with {{one}} of them.\n{text}\n",
            "rationale": "You are a {persona}; describe it.\n```\n{text}\n```",
        },
    )
    card.save(weights / "card.yaml")
    note = json.loads((weights / PROVENANCE).read_text())
    write_json(weights / PROVENANCE, {**note, "stages": ["rationale", stage]})
    shown = model_card(weights, str(qwen), "float32")
    assert f"in one user turn; the answer is {answer} (`card" in shown
    found = re.search(r"\n(`{3,})text\n(.*?)\n\1\n", shown, re.DOTALL)
    assert found is not None
    prompt = found[2].replace("[the clip's own text]", text).strip()

    # As transformers asks it.
    processor: Any = AutoProcessor.from_pretrained(weights)
    content = [{"type": "video"}, {"type": "text", "text": prompt}]
    whole = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    # As it is trained.
    (example,) = examples(1)
    example = replace(example, clip=replace(example.clip, text=text))
    config, family = load_config(str(qwen))
    asked = STAGES[stage]
    make = Collator(load_processor(str(qwen)), config, family, card, asked, asked)
    ids = prompt_of(make([example])).input_ids[0].tolist()
    video = config.video_token_id
    place = ids.index(video)
    ids = [*ids[:place], *(token for token in ids[place:] if token != video)]
    ids.insert(place, video)
    assert processor.tokenizer(whole, add_special_tokens=False)["input_ids"] == ids


def test_the_model_card_without_a_run_around_it(weights: Path, qwen: Path) -> None:
    (weights.parents[2] / "settings.yaml").write_text("seed_everything: 3\n")  # not the run's
    text = model_card(weights, str(qwen), "float32")
    assert "No results of a test split stand beside these weights." in text
    assert "## Settings" not in text
    assert "license" not in head_of(text)
    assert "See the base model: its folder names none." in text


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        (
            "---\nlicense: other\nlicense_name: qwen\nlicense_link: https://x/LICENSE\n---\n",
            ("other", "qwen (https://x/LICENSE), which these weights are under as well."),
        ),
        ("# No head\nlicense: mit\n", (None, "See the base model: its folder names none.")),
        ("---\nlicense: [\n---\n", (None, "See the base model: its folder names none.")),
        ("---\n- a list\n---\n", (None, "See the base model: its folder names none.")),
    ],
)
def test_the_licence_of_the_base(tmp_path: Path, readme: str, expected: tuple[Any, str]) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert base_licence(str(tmp_path)) == expected


def test_a_base_on_the_hub_is_named(weights: Path) -> None:
    text = model_card(weights, "Qwen/Qwen2.5-VL-7B-Instruct", "bfloat16")
    assert head_of(text)["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_the_model_card_of_several_classes(weights: Path, half: Path) -> None:
    PETS.save(weights / "card.yaml")
    file = weights.parent / "decision.json"
    scores = {"half": {"f1/macro": 0.5}, "thresholds": {"f1/macro": 0.75}}
    chosen = {"cat": 0.25, "dog": 0.5, "bird": 0.125}
    write_json(file, {"weights": "x", "thresholds": chosen, "n": 7, "test": scores})
    text = model_card(weights, str(half), "float32", file)
    assert (
        "to classify videos into cat (`a cat`), dog (`dogs, large or small`), bird (`birds`), of"
        in text
    )
    assert "`birds`), of which a video may have several, or none." in text
    assert (
        "the answer is `abnormal` or `normal`. Ask once for each class, with its word in the place "
        "of `a cat` (`card.yaml` holds all words):\n\n```text\n[the clip's own text] Does it show "
        "a cat?\n```"
    ) in text
    assert "| dog | 0.5 |\n| bird | 0.125 |" in text
    assert (
        "greatest F1 on 7 validation clips; on the test split the macro F1 is 0.75 with them and "
        "0.5 with one half."
    ) in text
