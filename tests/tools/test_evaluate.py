from tests.unit.miniature.test_language import RATIONALE
from tools.miniature_base.evaluate import accuracies


def test_accuracy_counts_each_factor_and_unreadable_text_as_wrong():
    off = RATIONALE.replace("the bear knocks over", "the bear approaches").replace("night", "day")
    found = accuracies([RATIONALE] * 4, [RATIONALE, off, "", "risk : high , wild animal ."])
    assert found == {
        "subject": 0.5,
        "object": 0.5,
        "subject_colour": 0.5,
        "object_colour": 0.5,
        "place": 0.5,
        "hour": 0.25,
        "weather": 0.5,
        "risk": 0.75,
        "action": 0.25,
        "whole": 0.25,
    }
