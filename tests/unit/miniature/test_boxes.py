import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rbft.miniature import boxes
from rbft.miniature.boxes import true_boxes
from rbft.miniature.camera import SIZE, film
from rbft.miniature.scene import ACTIONS, GENERAL, TARGET, draw_scene
from rbft.miniature.world import make_clips

HIDDEN = {"subject": ("cat", "bear"), "object": ("bin", "bike")}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_hold_all_that_another_colour_changes_and_no_more(
    action: str, mirrored: bool
) -> None:
    drawn = draw_scene(np.random.default_rng(len(action)), GENERAL)
    scene = dataclasses.replace(drawn, action=action, mirrored=mirrored, weather="clear")
    scene = dataclasses.replace(scene, subject_colour="red", object_colour="red", night=False)
    for time in np.linspace(0, 1, 9).tolist():
        found = {box["label"]: box for box in true_boxes(scene, time)}
        for what in ("subject", "object"):
            other = dataclasses.replace(scene, **{f"{what}_colour": "green"})
            frames = [film(one, GENERAL, [time])[0].astype(int) for one in (scene, other)]
            rows, columns = np.nonzero(abs(frames[0] - frames[1]).sum(-1))
            box = found.get(getattr(scene, what))
            if box is None:
                assert not len(rows)
                continue
            edges = [float(box[name]) * SIZE for name in ("x1", "y1", "x2", "y2")]
            if not len(rows):
                continue  # behind the other one
            assert columns.min() >= edges[0] - 0.01
            assert rows.min() >= edges[1] - 0.01
            assert columns.max() + 1 <= edges[2] + 0.01
            assert rows.max() + 1 <= edges[3] + 0.01
            if what == "subject" and "carried" not in action and action not in ("takes away",):
                # In front: nothing of it is hidden.
                assert columns.max() + 1 == pytest.approx(edges[2], abs=0.01)
                assert rows.max() + 1 == pytest.approx(edges[3], abs=0.01)


def test_a_line_for_each_frame_of_the_files(tmp_path: Path, capsys) -> None:
    boxes.main([f"--output={tmp_path / 'boxes.jsonl'}", "--test=2", "--seed=3"])
    assert capsys.readouterr().out == f"Wrote the boxes of 48 frames to {tmp_path}/boxes.jsonl.\n"
    lines = [json.loads(line) for line in (tmp_path / "boxes.jsonl").read_text().splitlines()]
    clips = make_clips(tmp_path / "clips", sizes={"test": 2}, seed=3)
    rows = [json.loads(line) for line in (clips / "annotations.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows for _ in range(24)]
    assert [line["frame"] for line in lines] == [*range(24)] * 2
    names = {box["label"] for line in lines[:24] for box in line["boxes"]}
    assert names <= {rows[0]["factors"]["subject"], rows[0]["factors"]["object"]}
    assert names
    assert TARGET.name in lines[0]["id"]
