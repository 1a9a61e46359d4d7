"""Literal cases; numbers against plain forwards stand in tests/parity."""

import pytest

from rbft.inference.generation import find_class

END = 9
NORMAL, ABNORMAL = [5, END], [4, 5, END]  # one word ends with the other
WORDS = [NORMAL, ABNORMAL]
NORMAL_LINE, NORMALLY_LINE = [5, 1], [5, 1, 1]  # one begins with the other


@pytest.mark.parametrize(
    ("written", "index", "rest"),
    [
        ([5, END], 0, []),
        ([4, 5, END], 1, []),  # not "normal" behind an "ab"
        ([7, 8, 4, 5, END], 1, [7, 8]),
        ([7, 8, 5, END], 0, [7, 8]),
        ([7, 8, END], None, [7, 8]),  # no word: the end of the turn goes, the text stays
        ([7, 5, 8], None, [7, 5, 8]),  # cut off by the limit
        ([4, 5], None, [4, 5]),  # the word, but the turn does not end
        ([5, END, 7], None, [5, 7]),
        ([], None, []),
    ],
)
def test_the_class_at_the_end(written, index, rest):
    assert find_class(written, WORDS, at_end=True) == (index, rest)


@pytest.mark.parametrize(
    ("written", "index", "rest"),
    [
        ([5, 1, 7, 8, END], 0, [7, 8, END]),
        ([5, 1, 1, 7, END], 1, [7, END]),
        ([7, 5, 1, END], None, [7, 5, 1, END]),
        ([5, END], None, [5, END]),  # the word, but no rationale after it
        ([], None, []),
    ],
)
def test_the_class_at_the_beginning(written, index, rest):
    assert find_class(written, [NORMAL_LINE, NORMALLY_LINE], at_end=False) == (index, rest)
