import dataclasses

import numpy as np
import pytest

from rbft.miniature import language
from rbft.miniature.scene import DOMAINS, TARGET, draw_scene, is_abnormal
from tests.unit.miniature.test_scene import SCENE

RATIONALE = (
    "subjects : bear , bin . attributes : black bear , red bin . "
    "actions : the bear knocks over the bin . scenes : yard , night , rain . "
    "risk : high , wild animal ."
)


def test_rationale_and_atmosphere_as_literals():
    assert language.rationale(SCENE) == RATIONALE
    assert language.atmosphere(SCENE) == "weather : rain . place : yard . paint : black , red ."
    assert language.generic_label(SCENE) == "abnormal"


@pytest.mark.parametrize(
    ("subject", "thing", "action", "night", "risk"),
    [
        ("bear", "bin", "walks past", False, "high , wild animal"),
        ("raccoon", "plant", "knocks over", False, "high , wild animal"),
        ("raccoon", "package", "waits beside", False, "high , wild animal"),
        ("raccoon", "plant", "waits beside", False, "low , wild animal"),
        ("raccoon", "bin", "walks past", False, "low , wild animal"),
        ("dog", "bin", "takes away", False, "low , pet mischief"),
        ("cat", "bin", "approaches", True, "none , pet"),
        ("person", "bike", "knocks over", False, "high , damage"),
        ("person", "bike", "takes away", False, "high , theft"),
        ("person", "bin", "takes away", True, "low , chores"),
        ("person", "package", "drops off", True, "low , late delivery"),
        ("person", "package", "walks past", True, "high , stranger at night"),
        ("person", "package", "approaches", False, "low , visitor"),
        ("person", "package", "drops off", False, "none , routine"),
        ("car", "bike", "knocks over", True, "high , damage"),
        ("car", "bike", "takes away", True, "low , theft"),
        ("car", "bike", "approaches", True, "low , late visitor"),
        ("car", "bike", "approaches", False, "none , routine"),
    ],
)
def test_risk_follows_from_general_knowledge(subject, thing, action, night, risk):
    scene = dataclasses.replace(SCENE, subject=subject, object=thing, action=action, night=night)
    assert language.rationale(scene).endswith(f" risk : {risk} .")


def test_high_risk_agrees_with_the_target_rule_on_about_85_percent():
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, TARGET) for _ in range(2000)]
    high = [language.factors(language.rationale(scene))["risk"] == "high" for scene in scenes]
    agreement = np.mean([a is is_abnormal(scene) for a, scene in zip(high, scenes, strict=True)])
    assert agreement == pytest.approx(0.85, abs=0.03)


def test_factors_read_a_rationale_back():
    assert language.factors(RATIONALE) == {
        "subject": "bear",
        "object": "bin",
        "subject_colour": "black",
        "object_colour": "red",
        "place": "yard",
        "hour": "night",
        "weather": "rain",
        "risk": "high",
        "action": "knocks over",
    }


def test_factors_leave_out_what_cannot_be_read():
    assert language.factors("subjects : bear . actions : the bear the") == {}
    assert language.factors("") == {}


def test_every_text_keeps_to_the_vocabulary_and_no_rationale_names_a_class():
    rng = np.random.default_rng(0)
    words = set(language.WORDS)
    for _ in range(300):
        for domain in DOMAINS.values():
            scene = draw_scene(rng, domain)
            asked = [text for turn in language.questions(scene, rng) for text in turn]
            own = language.rationale(scene)
            texts = [own, language.atmosphere(scene), language.generic_label(scene), *asked]
            assert set(" ".join(texts).split()) <= words
            assert not {"normal", "abnormal"} & set(own.split())
    for persona in language.PERSONAS:
        assert set(language.RATIONALE_PROMPT.format(persona=persona).split()) <= words
