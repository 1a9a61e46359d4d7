from typing import Any

import pytest
from jsonargparse import Namespace

from rbft.stage_settings import check_several, check_stage_settings
from tests.examples import CARD
from tests.several import PETS


def check(stages: list[str], before: tuple[str, ...] = (), **changes: Any) -> None:
    settings = Namespace(rationales_from="backbone")
    settings["model.answer"] = "score"
    for name, value in changes.items():
        settings[name.replace("__", ".")] = value
    check_stage_settings(settings, stages, before)


@pytest.mark.parametrize(
    ("setting", "value", "known"),
    [
        ("model__answer_weight", 5.0, ["rationale_class"]),
        ("model__answer_weight", 5.0, ["class_rationale"]),
        ("model__costs", {"a": {"b": 2.0}}, ["label", "label_reward"]),
        ("model__costs", {"a": {"b": 2.0}}, ["rationale_class", "rationale_class_reward"]),
        ("model__self_consistency", Namespace(samples=3), ["rationale_class-2"]),
        ("data__init_args__label_share", 0.2, ["alternating"]),
        ("data__init_args__rationale_control", "half", ["rationale", "label"]),
        ("data__init_args__rationale_control", "half", ["alternating"]),
        ("rationales_from", "previous", ["rationale", "label"]),
    ],
)
def test_a_setting_without_a_stage_that_knows_it(setting: str, value: Any, known: list[str]):
    check(known, **{setting: value})
    with pytest.raises(ValueError, match="none of the stages") as error:
        check(["label"], **{setting: value})
    name = setting.replace("__", ".").replace("data.init_args", "data")
    assert str(error.value).startswith(f"{name} is ")
    assert f"or leave {name} out." in str(error.value)
    with pytest.raises(ValueError, match=r"none of the stages \(none\)"):
        check([], **{setting: value})


def test_the_message():
    with pytest.raises(ValueError, match=r"model\.answer_weight") as error:
        check(["rationale", "label"], model__answer_weight=5.0)
    assert str(error.value) == (
        "model.answer_weight is 5.0, but none of the stages (rationale, label) learns a rationale "
        "and a class. Those that do are class_rationale, rationale_class: take one into stages, or "
        "leave model.answer_weight out."
    )


def test_without_such_settings_every_list_of_stages_is_taken():
    for stages in ([], ["label"], ["rationale", "label"], ["label", "label-2", "alternating"]):
        check(stages)


def test_an_answer_that_is_written_has_no_probabilities_to_average():
    with pytest.raises(ValueError, match=r"Set model\.answer to score"):
        check(["rationale_class"], model__self_consistency=Namespace(), model__answer="generate")


@pytest.mark.parametrize(
    ("name", "value"),
    [("data.rationale_file", "mine.jsonl"), ("endpoint", Namespace(model="gpt-4o"))],
)
def test_rationales_written_anew_have_no_other_source(name: str, value: Any):
    place = name.replace("data.", "data.init_args.").replace(".", "__")
    check(["rationale"], **{place: value})
    with pytest.raises(ValueError, match=f"but {name} is set"):
        check(["rationale"], rationales_from="previous", **{place: value})


def test_stages_that_votes_weigh():
    votes: dict[str, Any] = {"data__init_args__soft_labels": True}
    for stages in (["label"], ["rationale", "label"], ["rationale_class"], ["alternating"]):
        check(stages, **votes)
    with pytest.raises(ValueError, match="none of the stages") as error:
        check(["rationale"], **votes)
    assert str(error.value) == (
        "data.soft_labels is True, but none of the stages (rationale) learns the class by its "
        "likelihood. Those that do are label, class_rationale, rationale_class, alternating: take "
        "one into stages, or leave data.soft_labels out."
    )
    for stages, what in (
        (["label", "label_reward"], "stage label_reward learns by the costs of answers"),
        (
            ["rationale_class", "label_distilled"],
            "stage label_distilled learns by the class probabilities of a teacher",
        ),
    ):
        with pytest.raises(ValueError, match="soft_labels") as error:
            check(stages, **votes)
        assert str(error.value) == (
            "data.soft_labels weighs the likelihood of the classes by the votes, but the "
            f"{what}. Leave one of the two out."
        )


def test_who_teaches_a_distilled_stage():
    check(["rationale_class", "label_distilled"])
    check(["rationale_class", "rationale_class-2", "label_distilled"])
    check(["rationale_class_reward", "label_distilled"])
    check(["label_distilled"], before=("rationale_class",))
    for stages, before in (
        (["label_distilled"], ()),
        (["label", "label_distilled"], ("rationale_class",)),
        (["rationale_class", "label", "label_distilled"], ()),
        (["class_rationale", "label_distilled"], ()),
        (["label_distilled", "label_distilled-2"], ("rationale_class",)),
    ):
        with pytest.raises(ValueError, match="Put rationale_class right before it in stages"):
            check(stages, before)


@pytest.mark.parametrize(
    ("stages", "changes", "begins", "ends"),
    [
        (
            ["rationale", "class_rationale"], {}, "The stage class_rationale",
            " Such cards are trained with the stages rationale and label.",
        ),
        (
            ["alternating"], {}, "The stage alternating",
            " Such cards are trained with the stages rationale and label.",
        ),
        (
            ["label_reward"], {}, "The stage label_reward",
            " Such cards are trained with the stages rationale and label.",
        ),
        (
            ["label_distilled"], {}, "The stage label_distilled",
            " Such cards are trained with the stages rationale and label.",
        ),
        (
            ["label"], {"model.answer": "generate"}, "model.answer generate",
            " Set it to score: yes and no are compared.",
        ),
        (
            ["label"], {"data.init_args.class_weights": True}, "data.class_weights",
            " Leave it out.",
        ),
        (
            ["label"], {"data.init_args.balanced_sampling": True}, "data.balanced_sampling",
            " Leave it out.",
        ),
        ([], {"data.init_args.masking": Namespace()}, "data.masking", " Leave it out."),
        (["label"], {"data.init_args.soft_labels": True}, "data.soft_labels", " Leave it out."),
        (
            ["label"], {"data.init_args.rationale_selection": "verified"},
            "data.rationale_selection verified", " Set it to first or consistent.",
        ),
    ],
)  # fmt: skip
def test_what_needs_clips_of_one_class(
    stages: list[str], changes: dict[str, Any], begins: str, ends: str
):
    settings = Namespace()
    settings["model.answer"] = "score"
    settings["data.init_args.balanced_sampling"] = False
    settings["data.init_args.rationale_selection"] = "consistent"
    check_several(settings, ["rationale", "label", "rationale-2"], PETS)
    for name, value in changes.items():
        settings[name] = value
    check_several(settings, stages, CARD)
    with pytest.raises(ValueError, match="key several") as error:
        check_several(settings, stages, PETS)
    assert str(error.value) == (
        f"{begins} needs clips of one class, but card 'pets' has the key several: its clips may "
        f"have several classes, or none.{ends}"
    )
