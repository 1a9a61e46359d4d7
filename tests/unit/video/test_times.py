from pathlib import Path

import pytest

from rbft.backbone.loading import load_config
from rbft.video.times import pair_times


def test_even_frames_follow_qwen_vl_utils() -> None:
    # Ten of 100 frames at 25 a second: 2.5 a second, so 0.8 s from pair to pair.
    times = pair_times([0, 11, 22, 33, 44, 55, 66, 77, 88, 99], 25.0, 2.5)
    assert times.step == 0.8
    assert times.starts == tuple(pair * 0.8 for pair in range(5))
    assert times.middles == pytest.approx([5.5 / 25, 27.5 / 25, 49.5 / 25, 71.5 / 25, 93.5 / 25])


def test_a_part_of_a_file_begins_at_zero() -> None:
    whole, part = (pair_times([first, first + 50], 25.0, 0.5) for first in (0, 700))
    assert whole == part
    assert part.middles == (1.0,)


def test_given_times_that_are_even_change_no_position() -> None:
    """They may be off by a frame of the file, as the frames of a video are."""
    plain = pair_times([0, 25, 50, 75], 25.0, 1.0)
    given = pair_times([0, 25, 50, 75], 25.0, 1.0, [0.0, 1.03, 1.97, 3.0])
    assert (given.starts, given.step) == (plain.starts, plain.step)
    assert given.middles == pytest.approx([0.515, 2.485])
    assert plain.middles == (0.5, 2.5)


def test_a_list_with_few_images_a_second_is_even_by_its_times() -> None:
    """A frame of it may be seconds long."""
    assert pair_times([0, 1, 2, 3], 0.5, 0.5, [0.0, 2.1, 4.0, 6.0]).step is None
    assert pair_times([0, 1, 2, 3], 0.5, 0.5, [0.0, 2.04, 4.0, 6.0]).step == 4.0


def test_pairs_start_at_uneven_times() -> None:
    times = pair_times([0, 1, 2, 3], 1.0, 0.1, [0.0, 3.0, 27.0, 30.0])
    assert times.step is None
    assert times.starts == pytest.approx([0.0, 27.0])
    assert times.middles == pytest.approx([1.5, 28.5])
    # Four of 100 frames at 25 a second last 4 s as qwen-vl-utils counts, so that from the first to
    # the last there are 3, not 3.96: all times are as much shorter.
    times = pair_times([0, 33, 66, 99], 25.0, 1.0, [0.0, 0.5, 1.98, 3.96])
    assert times.starts == pytest.approx([0.0, 1.5])
    # In the limit of even ones it is the rule of even ones.
    nearly = pair_times([0, 1, 2, 3], 100.0, 0.1, [0.0, 10.0, 20.02, 30.0])
    even = pair_times([0, 1, 2, 3], 0.1, 0.1)
    assert nearly.step is None
    assert nearly.starts == pytest.approx(even.starts, rel=2e-3)


def test_the_last_of_an_odd_number_of_frames_stands_twice() -> None:
    assert pair_times([0, 10, 20], 10.0, 1.0).middles == (0.5, 2.0)
    assert pair_times([5], 10.0, 1.0).middles == (0.0,)
    assert pair_times([5, 5], 10.0, 1.0, [0.0, 0.0]).starts == (0.0,)


def test_positions_follow_uneven_times(backbones: dict[str, Path]) -> None:
    import torch

    times = pair_times([0, 1, 2, 3], 1.0, 0.1, [0.0, 3.0, 27.0, 30.0])
    found = {}
    for name in ("qwen2_vl", "qwen2_5_vl"):
        config, family = load_config(str(backbones[name]))
        ids = torch.tensor([1, config.video_token_id, config.video_token_id, 2])
        found[name] = family.position_ids(ids, [2, 2, 2], times, config)[0].tolist()
    # Two positions a second; Qwen2-VL counts pairs whenever they are shown.
    assert found == {"qwen2_vl": [0, 1, 2, 3], "qwen2_5_vl": [0, 1, 55, 56]}
