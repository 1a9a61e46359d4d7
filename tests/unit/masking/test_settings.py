import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rbft.masking.box_file import BoxFile
from rbft.masking.boxes import Box
from rbft.masking.settings import Masking, Masks, summarise

BOX = Box(0.0, 0.0, 0.5, 0.5, "dog")
FRAMES = {"fps": 1.0, "min_frames": 4}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = BoxFile(tmp_path / "yard.jsonl", {"localiser": "truth", "frames": FRAMES})
    rows = [("a", 0, [BOX.as_list()]), ("a", 5, []), ("b", 0, [])]
    file.append({"id": n, "video": f"v{n}", "frame": f, "boxes": own} for n, f, own in rows)
    lost = {"id": "c", "video": "vc", "frame": None, "boxes": [], "error": "is damaged"}
    file.append([lost])
    file.merge(["a"])
    return file.path


def test_objects_are_scored_once_and_each_draw_of_the_control(path: Path) -> None:
    assert [one.name for one in Masking(path).each] == ["objects"]
    control = Masking(path, "random", repeats=3)
    assert [one.name for one in control.each] == ["random0", "random1", "random2"]
    assert [one.name for one in Masking(path, "random", repeat=4).each] == ["random4"]
    assert Masking(path, repeat=4).each == [Masking(path)]


def test_impossible_settings_are_errors(path: Path) -> None:
    for wrong, said in (
        ({"repeats": 0}, "data.masking.repeats (0) must be 1 or more."),
        ({"seed": -1}, "data.masking.seed (-1) must be from 0 to 4294967295."),
        ({"repeat": -1}, "data.masking.repeat (-1) must be 0 or more; draws are counted from 0;"),
        (
            {"repeat": 5},
            "data.masking.repeat (5) must be below data.masking.repeats (5); draws are counted "
            "from 0.",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            replace(Masking(path, "random"), **wrong)


def test_without_a_box_file_nothing_can_be_masked() -> None:
    message = (
        "data.masking needs data.masking.boxes, the box file that python -m rbft mask leaves. Add "
        "--data.masking.boxes FILE."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Masking(kind="random")


def test_boxes_and_settings_determine_a_result(path: Path) -> None:
    one = Masks(Masking(path)).determining(["va", "vb"])
    assert one == {"kind": "objects", "boxes": one["boxes"], "fill": "constant"}
    assert Masks(Masking(path, repeats=9, seed=3)).determining(["vb", "va", "va"]) == one
    control = Masks(Masking(path, "random", repeat=2, seed=1)).determining(["va", "vb"])
    assert control == {**one, "kind": "random", "repeat": 2, "seed": 1}
    assert Masks(Masking(path)).determining(["va"])["boxes"] != one["boxes"]
    mask = Masks(Masking(path, "random", "blur", repeat=2, seed=1)).of("a", "va")
    assert (mask.clip, mask.kind, mask.fill, mask.repeat, mask.seed) == (
        "a",
        "random",
        "blur",
        2,
        1,
    )
    assert mask.boxes == {0: (BOX,), 5: ()}


def test_clips_without_boxes_are_refused_before_a_model_is_loaded(path: Path) -> None:
    masks = Masks(Masking(path))
    masks.check({"a": "va", "b": "vb", "c": "vc"}, "test", FRAMES)  # c cannot be decoded
    message = (
        f"The box file {path} has no boxes of 4 of the 5 val clips (first: d, e, f). Run python "
        "-m rbft mask with the same --config and --split val; it goes on where it stopped."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        masks.check({"a": "va", **{name: f"v{name}" for name in "defg"}}, "val", FRAMES)
    message = (
        f"The boxes in {path} were found in other frames than those that are scored (fps: 1.0 -> "
        "2.0). Set data to what it was, or run python -m rbft mask with another --output."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        masks.check({"a": "va"}, "test", {**FRAMES, "fps": 2.0, "max_pixels": 784})
    masks.check({"a": "va"}, "test", {**FRAMES, "max_pixels": 784})  # boxes are shares of a frame
    path.with_suffix(".provenance.json").unlink()
    Masks(Masking(path)).check({"a": "va"}, "test", {"fps": 2.0})  # a file of the user's own
    message = (
        f"The box file {path.parent / 'none.jsonl'} (data.masking.boxes) does not exist. Have it "
        "written: python -m rbft mask with the same --config."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Masks(Masking(path.parent / "none.jsonl")).check({"a": "va"}, "test", FRAMES)


def test_what_was_masked_in_a_split() -> None:
    reports = [
        ("a", {"frames": 2, "shapes": 2, "pixels": 100, "objects": 10, "masked": 10, "overlap": 0}),
        (
            "b",
            {
                "frames": 4,
                "cells": 2,
                "short": 1,
                "empty": 1,
                "pixels": 200,
                "objects": 110,
                "masked": 90,
                "overlap": 5,
            },
        ),
        ("c", {"frames": 1, "empty": 1, "pixels": 50, "objects": 0, "masked": 0, "overlap": 0}),
    ]
    found = summarise(reports)
    assert json.loads(json.dumps(found)) == found
    assert found == {
        "area": round((0.1 + 0.45 + 0) / 3, 6),
        "objects_area": round((0.1 + 0.55 + 0) / 3, 6),
        "area_ratio": round(100 / 120, 6),
        "overlap": 0.05,
        "clips_masked": 2,
        "frames": {"empty": 2, "shapes": 2, "cells": 2, "short": 1},
        "unmatched": ["b"],
    }
    nothing = summarise([])
    assert (nothing["area"], nothing["area_ratio"], nothing["unmatched"]) == (None, None, [])
