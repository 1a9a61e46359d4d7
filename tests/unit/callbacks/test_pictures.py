from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbft.callbacks.board import Board
from rbft.callbacks.pictures import FRAMES, INK, RIGHT, WRONG, Pictures, captioned, film_strip
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Damaged, Yard, fed, module, trainer
from tests.several import PETS, Pets, pet_module


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def text(events: EventAccumulator, name: str) -> str:
    return events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()


def pictures(**settings: int) -> Pictures:
    return Pictures("name: yard", {"run": "yard", "seed": 0}, **settings)


def logger(folder: Path) -> Board:
    return Board(folder, "yard", "label")


def image(events: EventAccumulator, name: str) -> np.ndarray:
    """Height x width x 3, RGB."""
    content = events.Images(name)[0].encoded_image_string
    return np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("frames", "shown"), [(3, [[0, 1, 2]]), (15, [[0, 2, 4, 6], [8, 10, 12, 14]])]
)
def test_a_film_strip(frames: int, shown: list[list[int]]) -> None:
    clip = torch.arange(frames, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 5)
    strip = film_strip(clip)
    assert sum(map(len, shown)) <= FRAMES
    # White lines of 2 pixels around every frame.
    assert strip.shape == (3, 2 + 6 * len(shown), 2 + 7 * len(shown[0]))
    assert strip[0, 2::6, 2::7].tolist() == shown
    assert strip[1, 5::6, 6::7].tolist() == shown
    assert (strip[:, :2] == 255).all()


