"""One of K rationales is chosen."""

import itertools

import pytest

from rbft.rationales.sample import Sample
from rbft.rationales.selection import (
    add_hinted,
    most_consistent,
    refuse_label_conditioned,
    sections,
    select,
)


def samples(*texts: str, clip: str = "a", label: int | None = 0) -> list[Sample]:
    return [Sample(clip, text, label, number=number) for number, text in enumerate(texts)]


def test_first_takes_the_lowest_number():
    ones = samples("zero", "one", "two")
    other = samples("b zero", clip="b")
    chosen = select([ones[2], *other, ones[0], ones[1]], "first").chosen
    assert list(chosen.items()) == [("a", ones[0]), ("b", other[0])]


HEADED = "1. Subjects: {} 2. Attributes: {} 3. Actions: {} 4. Scene: {}"


@pytest.mark.parametrize(
    "text",
    [
        "Subjects: a bear\nAttributes: brown\nActions: walks\nScenes: yard",
        "1. Subjects: a bear 2. Attributes: brown 3. Actions: walks 4. Scene: yard",
        "**Subjects:** a bear\n\n**Attributes**: brown\n\n- **Actions:** walks\n* Scene: yard",
        "### Subjects\na bear\n### ATTRIBUTES\nbrown\n## Actions\nwalks\n# Setting\nyard",
        "(1) Subject: a bear\n(2) Attribute: brown\n(3) Action: walks\n(4) Scenes: yard",
        "So:\nSubjects: a bear\nAttributes: brown\nActions:\nwalks\nScenes: yard",
        "subjects : a bear . attributes : brown . actions : walks . scenes : yard",
    ],
)
def test_sections(text):
    found = {name: part.rstrip(" .") for name, part in sections(text).items()}
    assert found == {
        "subjects": "a bear",
        "attributes": "brown",
        "actions": "walks",
        "scenes": "yard",
    }


def test_what_is_no_heading():
    text = (
        "The subjects walk. Their actions: none. A scene unfolds in the yard, 3 actions follow. "
        "Actions speak louder than words."
    )
    assert sections(text) == {}
    assert sections("Subjects: a\nActions: b\nSubjects: c") == {"subjects": "a\nc", "actions": "b"}


def test_the_most_consistent_is_most_like_the_others():
    ones = samples("a dog runs", "a dog runs away", "the cat sleeps")
    assert most_consistent(ones) == ones[0]
    odd = samples("the cat sleeps", "a dog runs", "a dog runs away quickly", "a dog runs away")
    assert most_consistent(odd) == odd[3]


def test_dimensions_count_alike_however_long():
    """Two share a long scene, the other two everything but their long scenes."""
    scenes = [" ".join(f"{letter}{number}" for number in range(30)) for letter in "xyz"]
    parts = [
        ("dog", "wet", "digs", scenes[0]),
        ("cat", "white", "sleeps", scenes[0]),
        ("man", "tall", "waits", scenes[1]),
        ("man", "tall", "waits", scenes[2]),
    ]
    assert most_consistent(ones := samples(*(HEADED.format(*part) for part in parts))) == ones[2]
    assert most_consistent(ones := samples(*(" ".join(part) for part in parts))) == ones[0]
    # One without headings: all are compared as whole texts.
    mixed = [HEADED.format(*part) for part in parts[:3]] + [" ".join(parts[3])]
    assert most_consistent(ones := samples(*mixed)) == ones[0]


def test_consistency_does_not_depend_on_the_order_and_ties_go_to_the_first():
    ones = samples("a dog runs", "a dog runs away", "a cat sleeps", "a dog sleeps")
    chosen = {most_consistent(order) for order in itertools.permutations(ones)}
    assert len(chosen) == 1
    two = samples("a dog", "the cat sat")
    assert most_consistent(two) == most_consistent(two[::-1]) == two[0]
    assert most_consistent(two[1:]) == two[1]
    assert select(ones, "consistent").chosen == {"a": chosen.pop()}


def test_verified_takes_the_first_that_led_to_the_label():
    a, b = samples("x", "y", "z", label=1), samples("x", "y", clip="b", label=0)
    elicited = {("a", 0): 0, ("a", 1): 1, ("a", 2): 1, ("b", 0): 1, ("b", 1): None}
    found = select([*a, *b], "verified", elicited)
    assert found.chosen == {"a": a[1]}
    assert found.lacking == ("b",)


def test_verified_needs_an_answer_and_a_label():
    ones = samples("x", "y")
    with pytest.raises(ValueError, match="no elicited class") as error:
        select(ones, "verified", {("a", 0): 0})
    assert str(error.value) == (
        "Sample 1 of clip a has no elicited class. To verify, ask for the class behind each "
        "rationale first (P+R+C)."
    )
    with pytest.raises(ValueError, match="Sample 0 of clip a has no elicited class"):
        select(ones, "verified")
    with pytest.raises(ValueError, match="no label") as error:
        select(samples("x", label=None), "verified", {("a", 0): 0})
    assert str(error.value) == (
        "Clip a has no label, so its rationales cannot be verified. Leave clips without a label "
        "out, or select by `first` or `consistent`."
    )


def test_a_second_try_with_a_hint_is_marked_and_verified():
    tried = [*samples("x"), *samples("y", clip="b"), *samples("w", clip="c")]
    wrong = {("a", 0): 0, ("b", 0): 1, ("c", 0): 1}
    found = select(tried, "verified", wrong)
    assert found.label_conditioned == ()
    hinted = [*samples("y, told so", clip="b"), *samples("still wrong", clip="c")]
    both = add_hinted(found, hinted, {("b", 0): 0, ("c", 0): None})
    assert list(both.chosen) == ["a", "b"]
    assert both.chosen["b"].label_conditioned
    assert (both.label_conditioned, both.lacking) == (("b",), ("c",))
    with pytest.raises(ValueError, match="tried again") as error:
        add_hinted(found, samples("x"), {("a", 0): 0})
    assert str(error.value) == (
        "Clip a was tried again with a hint, but is not among the 2 clips that lack a rationale. "
        "Write hinted rationales for the clips of `lacking` only."
    )


@pytest.mark.parametrize("rule", ["first", "consistent", "verified"])
def test_label_conditioned_rationales_are_refused_unless_asked_for(rule):
    told = [Sample("a", "x", 0, label_conditioned=True), Sample("b", "y", 0)]
    answers = {("a", 0): 0, ("b", 0): 0}
    with pytest.raises(ValueError, match="label-conditioned") as error:
        select(told, rule, answers)
    assert str(error.value) == (
        "1 of 2 rationales are label-conditioned: their writer was told the class (first: a). The "
        "paper's never is. Take their lines out, or ask for such rationales: "
        "data.rationale_selection verified with data.rationale_fallback hint."
    )
    chosen = select(told, rule, answers, allow_label_conditioned=True)
    assert chosen.label_conditioned == ("a",)
    refuse_label_conditioned(told[1:], allowed=False)
