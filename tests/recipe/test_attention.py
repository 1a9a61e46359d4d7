"""`python -m rbft attention` as docs/attention.md shows it: killed, whole, refused."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from rbft.backbone.loading import load_config, load_processor
from rbft.card import Card
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.commands import attention_maps
from rbft.data.clip_reader import ClipReader
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.miniature.world import cache_folder
from rbft.stages import LABEL
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import VideoError, decode_video
from tests.recipe.killing import run
from tests.recipe.runs import LOGS, ROOT, command_blocks, rbft, read_json, read_lines

pytestmark = pytest.mark.recipe
DOCS = (ROOT / "docs/attention.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in command_blocks(DOCS)[0].replace("\\\n", "").splitlines()]
SMALL = ("--data.train_size=6", "--data.test_size=4", "--data.num_workers=0")
CLIPS = ["target-test-0000", "target-test-0003"]
RUNS = ["miniature_direct", "miniature"]
OUTPUT = LOGS / "attention/miniature_direct-miniature"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Two runs of one step; the second is the first with noise in its weights."""
    made = tmp_path_factory.mktemp("attention")
    for name in ("experiments", "rbft"):
        (made / name).symlink_to(ROOT / name)
    quick = ("--trainer.max_epochs=1", "--trainer.enable_progress_bar=false")
    rbft(made, *COMMANDS[0][3:], *SMALL, *quick, "--score_each_stage=false")
    assert COMMANDS[1][3:] == ["fit", "--config", "experiments/miniature.yaml"]
    ours = made / LOGS / RUNS[1]
    shutil.copytree(made / LOGS / RUNS[0], ours)
    weights = ours / "label/weights/model.safetensors"
    state = {name: held.clone() for name, held in load_file(weights).items()}
    generator = torch.Generator().manual_seed(0)
    for name, held in state.items():
        if "self_attn.k_proj.weight" in name:
            held += 0.05 * torch.randn(held.shape, generator=generator)
    save_file(state, weights, {"format": "pt"})
    rbft(made, *COMMANDS[2][3:], *SMALL)
    return made


