import dataclasses

import numpy as np
import pytest

from rbft.miniature.scene import ACTIONS, GENERAL, TARGET, Scene, draw_scene, is_abnormal, pose

SCENE = Scene(
    subject="bear",
    subject_colour="black",
    object="bin",
    object_colour="red",
    action="knocks over",
    place="yard",
    night=True,
    weather="rain",
    mirrored=False,
    object_x=42,
    delay=0.0,
    seed=7,
)


@pytest.mark.parametrize(
    ("subject", "action", "night", "abnormal"),
    [
        ("bear", "walks past", True, False),
        ("bear", "waits beside", False, True),
        ("raccoon", "drops off", False, True),
        ("raccoon", "walks past", False, False),
        ("dog", "knocks over", True, False),
        ("cat", "takes away", True, False),
        ("person", "takes away", False, True),
        ("person", "knocks over", False, True),
        ("person", "waits beside", True, True),
        ("person", "waits beside", False, False),
        ("person", "approaches", True, True),
        ("person", "drops off", True, False),
        ("person", "walks past", True, False),
        ("car", "takes away", True, False),
        ("car", "knocks over", False, True),
        ("car", "approaches", True, True),
        ("car", "approaches", False, False),
    ],
)
def test_target_rule(subject, action, night, abnormal):
    scene = dataclasses.replace(SCENE, subject=subject, action=action, night=night)
    assert is_abnormal(scene) is abnormal


def test_about_55_percent_of_the_target_domain_are_abnormal():
    rng = np.random.default_rng(0)
    share = np.mean([is_abnormal(draw_scene(rng, TARGET)) for _ in range(2000)])
    assert share == pytest.approx(0.55, abs=0.03)


def test_scenes_are_a_function_of_the_seed():
    first, again, other = (
        [draw_scene(np.random.default_rng(seed), GENERAL) for _ in range(3)] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("action", "subject_x", "states"),
    [
        ("walks past", [-14, 28, 70], ["upright", "upright", "upright"]),
        ("approaches", [-14, 7, 14], ["upright", "upright", "upright"]),
        ("waits beside", [14, 14, 14], ["upright", "upright", "upright"]),
        ("takes away", [-14, 7, -35], ["upright", "carried", "carried"]),
        ("drops off", [-14, 14, -35], ["carried", "upright", "upright"]),
        ("knocks over", [-14, 14, 14], ["upright", "lying", "lying"]),
    ],
)
def test_pose_at_start_middle_and_end(action, subject_x, states):
    scene = dataclasses.replace(SCENE, action=action)
    poses = [pose(scene, time) for time in (0.0, 0.5, 1.0)]
    assert [now.subject_x for now in poses] == subject_x
    assert [now.state for now in poses] == states


def test_everything_stands_on_the_lattice():
    rng = np.random.default_rng(0)
    for _ in range(200):
        now = pose(draw_scene(rng, GENERAL), rng.random())
        assert now.subject_x % 7 == now.object_x % 7 == 0


def test_unknown_action_is_an_error():
    message = f"Scene.action is 'sings'; allowed are {', '.join(ACTIONS)}."
    with pytest.raises(ValueError, match=message):
        pose(dataclasses.replace(SCENE, action="sings"), 0.0)
