from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbft.callbacks.pictures import FRAMES, Pictures, film_strip
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Damaged, Yard, fed, module, trainer


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def text(events: EventAccumulator, name: str) -> str:
    return events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()


def pictures(**settings: int) -> Pictures:
    return Pictures("name: yard", {"run": "yard", "seed": 0}, **settings)


def logger(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, "yard", "label", default_hp_metric=False)


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


def test_what_is_shown_of_training(qwen: Path, tmp_path: Path) -> None:
    model = RBFTModule(str(qwen), CARD, stage="rationale_class", **MODULE_SETTINGS)
    yard = Yard(tmp_path / "card.yaml", {"train": 3})
    run = trainer(tmp_path, callbacks=[pictures(samples=2)], logger=logger(tmp_path))
    run.fit(model, fed(yard, model))
    events = read(tmp_path / "yard/label")
    assert events.Tags()["images"] == ["learnt/clip_0", "learnt/clip_1"]
    assert text(events, "settings") == "```yaml\nname: yard\n```"
    assert text(events, "learnt/clip_1") == (
        "**train_1**\n\nasked: You are a Guard. Describe it.\nIs it normal or abnormal? Clip 1.\n\n"
        "to answer: A person walks on and on past the yard.\nabnormal"
    )
    assert {"train/loss", "train/grad_norm"} <= set(events.Tags()["scalars"])
    # 8 of the 10 frames, 84 x 56 pixels each, in two rows.
    image = events.Images("learnt/clip_1")[0]
    assert (image.height, image.width) == (2 * 84 + 6, 4 * 56 + 10)


@pytest.mark.parametrize("answer", ["score", "generate"])
def test_what_is_shown_of_a_scored_split(qwen: Path, tmp_path: Path, answer: str) -> None:
    model: Any = module(qwen, answer=answer)
    model.trained_steps = 7
    yard = Yard(tmp_path / "card.yaml", {"test": 6}, eval_batch_size=2)
    run = trainer(tmp_path, callbacks=[pictures()], logger=logger(tmp_path))
    (values,) = run.test(model, fed(yard, model), verbose=False)
    events = read(tmp_path / "yard/label")
    shown = [f"test/clip_{n}" for n in range(4)]
    assert sorted(events.Tags()["images"]) == [*shown, "test/confusion"]
    said = text(events, "test/clip_1")
    assert said.startswith("**test_1**\n\nlabel: alarm\n\nprediction: ")
    assert ("%)" in said) == (answer == "score")
    scalars = events.Tags()["scalars"]
    assert events.Scalars("test/accuracy")[0].value == pytest.approx(values["test/accuracy"])
    # Where the curves of training end; a new Trainer's own count, 0, would also undo `epoch`.
    assert {event.step for name in scalars for event in events.Scalars(name)} == {7}
    assert {event.step for event in events.Images("test/confusion")} == {7}
    assert "epoch" not in scalars
    assert {f"test/f1/{name}" for name in CARD.classes} <= set(scalars)
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_of_an_undecodable_clip_the_error_is_shown(qwen: Path, tmp_path: Path) -> None:
    yard = Damaged(tmp_path / "card.yaml", {"test": 2}, damaged=["test_1"])
    run = trainer(tmp_path, callbacks=[pictures()], logger=logger(tmp_path))
    model = module(qwen)
    run.test(model, fed(yard, model), verbose=False)
    events = read(tmp_path / "yard/label")
    assert sorted(events.Tags()["images"]) == ["test/clip_0", "test/confusion"]
    said = text(events, "test/clip_1")
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
