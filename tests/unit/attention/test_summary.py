import math

import numpy as np
import pytest

from rbft.analysis.means import bootstrap_mean
from rbft.attention.scores import box_scores, entropy
from rbft.attention.summary import (
    SCORES,
    Scored,
    box_note,
    clip_scores,
    differences,
    scores_table,
)
from rbft.masking.boxes import Box

MAP = np.random.default_rng(0).random((2, 3, 4))
RECORD = {
    "map": (MAP / MAP.sum()).tolist(),
    "frames": [0, 4, 8, 12],
    "video_share": 0.4,
    "causal": {"drop": 1.0, "drop_top": 3.0, "drop_random": 2.0},
}


def scored(name: str, key: str, shift: float, clips: int = 6) -> Scored:
    values = {f"clip{n}": {"entropy": n / 10, "drop": n + shift} for n in range(clips)}
    return Scored(name, key, values)


def test_all_scores_of_a_clip() -> None:
    assert clip_scores(RECORD, None) == {
        "entropy": pytest.approx(entropy(MAP)),
        "video_share": 0.4,
        **RECORD["causal"],
    }
    known = {key: [Box(0.1, 0.1, 0.4, 0.5)] for key in RECORD["frames"]}
    found = clip_scores(RECORD, known)
    slices = [[0, 1], [2, 3]]
    expected = box_scores(np.array(RECORD["map"]), known, RECORD["frames"], slices)
    assert expected.items() <= found.items()
    assert {*found} == {*SCORES}


def test_means_are_of_the_clips_that_have_a_score() -> None:
    one = Scored("a", "a", {"x": {"auroc": 0.5}, "y": {"auroc": math.nan}, "z": {"drop": 1.0}})
    means = one.means()
    assert {name: (mean.value, n) for name, (mean, n) in means.items()} == {
        "auroc": (0.5, 1),
        "drop": (1.0, 1),
    }


def test_differences_are_paired() -> None:
    found = differences(scored("b", "b", 0.25), scored("a", "a", 0.0, clips=5))
    assert found["drop"]["mean"] == pytest.approx(0.25)
    assert found["drop"]["interval"] == {"low": pytest.approx(0.25), "high": pytest.approx(0.25)}
    assert found["drop"]["n"] == 5
    assert found["entropy"]["mean"] == 0
    assert "lift" not in found


def test_the_table() -> None:
    a, b = scored("direct", "a", 0.0), scored("ours", "b", 10.0)
    control = scored("ours (redrawn)", "b redrawn", -2.5)
    found = scores_table([a, b], {"direct": [], "ours": [control]})
    mean = bootstrap_mean([float(n) for n in range(6)])
    lines = [line.split() for line in found.splitlines()]
    ends = f"{mean.low:.2f}, {mean.high:.2f}".split()
    tenths = f"{mean.low / 10:.2f}, {mean.high / 10:.2f}".split()
    assert lines[1] == ["entropy", "drop"]
    assert lines[3:5] == [["a", "0.25", "2.50"], [*tenths, *ends]]
    assert lines[5] == ["b", "0.25", "12.5"]
    assert lines[7] == ["b", "redrawn", "0.25", "0.00"]
    assert lines[9:11] == [
        ["b", "-", "a", "+0.00", "+10.0"],
        ["+0.00,", "+0.00", "+10.0,", "+10.0"],
    ]
    legend = ["a: direct", "b: ours", f"entropy: {SCORES['entropy']}", f"drop: {SCORES['drop']}"]
    assert found.splitlines()[12:] == legend


def test_the_table_fits_into_80_columns() -> None:
    clips = {f"clip{n}": dict.fromkeys(SCORES, -3.21 * n) for n in range(9)}
    runs = [Scored(name, name, clips) for name in "ab"]
    controls = {name: [Scored("c", f"{name} shuffled", clips)] for name in "ab"}
    table = scores_table(runs, controls).splitlines()
    assert max(map(len, table[:15])) <= 80
    assert "pointing: peak in a box or a token beside it, share of clips (a peak at random: " in (
        "\n".join(table)
    )


def test_what_a_run_lacks_is_a_dash_and_large_figures_have_one_decimal() -> None:
    a = Scored("a", "a", {f"clip{n}": {"entropy": 9.5, "drop": 99.94} for n in range(3)})
    b = Scored("b", "b", {f"clip{n}": {"entropy": 9.999} for n in range(3)})
    lines = [line.split() for line in scores_table([a, b], {}).splitlines()]
    assert lines[3] == ["a", "9.50", "99.9"]
    assert lines[5] == ["b", "10.0", "-"]
    assert lines[7] == ["b", "-", "a", "+0.50", "-"]


def test_a_single_clip_has_no_interval() -> None:
    found = scores_table([scored("ours", "a", 0.0, clips=1)], {}).splitlines()
    assert found[3].split() == ["a", "0.00", "0.00"]
    assert set(found[4]) == {"-"}


def test_what_is_said_about_boxes() -> None:
    with_box = Scored("a", "a", {"x": {"mass": 0.5}, "y": {"mass": 0.1}})
    without = Scored("a", "a", {"x": {"mass": 0.5}, "y": {}, "z": {}})
    names = "mass, lift, pointing, pointing_slices, pointing_chance, auroc"
    assert box_note([with_box], {"x": {}}) == ""
    assert box_note([without], None) == f"No --boxes were given: {names} are left out."
    assert box_note([without], {}) == (
        f"2 of 3 clips have no object in --boxes (first: y): {names} are of the others."
    )
