import re

import pytest

from rbft.data.card import Card
from rbft.data.labels import match_label

CARD = Card(
    "t", "p", {"normal": "safe", "B1": "fight", "1": "one"}, {"label": "?", "rationale": "?"}
)


@pytest.mark.parametrize(
    ("value", "label"), [("normal", 0), (" safe ", 0), ("Fight.", 1), ("B1", 1), (1, 2), ("1", 2)]
)
def test_names_then_words(value, label):
    assert match_label(value, CARD, "x") == label


@pytest.mark.parametrize(
    "value", ["", "Normal", "not safe", "normal, so", "B-2", None, True, 1.5, {"a": 1}]
)
def test_unknown(value):
    message = (
        f"a.csv, line 3: label {value!r} is no class of card 't'; "
        "allowed are normal ('safe'), B1 ('fight'), 1 ('one'). Correct the label"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        match_label(value, CARD, "a.csv, line 3")


@pytest.mark.parametrize("value", [["normal"], ["normal", "B1"], "normal, B1", "B1-1", "B1|normal"])
def test_several_labels(value):
    with pytest.raises(
        ValueError, match=r"is a list of classes\. Clips with several labels are not"
    ):
        match_label(value, CARD, "a.csv, line 3")
