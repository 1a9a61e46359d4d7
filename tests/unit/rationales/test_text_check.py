"""A classifier on the rationales alone, beside the majority."""

import random
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from rbft.card import Card
from rbft.rationales import text_check
from rbft.rationales.sample import Sample
from rbft.rationales.text_check import TextCheck, check_texts

ROOT = Path(__file__).parents[3]
CARD = Card(
    name="yard",
    persona="guard",
    words={"normal": "normal", "abnormal": "abnormal"},
    prompts={"label": "Is it {words}?", "rationale": "Describe it."},
)
NOISE = "a yard with trees and one lamp near the wall where wind moves leaves".split()  # noqa: SIM905
SIGNS = (["calm", "resident", "waters"], ["breaks", "masked", "runs"])


def text(draw: random.Random, extra: str = "") -> str:
    return f"{' '.join(draw.choices(NOISE, k=25))} {extra}"


def many(extra, count=40, share=0.5) -> list[Sample]:
    """Rationales with something said of the class, in an order that tells nothing."""
    draw = random.Random(1)
    labels = [int(number >= share * count) for number in range(count)]
    draw.shuffle(labels)
    return [
        Sample(f"c{number}", text(draw, extra(draw, label)), label)
        for number, label in enumerate(labels)
    ]


def knowing(draw: random.Random, label: int) -> str:
    return draw.choice(SIGNS[label])


@pytest.mark.parametrize("leave_one_out", [0, 200])
def test_texts_that_know_the_class(leave_one_out):
    found = check_texts(many(knowing), CARD, leave_one_out=leave_one_out)
    assert found.accuracy >= 0.9
    assert found.majority == 0.5
    assert found.interval[0] > found.majority
    assert "tell the classes apart" in found.verdict
    assert set(SIGNS[1]) <= set(found.telling["abnormal"])
    assert set(SIGNS[0]) <= set(found.telling["normal"])
    assert found.scheme == ("leave-one-video-out" if leave_one_out else "10-fold")


@pytest.mark.parametrize("leave_one_out", [0, 200])
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_texts_that_know_nothing(leave_one_out, share):
    found = check_texts(
        many(lambda draw, label: "", count=120, share=share), CARD, leave_one_out=leave_one_out
    )
    assert found.interval[0] <= found.majority <= found.interval[1]
    assert found.verdict.startswith("No sign")
    assert found.accuracy > 0.4  # one left out makes its class rarer: 0 without the weights


@pytest.mark.parametrize("leave_one_out", [0, 200])
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_texts_that_are_all_the_same_get_the_majority(leave_one_out, share):
    same = [Sample(one.clip, "A dog.", one.label) for one in many(knowing, share=share)]
    found = check_texts(same, CARD, leave_one_out=leave_one_out)
    assert found.accuracy == found.majority == share
    assert set(found.guesses) == {0}


@pytest.mark.parametrize("leave_one_out", [0, 200])
def test_videos_of_many_clips_do_not_shift_the_classes(leave_one_out):
    """Six videos of three clips, and eighteen of one: 18 clips of each class."""
    same = [
        Sample(f"c{at}", "A dog.", int(at >= 18), video=f"v{at // 3 if at < 18 else at}")
        for at in range(36)
    ]
    assert set(check_texts(same, CARD, leave_one_out=leave_one_out).guesses) == {0}


@pytest.mark.parametrize(
    "phrase",
    [
        lambda word: f"So it is {word}.",
        lambda word: f"{word.upper()}!",
        lambda word: f"**{word}ly** so",
        lambda word: word,
    ],
)
def test_class_words_do_not_help(phrase):
    words = list(CARD.words)
    samples = many(lambda draw, label: phrase(words[label]), count=60)
    plain = check_texts(samples, CARD)
    assert plain.accuracy < 0.75
    assert not any("normal" in one for ones in plain.telling.values() for one in ones)
    blind = [Sample(one.clip, phrase(words[one.label or 0]), one.label) for one in samples]
    assert check_texts(blind, CARD).accuracy == 0.5
    # Unmasked they give everything away.
    other = Card("x", "", {"a": "yes", "b": "no"}, dict(CARD.prompts))
    assert check_texts(samples, other).accuracy > 0.95


def test_naming_a_class_at_all_does_not_help():
    """Only clips of one class name one: a mark in the place of the word would tell."""
    samples = many(lambda draw, label: "normal" if label else "", count=60)
    assert check_texts(samples, CARD).accuracy < 0.75


def test_clips_of_one_video_are_left_out_together():
    """Each video has words of its own: a classifier that has seen the video knows its class."""
    samples = []
    for video in range(20):
        label = video % 2
        for clip in range(3):
            name = f"v{video}c{clip}"
            samples.append(Sample(name, f"video{video} " * 5, label, video=f"digest{video}"))
    for leave_one_out in (0, 200):
        found = check_texts(samples, CARD, leave_one_out=leave_one_out)
        assert found.accuracy == 0.5
        apart = [Sample(one.clip, one.text, one.label) for one in samples]
        assert check_texts(apart, CARD, leave_one_out=leave_one_out).accuracy > 0.9


