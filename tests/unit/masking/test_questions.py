import pytest

from rbft.masking.formats import FORMAT_NAMES
from rbft.masking.questions import Questions, parse_names


@pytest.mark.parametrize("form", FORMAT_NAMES)
def test_questions_hold_what_is_asked_for(form):
    asked = Questions(2, form)
    assert "2 objects" in asked.names
    apart = " ; " if form == "paligemma" else ", "
    assert f"dog{apart}trash can" in asked.boxes(["dog", "trash can"])
    if form not in ("paligemma", "florence2"):  # which take names alone
        assert "the 2 objects that matter most" in asked.boxes([])
    assert not {"{", "}"} & set(asked.names + asked.boxes(["dog"]))


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ('["a dog", "Trash can", "dog"]', ["a dog", "Trash can", "dog"]),
        ('```json\n["dog", "Dog", "bin"]\n```', ["dog", "bin"]),
        ('Sure: ["dog", "bin", "per', ["dog", "bin"]),  # cut off
        ("1. dog\n2) black bear.\n- **bin**", ["dog", "black bear", "bin"]),
        ("dog, bin; car, plant", ["dog", "bin", "car"]),
        ('[1, "dog"]', ["dog"]),
        (f"{'x' * 61}\ndog", ["dog"]),
        ("", []),
    ],
)
def test_names_in_an_answer(answer, names):
    assert parse_names(answer, 3) == names
