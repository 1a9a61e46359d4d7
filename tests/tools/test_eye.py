import dataclasses

import numpy as np
import torch

from rbft.miniature.scene import GENERAL, draw_scene
from tests.unit.miniature.test_scene import SCENE
from tools.miniature_base import eye


def test_cell_labels_as_literals():
    # The bear's left edge is at -14, the bin's at 42: half a bear in the first cell, half a bin in
    # the second and a third of one in the last.
    bear, black, bin_, red, upright = 4, 6, 2, 1, 1
    assert eye.cell_labels(SCENE, 0.0).tolist() == [
        [2, bear, black, 0, 0, 0, 0],
        [0, 0, 0, 5, bin_, red, upright],
        [0, 0, 0, 1, -100, -100, -100],
    ]
    mirrored = dataclasses.replace(SCENE, mirrored=True)
    assert eye.cell_labels(mirrored, 0.0)[2].tolist() == [6, bear, black, 0, 0, 0, 0]


def test_labels_stay_within_their_heads():
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = draw_scene(rng, GENERAL)
        labels = eye.cell_labels(scene, rng.random())
        assert (labels < torch.tensor(eye.FRAME_HEADS)).all()
        assert (eye.pair_labels(scene) < torch.tensor(eye.PAIR_HEADS)).all()