def test_the_vectoriser_sees_no_text_that_is_guessed(monkeypatch):
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted, shown = [], []

    class Watched(TfidfVectorizer):
        def fit_transform(self, raw_documents, y=None):
            fitted.append({one[0] for one in raw_documents})
            return super().fit_transform(raw_documents, y)

        def transform(self, raw_documents):
            shown.append(({one[0] for one in raw_documents}, set(fitted[-1])))
            return super().transform(raw_documents)

    monkeypatch.setattr("sklearn.feature_extraction.text.TfidfVectorizer", Watched)
    samples = [
        Sample(f"c{at}", f"only{at} dog runs", at % 2, video=f"v{at // 4}") for at in range(24)
    ]
    check_texts(samples, CARD, leave_one_out=0, folds=3)
    check_texts(samples, CARD)
    assert len(shown) == 3 + 6
    for guessed, seen in shown:
        assert not guessed & seen
        assert len(guessed) + len(seen) == 24


def test_figures_against_scikit_learn_and_scipy():
    labels, guesses = (0, 0, 0, 1, 1, 2, 2, 2, 2, 0), (0, 1, 0, 1, 0, 2, 2, 0, 2, 0)
    ids = tuple(map(str, range(10)))
    found = TextCheck(("a", "b", "c", "none"), ids, labels, guesses, "x", {})
    assert found.accuracy == 0.7
    assert found.macro_f1 == pytest.approx(f1_score(labels, guesses, average="macro"))
    expected = f1_score(labels, [2] * 10, average="macro")
    assert found.majority_macro_f1 == pytest.approx(expected)
    assert list(found.f1) == ["a", "b", "c"]
    assert found.as_dict()["wrong"] == ["1", "4", "7"]
    reference = binomtest(7, 10).proportion_ci(0.95, method="wilson")
    assert found.interval == pytest.approx(tuple(reference), abs=1e-12)


def test_the_report():
    found = TextCheck(("n", "a"), ("x",) * 100, (0,) * 40 + (1,) * 60, (1,) * 100, "10-fold", {})
    assert str(found) == (
        "The class guessed from 100 rationales alone, class words masked (10-fold):\n"
        "  accuracy  60.0% (95 % interval 50.2% to 69.1%), always the most frequent class 60.0%\n"
        "  macro F1  37.5%, always the most frequent class 37.5%\n"
        "No sign that the rationales know the class: the majority lies in the interval."
    )
    wrong = TextCheck(("n", "a"), ("x",) * 90, (0,) * 30 + (1,) * 60, (0,) * 90, "10-fold", {})
    assert wrong.verdict == "The rationales mislead: the interval lies below the majority."


def test_the_order_of_texts_changes_nothing_and_the_seed_only_the_folds():
    samples = many(knowing, count=30)
    mixed = samples[::-1]
    one, other = check_texts(samples, CARD), check_texts(mixed, CARD)
    guesses = dict(zip(other.clips, other.guesses, strict=True))
    assert [guesses[clip] for clip in one.clips] == list(one.guesses)
    first = check_texts(samples, CARD, leave_one_out=0, seed=3)
    assert first == check_texts(samples, CARD, leave_one_out=0, seed=3)


def test_three_classes():
    card = Card("x", "", {"a": "ay", "b": "bee", "c": "see"}, dict(CARD.prompts))
    signs = ("red", "green", "blue")
    draw = random.Random(0)
    samples = [
        Sample(f"c{at}", text(draw, f"{signs[at % 3]} {signs[at % 3]}"), at % 3) for at in range(30)
    ]
    found = check_texts(samples, card)
    assert found.accuracy == 1.0
    assert [found.telling[name][0] for name in "abc"] == ["red", "green", "blue"]


def test_texts_without_words_get_the_majority():
    samples = [Sample(f"c{at}", "...", int(at >= 4)) for at in range(10)]
    assert check_texts(samples, CARD).guesses == (1,) * 10


def test_what_cannot_be_checked():
    with pytest.raises(ValueError, match="without a label") as error:
        check_texts([Sample("a", "x", 0), Sample("b", "y", None)], CARD)
    assert str(error.value) == (
        "1 of 2 rationales are of clips without a label (first: b), so nothing can be guessed "
        "right. Leave them out."
    )
    lone = [Sample("a", "x", 0), Sample("b", "y", 0), *[Sample("c", "z", 1, video="v")] * 2]
    with pytest.raises(ValueError, match="1 video") as error:
        check_texts(lone, CARD)
    assert str(error.value) == (
        "Class 'abnormal' has rationales of 1 video; to guess from others it needs 2 or more. "
        "Have more written, or leave the class out."
    )
    with pytest.raises(ValueError, match="2 or more classes") as error:
        check_texts(lone[:2], CARD)
    assert str(error.value) == (
        "Rationales of 2 or more classes are needed to tell them apart; got normal."
    )


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match="scikit-learn") as error:
        check_texts(many(knowing), CARD)
    assert str(error.value).startswith(
        "The check of rationales by a text classifier needs scikit-learn, which is not installed ("
    )
    assert str(error.value).endswith("). Run: pip install 'rbft[analysis]'")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["analysis"]
    assert any(one.startswith("scikit-learn") for one in extra)


def test_the_module_itself_needs_no_scikit_learn():
    assert not any(name.startswith("sklearn") for name in vars(text_check))
    assert isinstance(text_check.np, type(np))
