"""The rotary positions against literal tables, worked out by hand from the rule.

The rule is that of transformers up to 5.2, of vLLM and of Qwen's own trainer.
"""

import pytest
import torch

from rbft.backbone.positions import position_ids, video_positions

VIDEO = 99


def sequence(before: int, video: int, after: int) -> torch.Tensor:
    return torch.tensor([1] * before + [VIDEO] * video + [2] * after)


def test_every_position_of_a_short_clip_is_as_written_out():
    # 2 frame pairs of 4 x 6 patches, merged to 2 x 3; 4 positions from pair to pair.
    ids = position_ids(sequence(2, 12, 3), VIDEO, [2, 4, 6], 2, [0.0, 4.0])
    assert ids.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 6, 6, 6, 6, 6, 6, 7, 8, 9],
        [0, 1, 2, 2, 2, 3, 3, 3, 2, 2, 2, 3, 3, 3, 7, 8, 9],
        [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 2, 3, 4, 7, 8, 9],
    ]


@pytest.mark.parametrize(
    ("grid", "time_step", "first_after"),
    [
        # The paper's pixel budget at 1 fps, 15 tokens before the video: Qwen2.5-VL counts
        # 2 positions a second, 2 s to a frame pair.
        ([5, 24, 32], 4.0, 32),  # 4:3, 10 s
        ([15, 24, 32], 4.0, 72),  # 4:3, 30 s
        ([30, 24, 32], 4.0, 132),  # 4:3, 60 s
        ([5, 20, 36], 4.0, 33),  # 16:9, 10 s: the width is the largest
        ([15, 20, 36], 4.0, 72),
        ([30, 20, 36], 4.0, 132),
        # Qwen2-VL counts frame pairs.
        ([30, 24, 32], 1.0, 45),
        ([30, 20, 36], 1.0, 45),
        ([5, 24, 32], 1.0, 31),
    ],
)
def test_text_after_the_video_starts_one_past_the_largest_position(grid, time_step, first_after):
    tokens = grid[0] * grid[1] * grid[2] // 4
    times = [pair * time_step for pair in range(grid[0])]
    ids = position_ids(sequence(15, tokens, 4), VIDEO, grid, 2, times)
    assert ids[:, 15 + tokens :].tolist() == [[first_after + i for i in range(4)]] * 3


def test_uneven_seconds_are_cut_off_after_the_product():
    # 7 frames out of 200 at 25 fps: 2.2857 s a pair.
    times = video_positions([4, 2, 2], 0, 2, [pair * (2 * 16 / 7) for pair in range(4)])[0]
    assert times.tolist() == [0, 4, 9, 13]


def test_a_sequence_cut_inside_the_video_is_an_error():
    with pytest.raises(ValueError, match=r"holds 11 video tokens.*\(2, 4, 6\) gives 12"):
        position_ids(sequence(2, 11, 3), VIDEO, [2, 4, 6], 2, [0.0, 4.0])
