"""Samples from the lines of a rationale file."""

import pytest

from rbft.rationales.sample import Sample, by_clip, samples_of

LINE = {
    "id": "a",
    "rationale": "A dog runs.",
    "finish": "stop",
    "tokens": 5,
    "source": "self",
    "video": "1f",
}


def test_a_line_becomes_a_sample():
    more = {**LINE, "id": "b", "sample": 2, "label_conditioned": True, "finish": "length"}
    assert samples_of([LINE, more], {"a": 0, "b": None}) == [
        Sample("a", "A dog runs.", 0, "stop", 5, 0, "1f"),
        Sample("b", "A dog runs.", None, "length", 5, 2, "1f", label_conditioned=True),
    ]


def test_a_line_without_a_video_is_a_group_of_its_own():
    silent = {key: value for key, value in LINE.items() if key != "video"}
    assert Sample.of(silent, 0).group == "a"
    assert Sample.of(LINE, 0).group == "1f"
    assert Sample.of({**LINE, "video": None}, 0).group == "a"


def test_undecodable_clips_have_no_sample():
    broken = {**LINE, "id": "gone", "rationale": "", "finish": "undecodable", "tokens": 0}
    assert [one.clip for one in samples_of([broken, LINE], {"a": 0})] == ["a"]


def test_strangers_are_named():
    with pytest.raises(ValueError, match="were not asked for") as error:
        samples_of([LINE, {**LINE, "id": "z"}], {"a": 0})
    assert str(error.value) == (
        "1 of 2 rationales are about clips that were not asked for (first: z). Pass only lines "
        "about the clips of the split."
    )


def test_samples_by_clip_are_in_order_and_differ():
    late, early, other = Sample("a", "x", number=1), Sample("a", "y"), Sample("b", "z")
    assert by_clip([other, late, early]) == {"b": [other], "a": [early, late]}
    with pytest.raises(ValueError, match="same sample number") as error:
        by_clip([early, late, Sample("a", "w", number=1)])
    assert str(error.value) == (
        "Clip a has two rationales with the same sample number (numbers: [0, 1, 1]). Give each "
        "sample of a clip a number of its own (key `sample` of the line)."
    )
