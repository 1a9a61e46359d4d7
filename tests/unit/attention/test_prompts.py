from dataclasses import replace
from pathlib import Path

from rbft.attention.prompts import generic_prompt, shuffled_prompt
from rbft.clip import Clip
from rbft.stages import LABEL, STAGES
from tests.examples import CARD, clips

CLIP = clips(1)[0]


def test_shuffled_words_are_the_same_words_in_another_order() -> None:
    for number in range(20):
        clip = replace(CLIP, id=f"clip{number}")
        own = LABEL.prompt(CARD, clip).split()
        found = shuffled_prompt(LABEL, 0).prompt(CARD, clip).split()
        assert sorted(found) == sorted(own)
        assert found != own
    assert shuffled_prompt(LABEL, 0).prompt(CARD, CLIP) == shuffled_prompt(LABEL, 0).prompt(
        CARD, CLIP
    )
    others = {shuffled_prompt(LABEL, seed).prompt(CARD, CLIP) for seed in range(5)}
    assert len(others) == 5


def test_words_that_have_no_other_order() -> None:
    card = replace(CARD, prompts={**CARD.prompts, "label": "go go"})
    assert shuffled_prompt(LABEL, 0).prompt(card, Clip("a", Path("a"), 0, "test")) == "go go"


def test_a_generic_prompt_is_the_same_for_every_clip() -> None:
    made = generic_prompt(STAGES["class_rationale"], "What is there?")
    assert {made.prompt(CARD, clip) for clip in clips(3)} == {"What is there?"}
    assert made.parts == STAGES["class_rationale"].parts
