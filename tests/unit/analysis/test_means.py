import math

import pytest

from rbft.analysis.means import bootstrap_difference, bootstrap_mean


def test_clips_without_a_figure_do_not_count() -> None:
    one = bootstrap_mean([1.0, math.nan, 3.0])
    assert one == bootstrap_mean([1.0, 3.0])
    assert (one.value, one.low, one.high) == (2.0, 1.0, 3.0)


def test_a_single_clip_has_no_interval_and_none_has_no_mean() -> None:
    one = bootstrap_mean([1.5])
    assert one.value == 1.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(bootstrap_mean([]).value)
    nothing, clips = bootstrap_difference({"a": 1.0}, {"b": 2.0})
    assert math.isnan(nothing.value)
    assert clips == 0


def test_what_is_drawn_at_a_time_does_not_matter_and_the_seed_does(monkeypatch) -> None:
    values = [float(n**2 % 7) for n in range(23)]
    whole = bootstrap_mean(values)
    monkeypatch.setattr("rbft.analysis.means.CHUNK", 50)
    assert bootstrap_mean(values) == whole
    assert bootstrap_mean(values, seed=1) != whole


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"level": 1.0}, r"^The level of an interval \(1\.0\) must be above 0 and below 1\.$"),
        ({"resamples": 0}, r"^The number of resamples \(0\) must be 1 or more\.$"),
    ],
)
def test_settings_out_of_range(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_mean([1.0, 2.0], **given)
