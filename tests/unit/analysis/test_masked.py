import json
import math

import numpy as np
import pytest

from rbft.analysis.intervals import Interval
from rbft.analysis.masked import (
    MaskedRun,
    cost_difference,
    masking_cost,
    over_draws,
    scores_of,
)
from rbft.analysis.paired import compare_pair, mcnemar
from rbft.analysis.scored import ScoredClips
from rbft.inference.metrics import macro_f1

CLASSES = ("normal", "abnormal")
CLIPS = 120


def answers(name: str, right: float, seed: int, order: int = 1) -> ScoredClips:
    drawer = np.random.default_rng(7)
    labels = drawer.integers(2, size=CLIPS)
    drawer = np.random.default_rng(seed)
    said = np.where(drawer.random(CLIPS) < right, labels, 1 - labels)
    said = np.where(drawer.random(CLIPS) < 0.03, 2, said)  # no class
    rows = [
        {
            "id": f"clip {number}",
            "label": CLASSES[labels[number]],
            "prediction": [*CLASSES, None][said[number]],
        }
        for number in range(CLIPS)
    ]
    return ScoredClips.from_rows(rows[::order], CLASSES, "test", name)


def run(name: str, rights: tuple[float, float, float], seed: int, draws: int = 3) -> MaskedRun:
    original, objects, random = rights
    made = tuple(answers("r", random, seed + 10 + number, -1) for number in range(draws))
    return MaskedRun(name, answers("o", original, seed), answers("b", objects, seed + 1), made)


OURS = run("ours", (0.8, 0.55, 0.75), 1).without([])
DIRECT = run("direct", (0.7, 0.68, 0.66), 100).without([])


def test_the_cost_is_of_objects_beyond_the_mean_of_the_draws() -> None:
    cost = masking_cost(OURS)
    right = {name: getattr(OURS, name).right.mean() for name in ("original", "objects")}
    random = np.mean([one.right for one in OURS.random])
    assert (cost.name, cost.n) == ("ours", CLIPS)
    assert cost.accuracy.value == pytest.approx(right["objects"] - random)
    assert cost.objects.value == pytest.approx(right["objects"] - right["original"])
    assert cost.random.value == pytest.approx(random - right["original"])
    macro = [scores_of(one)["f1/macro"] for one in OURS.random]
    expected = scores_of(OURS.objects)["f1/macro"] - np.mean(macro)
    assert cost.macro_f1.value == pytest.approx(expected)
    assert cost.accuracy.low < cost.accuracy.value < cost.accuracy.high < 0


def test_the_interval_is_that_of_resampled_clips() -> None:
    """Drawn here clip by clip; the implementation draws cells of clips that are alike."""
    each = OURS.objects.right - np.mean([one.right for one in OURS.random], axis=0)
    drawer = np.random.default_rng(3)
    means = each[drawer.integers(CLIPS, size=(20_000, CLIPS))].mean(axis=1)
    cost = masking_cost(OURS)
    assert cost.accuracy.low == pytest.approx(np.quantile(means, 0.025), abs=0.008)
    assert cost.accuracy.high == pytest.approx(np.quantile(means, 0.975), abs=0.008)


def test_with_one_draw_it_is_the_paired_comparison() -> None:
    one = MaskedRun("one", OURS.original, OURS.objects, OURS.random[:1])
    cost, pair = masking_cost(one), compare_pair(one.objects, one.random[0])
    for found, expected in ((cost.accuracy, pair.accuracy), (cost.macro_f1, pair.macro_f1)):
        assert found.value == pytest.approx(expected.value)
        assert found.low == pytest.approx(expected.low, abs=0.01)
        assert found.high == pytest.approx(expected.high, abs=0.01)
    assert cost.p == (pair.p,)


def test_the_same_clips_give_the_same_interval() -> None:
    assert masking_cost(OURS) == masking_cost(OURS, 0.95, 10_000, 0)
    assert masking_cost(OURS) != masking_cost(OURS, seed=1)
    assert cost_difference(OURS, DIRECT) == cost_difference(OURS, DIRECT, 0.95, 10_000, 0)


