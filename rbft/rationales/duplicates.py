"""Texts that repeat themselves, and texts that are nearly the same as another clip's."""

from collections.abc import Sequence
from math import ceil
from typing import Any

from rbft.rationales.sample import Sample
from rbft.rationales.words import words


def repeated_share(text: str, size: int) -> float:
    """Share of the n-grams of words that stood in the text before, 0 to 1.

    Args:
        text: The text; with fewer words than an n-gram has its share is 0.
        size: Words of an n-gram.
    """
    grams = _ngrams(words(text), size)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def near_duplicates(
    samples: Sequence[Sample], similarity: float, size: int
) -> dict[int, tuple[int, float]]:
    """Samples that are nearly the same as an earlier one of another clip that is none itself.

    Exact: the Jaccard similarity of the sets of shingles (n-grams of words; a shorter text is one
    shingle). Two sets that are at least `similarity` alike share one of their rarest shingles, so
    only those stand in the index and are looked up: time and memory grow with the shingles plus
    the pairs of texts that share a rare one. Without duplicates that is linear; with n texts that
    are all alike, n lookups, since only the first stands in the index.

    Args:
        samples: All rationales.
        similarity: From which on two count as the same, above 0.
        size: Words of a shingle.

    Returns:
        For the place of each duplicate, the place of the earlier one that is most like it, and how
        like it is.
    """
    sets = [_shingles(sample.text, size) for sample in samples]
    count: dict[tuple[str, ...], int] = {}
    for shingles in sets:
        for shingle in shingles:
            count[shingle] = count.get(shingle, 0) + 1
    index: dict[tuple[str, ...], list[int]] = {}
    found: dict[int, tuple[int, float]] = {}
    for place, shingles in enumerate(sets):
        # |A & B| >= s |A | B| >= s |A|: of the rarest |A| - ceil(s |A|) + 1, one must be shared.
        # A hair less than s, lest rounding makes the number of shared ones too large.
        shared = max(1, ceil((similarity - 1e-9) * len(shingles)))
        rarest = sorted(shingles, key=lambda one: (count[one], one))
        rarest = rarest[: len(shingles) - shared + 1]
        others = {other for shingle in rarest for other in index.get(shingle, ())}
        like = [
            (jaccard(shingles, sets[other]), -other)
            for other in others
            if samples[other].clip != samples[place].clip
        ]
        value, other = max(like, default=(0.0, 0))
        if like and value >= similarity:
            found[place] = (-other, value)
            continue
        for shingle in rarest:
            index.setdefault(shingle, []).append(place)
    return found


def jaccard(one: frozenset[Any] | set[Any], other: frozenset[Any] | set[Any]) -> float:
    """Share of the elements of two sets that both have; 1 where both are empty."""
    either = len(one | other)
    return len(one & other) / either if either else 1.0


def _ngrams(parts: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(parts[start : start + size]) for start in range(len(parts) - size + 1)]


def _shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    parts = words(text)
    return frozenset(_ngrams(parts, size) or [tuple(parts)])
