import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.rationales.controls import apply_control
from rbft.rationales.sample import Sample

IDS = [f"clip_{n}" for n in range(6)]
SAMPLES = {
    name: Sample(name, f"one two {name} four five", label=n % 2, label_conditioned=n == 0)
    for n, name in enumerate(IDS)
}


@given(st.integers(0, 50))
def test_shuffled_texts_are_those_of_other_clips(seed: int) -> None:
    made = apply_control(SAMPLES, "shuffled", IDS, seed)
    assert list(made) == IDS
    assert sorted(one.text for one in made.values()) == sorted(o.text for o in SAMPLES.values())
    for name, one in made.items():
        assert one.clip == name
        assert one.label == SAMPLES[name].label
        assert one.text != SAMPLES[name].text
    # What is known about a text goes with it.
    told = [one.text for one in made.values() if one.label_conditioned]
    assert told == [SAMPLES[IDS[0]].text]


def test_they_depend_on_the_seed_and_on_nothing_else() -> None:
    first = apply_control(SAMPLES, "shuffled", IDS, 3)
    assert first == apply_control(dict(reversed(SAMPLES.items())), "shuffled", IDS, 3)
    assert any(first != apply_control(SAMPLES, "shuffled", IDS, seed) for seed in range(5))


def test_classes_are_shuffled_together() -> None:
    crossed = 0
    for seed in range(20):
        made = apply_control(SAMPLES, "shuffled", IDS, seed)
        texts = {one.text: one.label for one in SAMPLES.values()}
        crossed += sum(texts[one.text] != one.label for one in made.values())
    assert 20 < crossed < 100  # of 120; a clip has two others of its class and three of the other


def test_a_clip_without_rationale_takes_none() -> None:
    some = {name: SAMPLES[name] for name in IDS[1:]}
    assert set(apply_control(some, "shuffled", IDS, 0)) == set(some)


def test_nothing_to_shuffle_with() -> None:
    with pytest.raises(ValueError, match=r"but 1 clip has a rationale: there is no other to take"):
        apply_control({IDS[0]: SAMPLES[IDS[0]]}, "shuffled", IDS, 0)


def test_half_and_blank_texts() -> None:
    half, blank = (apply_control(SAMPLES, kind, IDS, 0) for kind in ("half", "blank"))
    assert half[IDS[1]].text == "one two clip_1"
    assert blank[IDS[1]].text == ". . . . ."
    for made in (half, blank):
        assert made.keys() == SAMPLES.keys()
        assert made[IDS[0]].label_conditioned
    assert apply_control({IDS[0]: Sample(IDS[0], "")}, "half", IDS, 0)[IDS[0]].text == ""