def test_each_draw_has_its_p() -> None:
    cost = masking_cost(OURS)
    for p, draw in zip(cost.p, OURS.random, strict=True):
        only_objects = int((OURS.objects.right & ~draw.right).sum())
        only_draw = int((draw.right & ~OURS.objects.right).sum())
        assert p == mcnemar(only_objects, only_draw)
    assert cost.p_median == sorted(cost.p)[1]


def test_between_runs_it_is_the_difference_of_differences() -> None:
    found, ours, direct = cost_difference(OURS, DIRECT), masking_cost(OURS), masking_cost(DIRECT)
    assert (found.a, found.b, found.n) == ("ours", "direct", CLIPS)
    assert found.accuracy.value == pytest.approx(ours.accuracy.value - direct.accuracy.value)
    assert found.macro_f1.value == pytest.approx(ours.macro_f1.value - direct.macro_f1.value)
    each = [
        run.objects.right - np.mean([one.right for one in run.random], axis=0)
        for run in (OURS, DIRECT)
    ]
    drawer = np.random.default_rng(3)
    chosen = drawer.integers(CLIPS, size=(20_000, CLIPS))
    means = (each[0] - each[1])[chosen].mean(axis=1)
    assert found.accuracy.low == pytest.approx(np.quantile(means, 0.025), abs=0.01)
    assert found.accuracy.high == pytest.approx(np.quantile(means, 0.975), abs=0.01)
    same = cost_difference(OURS, OURS)
    assert (same.accuracy.value, same.accuracy.low, same.accuracy.high) == (0, 0, 0)


def test_clips_of_one_run_stand_by_those_of_the_other_whatever_their_order() -> None:
    turned = MaskedRun(
        "direct",
        DIRECT.original.in_order_of(DIRECT.original.ids[::-1]),
        DIRECT.objects.in_order_of(DIRECT.objects.ids[::-1]),
        tuple(one.in_order_of(one.ids[::-1]) for one in DIRECT.random),
    )
    assert cost_difference(OURS, turned) == cost_difference(OURS, DIRECT)


def test_clips_can_be_left_out() -> None:
    left = ["clip 3", "clip 77"]
    some = OURS.without(left)
    assert set(OURS.original.ids) - set(some.original.ids) == set(left)
    assert all(one.ids == some.original.ids for one in (some.objects, *some.random))
    assert masking_cost(some).n == CLIPS - 2
    with pytest.raises(ValueError, match=r"^ours: in every clip the objects take more than half"):
        OURS.without(OURS.original.ids)
    less = MaskedRun("less", OURS.original, some.objects, OURS.random)
    with pytest.raises(ValueError, match=r"were not scored on the same clips: 2 clips \(clip 3"):
        less.without([])


def test_the_draws_mean_and_spread() -> None:
    found = over_draws(OURS)
    each = [one.right.mean() for one in OURS.random]
    assert found["accuracy"].mean == pytest.approx(np.mean(each))
    assert found["accuracy"].sd == pytest.approx(np.std(each, ddof=1))
    assert found["accuracy"].n == 3
    assert list(found) == ["accuracy", "f1/normal", "f1/abnormal", "f1/macro"]
    scores = scores_of(OURS.objects)
    parts = [scores["f1/normal"], scores["f1/abnormal"]]
    assert scores["f1/macro"] == pytest.approx(macro_f1(parts))


def test_json_has_no_nan() -> None:
    made = masking_cost(OURS).as_dict() | cost_difference(OURS, DIRECT).as_dict()
    assert json.loads(json.dumps(made, allow_nan=False))["accuracy"]["value"] is not None
    one_class = [
        ScoredClips.from_rows(
            [{"id": "a", "label": "normal", "prediction": None}], CLASSES, "test", "x"
        )
    ] * 2
    cost = masking_cost(MaskedRun("x", one_class[0], one_class[1], (one_class[0],)))
    assert cost.macro_f1 == Interval(0.0, 0.0, 0.0) or math.isnan(cost.macro_f1.value)
    json.dumps(cost.as_dict(), allow_nan=False)
