"""Scalars out of event files, against TensorBoard's own reader; damaged files."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbft.report.curves import read_curves, thinned
from tests.report_runs import write_curves


def test_the_scalars_are_those_that_tensorboard_reads(tmp_path: Path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(0, 30, 3):
            writer.add_scalar("train/loss", 1 / (step + 1), step)
            writer.add_scalar("val/accuracy", step / 30, step, new_style=True)
        writer.add_text("settings", "no scalar", 0)
    curves, problems = read_curves(list(tmp_path.glob("events*")))
    assert problems == []
    theirs = EventAccumulator(str(tmp_path)).Reload()
    for tag in ("train/loss", "val/accuracy"):
        kind = theirs.Scalars if tag in theirs.Tags()["scalars"] else theirs.Tensors
        if kind == theirs.Tensors:
            expected = [(one.step, one.tensor_proto.float_val[0]) for one in kind(tag)]
        else:
            expected = [(one.step, one.value) for one in kind(tag)]
        assert list(curves[tag]) == [(step, pytest.approx(value)) for step, value in expected]
        assert len(expected) == 10
    assert set(curves) == {"train/loss", "val/accuracy"}


def test_curves_are_found_by_the_names_of_their_metrics(tmp_path: Path):
    """TensorBoard has some of them the other way round."""
    points = [(1, 0.5), (2, 0.25)]
    write_curves(tmp_path, dict.fromkeys(("loss/train", "accuracy/val", "val/f1/macro"), points))
    curves, _ = read_curves(list(tmp_path.glob("events*")))
    assert set(curves) == {"train/loss", "val/accuracy", "val/f1/macro"}
    assert curves["train/loss"] == tuple(points)


def test_of_a_stage_that_was_resumed_the_later_points_count(tmp_path: Path):
    write_curves(tmp_path, {"train/loss": [(1, 0.9), (2, 0.8), (3, 0.7)]})
    write_curves(tmp_path, {"train/loss": [(3, 0.6), (2, 0.5), (4, 0.4)]})
    curves, _ = read_curves(list(tmp_path.glob("events*")))
    shown = {step: round(value, 3) for step, value in curves["train/loss"]}
    assert shown == {1: 0.9, 2: 0.5, 3: 0.6, 4: 0.4}
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4]


def test_of_a_file_that_was_cut_off_the_points_before_are_kept(tmp_path: Path):
    file = write_curves(tmp_path, {"train/loss": [(1, 0.9), (2, 0.8)]})
    whole = file.read_bytes()
    for end in (len(whole) - 3, len(whole) - 20):
        file.write_bytes(whole[:end])
        curves, problems = read_curves([file])
        assert next(step for step, _ in curves["train/loss"]) == 1
        if end < len(whole) - 4:
            assert problems == [
                f"{file.name}: ends in the middle of a record; what stands before is shown."
            ]
    file.write_bytes(whole + (5).to_bytes(8, "little") + b"\0" * 4 + b"\xff" * 9)
    curves, problems = read_curves([file])
    assert len(curves["train/loss"]) == 2
    assert problems == [
        f"{file.name}: is damaged: a record is no event; what stands before is shown."
    ]
    file.write_bytes(b"no event file at all")
    curves, problems = read_curves([file])
    assert not curves
    assert len(problems) == 1


@pytest.mark.parametrize("most", [2, 5, 7])
def test_a_thinned_curve_keeps_its_ends(most: int):
    curve = tuple((step, float(step)) for step in range(23))
    made = thinned(curve, most)
    assert len(made) == most
    assert (made[0], made[-1]) == (curve[0], curve[-1])
    assert list(made) == sorted(set(made))
    assert thinned(curve, 23) == curve
