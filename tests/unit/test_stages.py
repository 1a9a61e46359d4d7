from dataclasses import replace

import pytest

from rbft.stages import LABEL, STAGES, find_stage, is_stage, stage_names
from tests.examples import CARD, clips
from tests.several import PETS, having

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
        ("alternating", True, "label"),
        ("label_reward", False, "label"),
        ("rationale_class_reward", True, "rationale_class"),
        ("label_distilled", False, "label"),
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
        r"rationale_class, alternating, label_reward, rationale_class_reward, label_distilled\.$",
    ):
        find_stage("labels")


def test_a_stage_that_stands_in_the_list_again_is_numbered():
    listed = ["rationale_class", "label", "rationale_class", "rationale_class"]
    names = ["rationale_class", "label", "rationale_class-2", "rationale_class-3"]
    assert stage_names(listed) == names
    assert stage_names(names) == names  # as folders are called, which are read back
    again = find_stage("rationale_class-2")
    assert (again.name, again.paper) == ("rationale_class-2", "P+R+C (Table 3), round 2")
    assert again.parts == find_stage("rationale_class").parts
    assert again.classifier == find_stage("rationale_class")
    assert is_stage("label-12")
    for wrong in ("label-1", "label-0", "label-", "labels-2", "label-2-2"):
        assert not is_stage(wrong)
        with pytest.raises(ValueError, match="There is no stage"):
            find_stage(wrong)


def test_what_validation_measures():
    assert find_stage("alternating").validated == LABEL
    for name in STAGES:
        stage = find_stage(name)
        assert stage.validated.objective == "likelihood"
        assert not stage.validated.turns
        if name != "alternating":
            assert stage.validated.parts == stage.parts


def test_a_question_for_each_class_of_a_clip_with_several():
    clip = having(CLIP)  # a cat
    assert [LABEL.questions(card) for card in (CARD, PETS)] == [1, 3]
    assert STAGES["rationale"].questions(PETS) == 1
    assert [LABEL.prompt(PETS, clip, n) for n in range(3)] == [
        "Clip 1. Does it show a cat?",
        "Clip 1. Does it show dogs, large or small?",
        "Clip 1. Does it show birds?",
    ]
    assert [LABEL.target(PETS, clip, None, n) for n in range(3)] == ["abnormal", "normal", "normal"]
    none = replace(clip, labels=())
    assert [LABEL.target(PETS, none, None, n) for n in range(3)] == ["normal"] * 3
    assert LABEL.target(PETS, replace(clip, labels=None), None) == ""
    told = {LABEL.prompt(PETS, replace(clip, labels=own)) for own in ((), (0,), None)}
    assert len(told) == 1
