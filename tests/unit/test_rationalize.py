import pytest

from rbft.rationalize import check_prompts, passes
from tests.examples import CARD, clips


def test_clips_that_lack_the_same_are_described_together():
    one, two, three, four = clips(4)
    missing = {
        "rationale": [one.id, four.id],
        "less": [one.id, two.id, four.id],
        "least": [],
    }
    assert passes(missing, [one, two, three, four]) == {
        ("rationale", "less"): [one, four],
        ("less",): [two],
    }
    assert passes({"rationale": []}, [one]) == {}


def test_prompts_of_the_card_in_any_order():
    check_prompts(["less"], CARD)
    check_prompts(["less", "rationale"], CARD)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["rationale", "lest"], "rationale, lest"),
        (["less", "less"], "less, less"),
        (["label"], "label"),  # asks for the class
        ([], ""),
    ],
)
def test_other_prompts_are_refused(names, shown):
    with pytest.raises(ValueError, match="--prompts") as error:
        check_prompts(names, CARD)
    assert str(error.value) == (
        f"--prompts [{shown}] must name rationale prompts of the card 'yard', each once; it has "
        "rationale, less."
    )