def refusal(folder: Path, capsys: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        rbft(folder, "attention", *arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.rstrip().removeprefix("error: ").rpartition("\r")[2]


@pytest.mark.long
def test_the_command_of_the_docs(folder, capsys, monkeypatch):
    options = COMMANDS[3][4:]
    # Killed as it writes the second map of the first run; each is opened, then renamed.
    assert run(folder, options, "maps/miniature_direct-*.part", 3, command="attention") == -9
    first = [*(folder / OUTPUT / "maps").glob("miniature_direct-*/*.json")]
    assert len(first) == 1
    before = first[0].read_bytes()

    passes: list[tuple[str, list[str]]] = []
    own = attention_maps.build

    def watched(*args: Any, **given: Any) -> Any:
        passes.append((args[3], [clip.id for clip in given["feed"]["predict_clips"]]))
        return own(*args, **given)

    monkeypatch.setattr(attention_maps, "build", watched)
    capsys.readouterr()
    rbft(folder, "attention", *options)
    shown = capsys.readouterr().out
    done = first[0].stem
    (left,) = {*CLIPS} - {done}
    assert passes == [
        ("Reading 1 maps of miniature_direct", [left]),
        ("Reading 2 maps of miniature_direct (redrawn)", CLIPS),
        ("Reading 2 maps of miniature", CLIPS),
        ("Reading 2 maps of miniature (redrawn)", CLIPS),
    ]
    assert first[0].read_bytes() == before
    passes.clear()
    rbft(folder, "attention", *options)  # all is there
    assert passes == []
    assert capsys.readouterr().out == shown

    assert "mean over heads and layers 2, 3 of 4 (middle_to_late; counted from 0)." in shown
    lines = shown.splitlines()
    assert max(map(len, lines[1:18])) <= 80
    assert [line.split("  ")[0] for line in lines[4:18:2]] == [
        "a", "a redrawn", "a shuffled", "b", "b redrawn", "b shuffled", "b - a"
    ]  # fmt: skip
    found = read_json(folder / OUTPUT / "attention.json")
    assert found["runs"] == RUNS
    check_maps(folder, found)
    check_scores(folder, found)
    check_pictures(folder, found)


def check_maps(folder: Path, found: dict[str, Any]) -> None:
    """Maps and answers against eager attention, and against what `fit` has scored."""
    scored = {
        one["id"]: one
        for one in read_lines(folder / LOGS / "miniature_direct/label/test_predictions.jsonl")
    }
    for clip in found["clips"]:
        answer = clip["predictions"]["miniature_direct"]
        assert clip["label"] == scored[clip["id"]]["label"]
        assert answer["prediction"] == scored[clip["id"]]["prediction"]
        assert answer["probabilities"] == pytest.approx(
            scored[clip["id"]]["probabilities"], abs=1e-5
        )
    for name in RUNS:
        model = AutoModelForImageTextToText.from_pretrained(
            folder / LOGS / name / "label/weights", attn_implementation="eager"
        )
        for clip in CLIPS:
            (file,) = (folder / OUTPUT / "maps").glob(f"{name}-*/{clip}.json")
            record = read_json(file)
            expected = eager_map(model, folder / LOGS / name / "label/weights", record)
            np.testing.assert_allclose(record["map"], expected, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def eager_map(model: Any, weights: Path, record: dict[str, Any]) -> np.ndarray:
    """The mean over heads and layers 2 and 3, by transformers alone but for the positions."""
    (file,) = cache_folder().glob(f"*-seed0-6-0-4-*/{record['id']}.mp4")
    frames = FrameSettings(fps=1.0, min_pixels=784, max_pixels=7056)
    video = decode_video(file, frames)
    assert video.indices == record["frames"]
    config, family = load_config(str(weights))
    make = Collator(
        load_processor(str(weights)), config, family, Card.load(weights / "card.yaml"),
        prompt_stage=LABEL, packing=True,
    )  # fmt: skip
    batch = make([Example(Clip("a", file, 0, "test"), video, None, SampleSlot(0))])
    assert batch.prompt is not None
    prompt = batch.prompt
    out = model(
        input_ids=prompt.input_ids,
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        use_cache=False,
        output_attentions=True,
        **batch.video,
    )
    row = torch.stack([out.attentions[layer][0, :, -1].mean(0) for layer in (2, 3)]).mean(0)
    seen = row[prompt.input_ids[0] == config.video_token_id]
    return (seen / seen.sum()).view(3, 3, 3).numpy()


def check_scores(folder: Path, found: dict[str, Any]) -> None:
    """Mass and lift from boxes drawn pixel by pixel, means, differences, controls."""
    truth: dict[str, dict[int, np.ndarray]] = {}
    for line in read_lines(folder / LOGS / "boxes/miniature.jsonl"):
        pixels = np.zeros((84, 84))
        for box in line["boxes"]:
            left, top, right, bottom = (round(84 * edge) for edge in box[:4])
            pixels[top:bottom, left:right] = 1
        truth.setdefault(line["id"], {})[line["frame"]] = pixels
    names = [*RUNS, *(f"{run} ({what})" for run in RUNS for what in ("redrawn", "shuffled"))]
    assert sorted(found["scores"]) == sorted(names)
    for clip in found["clips"]:
        assert sorted(clip["scores"]) == sorted(names)
        for run_name in RUNS:
            (file,) = (folder / OUTPUT / "maps").glob(f"{run_name}-*/{clip['id']}.json")
            record, scores = read_json(file), clip["scores"][run_name]
            covered = np.array(
                [
                    truth[clip["id"]][n].reshape(3, 28, 3, 28).mean(axis=(1, 3))
                    for n in record["frames"]
                ]
            )
            covered = covered.reshape(3, 2, 3, 3).mean(axis=1)
            mass = float((np.array(record["map"]) * covered).sum())
            assert scores["mass"] == pytest.approx(mass, rel=1e-4)
            assert scores["lift"] == pytest.approx(mass / covered.mean(), rel=1e-4)
            assert scores["drop"] == pytest.approx(
                scores["drop_top"] - scores["drop_random"], abs=1e-5
            )
    for name in names:
        for score, mean in found["scores"][name].items():
            values = [clip["scores"][name][score] for clip in found["clips"]]
            assert mean["n"] == 2
            assert mean["mean"] == pytest.approx(np.mean(values))
            assert mean["interval"]["low"] == pytest.approx(min(values))
            assert mean["interval"]["high"] == pytest.approx(max(values))
        if "redrawn" in name:  # random weights look at everything alike
            assert found["scores"][name]["entropy"]["mean"] > 0.999
            assert found["scores"][name]["lift"]["mean"] == pytest.approx(1, abs=0.05)
    (between, *others) = found["differences"]
    assert (between["a"], between["b"]) == ("miniature", "miniature_direct")
    assert [one["b"] for one in others] == [name for run in RUNS for name in found["controls"][run]]
    for score, one in between["scores"].items():
        apart = [found["scores"][run][score]["mean"] for run in ("miniature", "miniature_direct")]
        assert one["mean"] == pytest.approx(apart[0] - apart[1], abs=1e-9)


def check_pictures(folder: Path, found: dict[str, Any]) -> None:
    """Every file is there and shows what differs: runs, and times."""
    for clip in found["clips"]:
        strips = {run: folder / OUTPUT / clip["strips"][run] for run in RUNS}
        pictures = {run: np.asarray(Image.open(file)) for run, file in strips.items()}
        shapes = {run: picture.shape for run, picture in pictures.items()}
        # Six frames of 168 pixels, and the colour bar.
        assert shapes["miniature"][1] == 16 * 2 + 6 * 176 - 8 + 14 + 64
        assert not np.array_equal(pictures["miniature"][70:], pictures["miniature_direct"][70:])
        with Image.open(folder / OUTPUT / clip["figure"]) as figure:
            assert figure.height > 2 * shapes["miniature"][0]
        with av.open(str(folder / OUTPUT / clip["film"])) as container:
            assert sum(1 for _ in container.decode(video=0)) == 6


def test_what_is_refused_before_a_model_is_loaded(folder, capsys, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)
    ours = f"--runs=[{', '.join(RUNS)}]"
    message = refusal(folder, capsys, "--runs=[miniatur]")
    assert message.startswith("--runs names 'miniatur', which is no run under lightning_logs")
    message = refusal(folder, capsys, ours, "--clips=[target-test-003]")
    assert message.startswith(
        "--clips names target-test-003, which miniature0 does not have. Its ids nearest to "
        "target-test-003 are target-test-0003, "
    )
    message = refusal(folder, capsys, ours, "--layers=[7]")
    assert message == "--layers names 7, but the decoder has the layers 0 to 3."
    message = refusal(folder, capsys, ours, "--boxes=none.jsonl")
    assert message == "--boxes none.jsonl cannot be read: No such file or directory."
    message = refusal(folder, capsys, ours, "--kind=sum")
    assert message == "kind is 'sum'; allowed is 'mean', 'relative', 'rollout'."


def test_a_clip_that_cannot_be_decoded(folder, tmp_path, capsys, monkeypatch):
    own = ClipReader.decode

    def damaged(self: ClipReader, clip: Any) -> Any:
        if clip.id == "target-test-0001":
            raise VideoError.of(clip.path, "is damaged.")
        return own(self, clip)

    monkeypatch.setattr(ClipReader, "decode", damaged)
    ours = ("--runs=[miniature]", "--name=damaged", "--controls=[]", "--masked_share=0")
    message = refusal(folder, capsys, *ours, "--clips=[target-test-0000, target-test-0001]")
    assert message.startswith("Clip target-test-0001 cannot be decoded: ")
    assert message.endswith("is damaged. Leave out of --clips: target-test-0001.")
    # Of all test clips it is left out, with a sentence.
    rbft(folder, "attention", *ours, "--pictures=1", "--kind=relative", "--layers=all")
    shown = capsys.readouterr().out
    assert (
        "3 clips. Attention of the prompt's last token, mean over heads and layers 0 to 3 of "
        '4 (all; counted from 0), divided by the same of the prompt "Describe the video.".\n'
        in shown
    )
    assert "1 clips cannot be decoded and are left out (first: Clip target-test-0001" in shown
    assert "No --boxes were given: mass, lift," in shown
    found = read_json(folder / LOGS / "attention/damaged/attention.json")
    assert [clip["id"][-1] for clip in found["clips"]] == ["0", "2", "3"]
    assert [("figure" in clip) for clip in found["clips"]] == [True, False, False]
    assert [list(clip["strips"]) for clip in found["clips"]] == [["miniature"], [], []]
    assert {*found["scores"]["miniature"]} == {"entropy", "video_share"}