def test_lines_stand_above_the_picture() -> None:
    """Legible however wide the picture is: TensorBoard shows all of them as wide."""
    heights = []
    for wide in (234, 1690):
        picture = torch.full((3, 20, wide), 7, dtype=torch.uint8)
        lines = [("a" * 200, INK), ("label: alarm", INK), ("prediction: quiet", WRONG)]
        found = captioned(picture, lines)
        assert (found[:, -20:] == 7).all()
        head = found[:, :-20].permute(1, 2, 0).int()
        rows = [int(row) for row in (head.amin((1, 2)) < 128).nonzero()[:, 0]]
        gaps = [one for one, other in pairwise(rows) if other - one > 2]
        assert len(gaps) >= 2  # three lines
        heights.append(head.shape[0] / wide)
        last = head[gaps[-1] + 1 :].reshape(-1, 3)
        assert (last[last.sum(1).argmin()] - torch.tensor(WRONG)).abs().max() < 40
        side = head[:, -wide // 100 :]
        assert (side == 255).all(), "what is too long is shortened"
    assert heights[1] == pytest.approx(heights[0], rel=0.25)


def test_what_is_shown_of_training(qwen: Path, tmp_path: Path) -> None:
    model = RBFTModule(str(qwen), CARD, stage="rationale_class", **MODULE_SETTINGS)
    yard = Yard(tmp_path / "card.yaml", {"train": 3})
    run = trainer(tmp_path, callbacks=[pictures(samples=2)], logger=logger(tmp_path))
    run.fit(model, fed(yard, model))
    events = read(tmp_path / "yard/label")
    assert events.Tags()["images"] == ["videos/train_0", "videos/train_1"]
    assert text(events, "settings") == "```yaml\nname: yard\n```"
    assert text(events, "videos/train_1") == (
        "**train_1**\n\nlabel: alarm\n\n"
        "asked: You are a Guard. Describe it.\nIs it normal or abnormal? Clip 1.\n\n"
        "to answer: A person walks on and on past the yard.\nabnormal"
    )
    assert {"loss/train", "train/grad_norm"} <= set(events.Tags()["scalars"])
    # 8 of the 10 frames, 84 x 56 pixels each, in two rows, below two lines of text.
    found = image(events, "videos/train_1")
    strip = film_strip(yard.reader.decode(yard.clips("train")[1]).frames)
    assert found.shape[1] == 4 * 56 + 10
    assert (found[-(2 * 84 + 6) :] == strip.permute(1, 2, 0).numpy()).all()
    assert found[: -(2 * 84 + 6)].min() < 100


@pytest.mark.parametrize("answer", ["score", "generate"])
def test_what_is_shown_of_a_scored_split(qwen: Path, tmp_path: Path, answer: str) -> None:
    model: Any = module(qwen, answer=answer)
    model.trained_steps = 7
    yard = Yard(tmp_path / "card.yaml", {"test": 6}, eval_batch_size=2)
    run = trainer(tmp_path, callbacks=[pictures()], logger=logger(tmp_path))
    (values,) = run.test(model, fed(yard, model), verbose=False)
    events = read(tmp_path / "yard/label")
    shown = [f"videos/test_{n}" for n in range(4)]
    assert sorted(events.Tags()["images"]) == ["test/confusion", *shown]
    said = text(events, "videos/test_1")
    assert said.startswith("**test_1**\n\nlabel: alarm\n\nprediction: ")
    assert ("%)" in said) == (answer == "score")
    scalars = events.Tags()["scalars"]
    assert events.Scalars("accuracy/test")[0].value == pytest.approx(values["test/accuracy"])
    # Where the curves of training end; a new Trainer's own count, 0, would also undo `epoch`.
    assert {event.step for name in scalars for event in events.Scalars(name)} == {7}
    assert {event.step for event in events.Images("test/confusion")} == {7}
    assert not {"epoch", "train/epoch"} & set(scalars)
    assert {f"test/f1/{name}" for name in CARD.classes} <= set(scalars)
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.parametrize("right", [True, False])
def test_an_answer_is_green_where_it_is_right_and_red_where_it_is_wrong(
    qwen: Path, tmp_path: Path, right: bool
) -> None:
    yard = Yard(tmp_path / "card.yaml", {"test": 1})
    (clip,) = yard.clips("test")
    shower = pictures()
    run = trainer(tmp_path, callbacks=[shower], logger=logger(tmp_path))

    class Answer(Callback):
        """Has the model say what it should."""

        def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            assert clip.label is not None
            found = clip.label if right else 1 - clip.label
            shower.answers[0] = (clip, right, CARD.classes[found], "")

    run.callbacks.append(Answer())  # type: ignore[attr-defined]
    model = module(qwen)
    run.test(model, fed(yard, model), verbose=False)
    found = image(read(tmp_path / "yard/label"), "videos/test_0")
    strip = film_strip(yard.reader.decode(clip).frames)
    head = found[: -strip.shape[1]].reshape(-1, 3)
    wanted, other = (RIGHT, WRONG) if right else (WRONG, RIGHT)
    apart = [abs(head - np.array(colour)).max(1).min() for colour in (wanted, other)]
    assert apart[0] < 40 < apart[1]


def test_of_an_undecodable_clip_the_error_is_shown(qwen: Path, tmp_path: Path) -> None:
    yard = Damaged(tmp_path / "card.yaml", {"test": 2}, damaged=["test_1"])
    run = trainer(tmp_path, callbacks=[pictures()], logger=logger(tmp_path))
    model = module(qwen)
    run.test(model, fed(yard, model), verbose=False)
    events = read(tmp_path / "yard/label")
    assert sorted(events.Tags()["images"]) == ["test/confusion", "videos/test_0"]
    said = text(events, "videos/test_1")
    assert said == (
        "**test_1**\n\nlabel: alarm\n\nprediction: no class\n\n\n\nVideo test_1.mp4 is damaged."
    )


def test_nothing_is_shown_without_tensorboard(qwen: Path, tmp_path: Path) -> None:
    yard = Yard(tmp_path / "card.yaml", {"train": 2, "test": 2})
    run = trainer(tmp_path, callbacks=[pictures()])
    model = RBFTModule(str(qwen), CARD, stage="label", **MODULE_SETTINGS)
    run.fit(model, fed(yard, model))
    run.test(model, fed(yard, model), verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["card.yaml"]


def test_clips_with_several_classes(qwen: Path, tmp_path: Path) -> None:
    """All classes and what was said of them; there is no confusion matrix."""
    yard = Pets(tmp_path, {"test": 4, "train": 2})
    shower, board = pictures(), logger(tmp_path)
    run = trainer(tmp_path, callbacks=[shower], logger=board)
    model = pet_module(qwen)
    run.test(model, fed(yard, model), verbose=False)
    shower.on_train_start(run, model)
    board.save()
    found = read(tmp_path / "yard/label")
    assert "test/confusion" not in found.Tags()["images"]
    said = [text(found, f"videos/test_{n}") for n in range(4)]
    wanted = ["none of the classes", "cat", "dog", "cat, dog"]
    for one, label in zip(said, wanted, strict=True):
        assert f"\n\nlabel: {label}\n\nprediction: " in one
    rights = [shower.answers[n][1] for n in range(4)]
    answers = [shower.answers[n][2] for n in range(4)]
    assert rights == [one == label for one, label in zip(answers, wanted, strict=True)]
    taught = text(found, "videos/train_1")
    for word, answer in zip(PETS.words.values(), ("abnormal", "normal", "normal"), strict=True):
        assert f"asked: Clip 1. Does it show {word}?\n\nto answer: {answer}" in taught
