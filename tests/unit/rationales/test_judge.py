"""Asking a judge: requests, repeats, anchors and what is counted."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rbft.card import Card
from rbft.rationales.judge import (
    ANCHORS,
    Answer,
    Item,
    ItemScore,
    JudgeReport,
    Request,
    judge,
    load_anchors,
    plain_text,
)
from rbft.rationales.rubric import Rubric, Token

ROOT = Path(__file__).parents[3]
CARD = Card(
    name="yard",
    persona="guard",
    words={"quiet": "normal", "alarm": "abnormal"},
    prompts={"label": "Is it {words}?", "rationale": "Describe it."},
)
RUBRIC = Rubric.load()
FINDINGS = {
    0: (False, False, False, False),
    1: (True, False, False, False),
    2: (True, True, False, False),
    3: (True, True, True, False),
    4: (True, True, True, True),
}


def said(level: int, findings: int | None = None, **more: Any) -> Answer:
    answers = FINDINGS[level if findings is None else findings]
    content = {"reason": "so", **dict(zip(RUBRIC.findings, answers, strict=True)), "level": level}
    return Answer(json.dumps(content), **more)


def by_text(levels: dict[str, list[Answer]]):
    """A judge that answers by what stands in the prompt, each repeat in turn."""
    turns: dict[tuple[str, int], Answer] = {
        (text, number): answer
        for text, answers in levels.items()
        for number, answer in enumerate(answers)
    }

    def ask(requests: Sequence[Request]) -> list[Answer]:
        return [
            next(
                answer
                for (text, number), answer in turns.items()
                if f"\n{text}\n" in request.prompt and number == request.seed
            )
            for request in requests
        ]

    return ask


def always(level: int):
    return lambda requests: [said(level) for _ in requests]


ITEMS = [
    Item("full", "a", "dog digs", 0),
    Item("full", "b", "man runs", 1),
    Item("least", "a", "pale light", 0),
]


def test_scores_are_kept_by_text_and_averaged_by_condition():
    ask = by_text(
        {
            "dog digs": [said(3), said(3), said(4)],
            "man runs": [said(4), said(4), said(4)],
            "pale light": [said(0), said(1), said(0)],
        }
    )
    report = judge(ITEMS, CARD, ask, rubric=RUBRIC)
    assert [one.item for one in report.items] == ITEMS
    assert [one.scores for one in report.items] == [(0.75, 0.75, 1), (1, 1, 1), (0, 0.25, 0)]
    assert report.conditions == ["full", "least"]
    assert report.mean("full").value == pytest.approx((2.5 / 3 + 1) / 2)
    assert report.mean("full").n == 2
    assert report.mean("least").value == pytest.approx(0.25 / 3)
    # Variances 1/48, 0 and 1/48 of three scores each.
    assert report.spread == pytest.approx(math.sqrt(2 / 48 / 3))
    assert report.inconsistent == 0
    assert report.rubric == f"task_correlation_1 {RUBRIC.digest}"


def test_the_judge_is_told_neither_condition_nor_clip_and_the_label_only_where_asked():
    seen: list[Request] = []

    def ask(requests: Sequence[Request]) -> list[Answer]:
        seen.extend(requests)
        return [said(0) for _ in requests]

    items = [Item("condition-x", "clip-y", "dog digs", 1)]
    judge(items, CARD, ask, rubric=RUBRIC)
    assert len(seen) == 3
    for request in seen:
        shown = json.dumps([request.key, request.prompt, dict(request.schema)])
        assert "condition-x" not in shown
        assert "clip-y" not in shown
        assert "This video is" not in shown
    assert [request.schema for request in seen] == [RUBRIC.schema] * 3
    assert {request.seed for request in seen} == {0, 1, 2}
    seen.clear()
    judge(items, CARD, ask, rubric=RUBRIC, show_label=True, seed=5)
    assert all("This video is abnormal." in request.prompt for request in seen)
    assert {request.seed for request in seen} == {5, 6, 7}


def test_the_order_mixes_conditions_and_depends_on_the_seed_only():
    orders = []

    def ask(requests: Sequence[Request]) -> list[Answer]:
        orders.append(["dog" in request.prompt for request in requests])
        assert len({request.key for request in requests}) == len(requests)
        return [said(0) for _ in requests]

    items = [
        *(Item("full", str(number), f"dog {number}") for number in range(20)),
        *(Item("least", str(number), f"light {number}") for number in range(20)),
    ]
    for seed in (0, 0, 1):
        judge(items, CARD, ask, rubric=RUBRIC, repeats=2, seed=seed)
    assert orders[0] == orders[1] != orders[2]
    assert 10 < sum(orders[0][:40]) < 30


def test_answers_find_their_text_whatever_the_order():
    items = [Item("full", str(number), f"text{number}") for number in range(25)]

    def ask(requests: Sequence[Request]) -> list[Answer]:
        numbers = [int(request.prompt.split("\ntext")[1].split("\n")[0]) for request in requests]
        return [said(number % 5) for number in numbers]

    report = judge(items, CARD, ask, rubric=RUBRIC)
    assert [one.scores for one in report.items] == [((n % 5) / 4,) * 3 for n in range(25)]


def test_unreadable_answers_are_counted_and_are_no_score():
    ask = by_text(
        {
            "dog digs": [said(4), Answer("4"), Answer("")],
            "man runs": [Answer("I'd say 4"), Answer(""), Answer("")],
            "pale light": [said(0)] * 3,
        }
    )
    report = judge(ITEMS, CARD, ask, rubric=RUBRIC)
    assert report.items[0].scores == (1.0,)
    assert report.items[0].unreadable == ("no JSON object", "empty")
    assert report.items[1].mean is None
    assert report.mean("full").n == 1
    assert report.unreadable == {"no JSON object": 1, "empty": 3, "no JSON": 1}
    silent = judge(ITEMS[:2], CARD, lambda requests: [Answer("")] * 6, rubric=RUBRIC)
    with pytest.raises(ValueError, match="no readable answer") as error:
        silent.mean("full")
    assert str(error.value) == "The judge gave no readable answer for 'full' (6 empty)."
    assert "  full: no readable answer" in str(silent)


def test_levels_that_contradict_their_findings_are_counted():
    ask = by_text(
        {
            "dog digs": [said(4, findings=3), said(4), said(2, findings=0)],
            "man runs": [said(1)] * 3,
            "pale light": [said(0)] * 3,
        }
    )
    report = judge(ITEMS, CARD, ask, rubric=RUBRIC)
    assert report.inconsistent == 2
    assert report.items[0].scores == (1.0, 1.0, 0.5)


def test_log_probabilities_make_the_score_an_expectation():
    plain = said(3)
    head = plain.text[: plain.text.rindex("3")]
    options = {"3": math.log(0.5), "4": math.log(0.5)}
    scored = Answer(plain.text, (Token(head, {}), Token("3", options), Token("}", {})))
    report = judge(
        ITEMS[:1], CARD, by_text({"dog digs": [scored, plain]}), rubric=RUBRIC, repeats=2
    )
    assert report.items[0].scores == (0.875, 0.75)
    assert report.expectations == 1


def test_anchors_show_a_judge_that_does_not_follow_the_rubric_and_drift():
    anchors = load_anchors(ANCHORS / "smarthome.yaml", RUBRIC)
    levels = {one.rationale: round((one.expected or 0) * 4) for one in anchors}
    good = by_text(
        {text: [said(level)] for text, level in levels.items()} | {"dog digs": [said(4)]}
    )
    first = judge(ITEMS[:1], CARD, good, rubric=RUBRIC, anchors=anchors, repeats=1)
    assert first.misplaced == {}
    assert len(first.anchors) == len(anchors)
    assert len(first.items) == 1
    now = judge(ITEMS[:1], CARD, always(4), rubric=RUBRIC, anchors=anchors, repeats=1)
    assert set(now.misplaced) == {one.id for one in anchors if one.expected != 1}
    assert now.misplaced["light"] == (0.0, 1.0)
    assert now.drift(first.anchor_scores())["bear"] == (0.5, 1.0)
    assert len(now.drift(first.anchor_scores())) == 8
    assert first.drift(first.anchor_scores()) == {}
    assert now.drift({"light": 1.0, "gone": 0.5}) == {}
    assert "Anchor 'light' should get 0.00 and got 1.00." in str(now)
    silent = judge([], CARD, lambda r: [Answer("")] * len(r), rubric=RUBRIC, anchors=anchors)
    assert silent.misplaced["theft"] == (1.0, None)


def test_half_a_level_is_the_limit():
    def report(mean: float) -> JudgeReport:
        return JudgeReport((), (ItemScore(Item("anchor", "x", "t", expected=0.5), (mean,)),))

    assert report(0.5 + 0.12).misplaced == {}
    assert set(report(0.5 - 0.125).misplaced) == {"x"}
    assert report(0.5).drift({"x": 0.62}) == {}
    assert report(0.5).drift({"x": 0.625}) == {"x": (0.625, 0.5)}


@pytest.mark.parametrize("card", ["smarthome", "multihateclip"])
def test_the_anchors_that_come_along(card):
    found = load_anchors(ANCHORS / f"{card}.yaml", RUBRIC)
    assert {one.expected for one in found} == {0, 0.25, 0.5, 0.75, 1}
    assert len({one.id for one in found}) == len(found)
    assert (ROOT / f"rbft/data/{card}.yaml").exists()


def test_anchor_files_are_checked(tmp_path):
    path = tmp_path / "anchors.yaml"
    path.write_text("- {id: a, level: '0', text: x}")
    with pytest.raises(ValueError, match="must be a list") as error:
        load_anchors(path, RUBRIC)
    assert str(error.value) == (
        f"Anchor file {path} must be a list of entries with id (str), level (int), text (str)."
    )
    path.write_text("- {id: a, level: 0, text: x}\n- {id: b, level: 4, text: x}")
    with pytest.raises(ValueError, match="of the levels") as error:
        load_anchors(path, RUBRIC)
    assert str(error.value) == (
        f"Anchor file {path} has texts of the levels [0, 4]; it must have some of each of "
        "[0, 1, 2, 3, 4]."
    )


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("## Subjects\nA **dog**.", "Subjects\nA dog."),
        ("- one\n* two\n> three", "one\ntwo\nthree"),
        ("_it_ and `code` and snake_case and 2*3", "it and code and snake_case and 2*3"),
        ("1. Subjects: a dog", "1. Subjects: a dog"),
    ],
)
def test_markdown_does_not_speak_for_a_text(text, plain):
    assert plain_text(text) == (plain, False)


def test_long_texts_are_cut_and_counted():
    assert plain_text("one two, three.", 2) == ("one two,", True)
    assert plain_text("one two, three.", 3) == ("one two, three.", False)
    items = [Item("full", "a", "word " * 500), Item("full", "b", "word " * 5)]
    seen: list[int] = []

    def ask(requests: Sequence[Request]) -> list[Answer]:
        seen.extend(request.prompt.count("word ") for request in requests)
        return [said(0) for _ in requests]

    cut = judge(items, CARD, ask, rubric=RUBRIC, repeats=1)
    assert cut.shortened == 1
    assert str(cut).endswith("1 texts were too long and were cut.")
    assert judge(items, CARD, ask, rubric=RUBRIC, repeats=1, max_words=None).shortened == 0
    assert max(seen[:2]) < 405
    assert max(seen) >= 499


def test_the_report():
    ask = by_text(
        {
            "dog digs": [said(4, model="judge-1"), said(4, model="judge-1")],
            "man runs": [said(3, model="judge-1"), said(2, model="judge-1")],
            "pale light": [said(0, model="judge-1"), Answer("?", model="judge-2")],
        }
    )
    report = judge(ITEMS, CARD, ask, rubric=RUBRIC, repeats=2)
    low = report.mean("full").low
    assert str(report) == (
        "Task correlation, 0 to 1 (mean, 95 % interval over texts):\n"
        f"  full: 0.81 ({low:.2f} to {report.mean('full').high:.2f}, n = 2)\n"
        "  least: 0.00 (0.00 to 0.00, n = 1)\n"
        "The judge's own spread: 0.125 (sd over a text's repeats).\n"
        "6 answers (5 judge-1, 1 judge-2): 1 unreadable (1 no JSON), 0 with a level that "
        "contradicts their own findings, 0 scored by log-probabilities."
    )
    content = report.as_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["means"]["full"]["mean"] == pytest.approx(0.8125)
    assert content["models"] == {"judge-1": 5, "judge-2": 1}
    human = {("full", "a"): 0.5, ("full", "b"): 0.5, ("least", "a"): 1.0}
    assert report.calibrated("full", human).value == 0.5


def test_what_cannot_be_judged():
    twice = [Item("full", "a", "x"), Item("full", "a", "y")]
    with pytest.raises(ValueError, match="twice") as error:
        judge(twice, CARD, always(0), rubric=RUBRIC)
    assert str(error.value) == (
        "'a' of 'full' is to be graded twice. Give each text of a condition an id of its own; how "
        "often one is graded is `repeats`."
    )
    with pytest.raises(ValueError, match="no label") as error:
        judge([Item("full", "a", "x")], CARD, always(0), rubric=RUBRIC, show_label=True)
    assert str(error.value) == (
        "1 texts have no label to show to the judge (first: a). Leave them out, or set show_label "
        "to false."
    )
    with pytest.raises(ValueError, match="gave 2 answers") as error:
        judge(ITEMS[:1], CARD, lambda requests: [said(0)] * 2, rubric=RUBRIC)
    assert str(error.value) == (
        "The judge was asked 3 questions and gave 2 answers; each needs one, if only an empty one."
    )
    for wrong in ({"repeats": 0}, {"max_words": 0}):
        settings: dict[str, Any] = {"repeats": 3, "max_words": 400, **wrong}
        with pytest.raises(ValueError, match="must be 1 or more") as error:
            judge(ITEMS, CARD, always(0), rubric=RUBRIC, **settings)
        assert str(error.value) == (
            f"repeats ({settings['repeats']}) and max_words ({settings['max_words']}) must be 1 or "
            "more; max_words may be null."
        )
