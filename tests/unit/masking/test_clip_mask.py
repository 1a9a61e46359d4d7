import re
from dataclasses import replace

import numpy as np
import pytest

from rbft.masking.boxes import Box
from rbft.masking.clip_mask import ClipMask
from rbft.masking.fill import GREY

BOXES = {0: (Box(0.0, 0.0, 0.5, 0.5, "dog"),), 3: (), 6: (Box(0.5, 0.5, 1.0, 1.0, "dog"),)}
MASK = ClipMask("clip", BOXES, "objects", "constant")
WHITE = np.full((8, 8, 3), 255, dtype=np.uint8)


def test_objects_are_masked_in_their_own_frames() -> None:
    painter = MASK.painter([0, 3, 6, 6], (2, 2))
    grey = [painter(frame, WHITE)[..., 0] == GREY for frame in (0, 3, 6, 6)]
    assert [one.sum() for one in grey] == [16, 0, 16, 16]
    assert grey[0][:4, :4].all()
    assert grey[3][4:, 4:].all()
    assert painter.report == {
        "frames": 4,
        "shapes": 3,
        "empty": 1,
        "pixels": 256,
        "objects": 48,
        "masked": 48,
        "overlap": 48,
    }


def test_the_control_masks_as_much_elsewhere() -> None:
    painter = replace(MASK, kind="random").painter([0, 3, 6, 6], (2, 2))
    grey = [painter(frame, WHITE)[..., 0] == GREY for frame in (0, 3, 6, 6)]
    assert [one.sum() for one in grey] == [16, 0, 16, 16]
    assert not grey[0][:4, :4].any()
    assert (grey[2] == grey[3]).all()  # a frame that is shown twice has one mask
    assert (painter.report["masked"], painter.report["overlap"]) == (48, 0)


def test_the_key_is_of_all_that_is_drawn() -> None:
    key = MASK.key
    assert replace(MASK, clip="other", repeat=3, seed=2).key == key  # nothing of it is drawn
    others = [
        replace(MASK, fill="blur").key,
        replace(MASK, boxes={**BOXES, 3: (Box(0.0, 0.0, 0.5, 0.25),)}).key,
        *(
            replace(MASK, kind="random", **more).key
            for more in ({}, {"clip": "other"}, {"repeat": 1}, {"seed": 1})
        ),
    ]
    assert len({str(one) for one in (key, *others)}) == 7


def test_frames_that_nobody_looked_at_are_an_error() -> None:
    message = (
        "The box file (data.masking.boxes) has no line about 2 of the 4 frames of clip clip "
        "(first: 2). Boxes are found in the frames that the model sees: run python -m rbft mask "
        "with the same data settings as this."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        MASK.painter([0, 2, 2, 3, 5], (2, 2))
