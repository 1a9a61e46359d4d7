"""Repetition within a text, and near-duplicates among texts."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.rationales.duplicates import jaccard, near_duplicates, repeated_share
from rbft.rationales.sample import Sample


def sample(clip: str, text: str, number: int = 0) -> Sample:
    return Sample(clip, text, number=number)


@pytest.mark.parametrize(
    ("text", "size", "share"),
    [
        ("a b c d", 2, 0.0),
        ("a b a b a b", 2, 3 / 5),
        ("Go. go GO go", 1, 3 / 4),
        ("a b", 3, 0.0),
        ("", 1, 0.0),
        ("it goes on and on and on and on", 3, 3 / 7),
    ],
)
def test_repetition(text, size, share):
    assert repeated_share(text, size) == pytest.approx(share)


def by_all_pairs(samples, similarity, size):
    """The same with every pair compared."""

    def shingles(text):
        parts = text.split()
        found = {tuple(parts[at : at + size]) for at in range(len(parts) - size + 1)}
        return found or {tuple(parts)}

    sets, found = [shingles(one.text) for one in samples], {}
    for place, mine in enumerate(sets):
        best = (0.0, 0)
        for other in range(place):
            if other not in found and samples[other].clip != samples[place].clip:
                value = len(mine & sets[other]) / len(mine | sets[other])
                best = max(best, (value, -other))
        if best[0] >= similarity:
            found[place] = (-best[1], best[0])
    return found


@given(
    st.lists(st.lists(st.sampled_from("abcde"), max_size=12), max_size=12),
    st.sampled_from([0.1, 0.3, 1 / 3, 0.5, 0.6, 2 / 3, 0.8, 1.0]),
    st.integers(1, 3),
)
def test_near_duplicates_against_all_pairs(texts, similarity, size):
    samples = [
        sample(f"clip{at // 2}", " ".join(text), number=at % 2) for at, text in enumerate(texts)
    ]
    assert near_duplicates(samples, similarity, size) == by_all_pairs(samples, similarity, size)


def test_a_thousand_texts_are_compared_in_little_time(monkeypatch):
    """What is alike is found among few pairs, not all half million."""
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(2000)]
    samples = [
        sample(f"c{at}", " ".join(draw.choices(vocabulary, k=120)) + " and so on it goes")
        for at in range(1000)
    ]
    pairs = []
    monkeypatch.setattr(
        "rbft.rationales.duplicates.jaccard",
        lambda *pair: pairs.append(0) or jaccard(*pair),
    )
    twin = sample("twin", samples[500].text)
    assert near_duplicates([*samples, twin], 0.7, 3) == {1000: (500, 1.0)}
    assert len(pairs) < 1000
