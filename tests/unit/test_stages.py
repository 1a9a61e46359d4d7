from dataclasses import replace

import pytest

from rbft.stages import LABEL, STAGES, find_stage
from tests.examples import CARD, clips

CLIP = clips(2)[1]  # labelled "alarm", which the model answers as "abnormal"
ASK_CLASS = "Is it normal or abnormal? Clip 1."
ASK_RATIONALE = "You are a Guard. Describe it."


@pytest.mark.parametrize(
    ("name", "prompt", "target"),
    [
        ("rationale", ASK_RATIONALE, "Someone climbs."),
        ("label", ASK_CLASS, "abnormal"),
        # Table 3: P+C+R and P+R+C differ in the answer alone.
        ("class_rationale", f"{ASK_RATIONALE}\n{ASK_CLASS}", "abnormal\nSomeone climbs."),
        ("rationale_class", f"{ASK_RATIONALE}\n{ASK_CLASS}", "Someone climbs.\nabnormal"),
    ],
)
def test_what_is_asked_and_what_should_be_answered(name, prompt, target):
    stage = find_stage(name)
    assert stage.prompt(CARD, CLIP) == prompt
    assert stage.target(CARD, CLIP, " Someone climbs.\n") == target


@pytest.mark.parametrize("name", STAGES)
def test_the_prompt_never_tells_the_label(name):
    stage = find_stage(name)
    prompts = {stage.prompt(CARD, replace(CLIP, label=label)) for label in (0, 1, None)}
    assert len(prompts) == 1


@pytest.mark.parametrize(
    ("name", "needs_rationales", "classifier"),
    [
        ("rationale", True, "label"),  # a rationale is no class: the query of Stage II is put
        ("label", False, "label"),
        ("class_rationale", True, "class_rationale"),
        ("rationale_class", True, "rationale_class"),
    ],
)
def test_what_a_stage_needs_and_how_it_classifies(name, needs_rationales, classifier):
    stage = find_stage(name)
    assert stage.needs_rationales == needs_rationales
    assert stage.classifier == find_stage(classifier)


def test_an_unlabelled_clip_has_an_empty_word():
    assert LABEL.target(CARD, replace(CLIP, label=None), None) == ""


def test_there_is_no_other_stage():
    with pytest.raises(
        ValueError,
        match=r"^There is no stage 'labels'; stages are rationale, label, class_rationale, "
        r"rationale_class\.$",
    ):
        find_stage("labels")
