"""How well the class can be guessed from the rationales alone: do they know anything?

A linear classifier on the words of a rationale, with the class words taken out, guesses the class
of clips whose rationales it has not seen. If it does no better than always answering the most
frequent class, Stage I would learn nothing about the task from these texts.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from rbft.analysis.intervals import wilson
from rbft.card import Card
from rbft.rationales.sample import Sample
from rbft.rationales.words import ClassWords, words

# Of C = 1, 10 and 100, with and without pairs of words, what found the most in made-up texts of 25
# and 120 words, of which one word told the class.
STRENGTH = 10.0
LEAVE_ONE_OUT = 200  # videos up to which each is left out alone; the fits take a minute or two then
FOLDS = 10
TELLING = 8  # words that the report shows of each class
TIE = 1e-6  # difference of log-probabilities that the solver leaves open


@dataclass(frozen=True)
class TextCheck:
    """What the classifier made of the rationales.

    Attributes:
        classes: Class names in order.
        clips: Ids of the clips, one for each rationale.
        labels: Class of each.
        guesses: Guessed class of each, by a classifier that has seen no rationale of its video.
        scheme: How rationales were left out: "leave-one-video-out" or "10-fold".
        telling: For each class, the words that speak most for it, of one fit to all rationales.
    """

    classes: tuple[str, ...]
    clips: tuple[str, ...]
    labels: tuple[int, ...]
    guesses: tuple[int, ...]
    scheme: str
    telling: Mapping[str, tuple[str, ...]]

    @property
    def right(self) -> int:
        """Number of right guesses."""
        return sum(a == b for a, b in zip(self.labels, self.guesses, strict=True))

    @property
    def accuracy(self) -> float:
        """Share of right guesses, 0 to 1."""
        return self.right / len(self.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, which takes rationales as independent."""
        found = wilson(self.right, len(self.labels))
        return found.low, found.high

    @property
    def majority(self) -> float:
        """Accuracy of always guessing the most frequent class."""
        return max(Counter(self.labels).values()) / len(self.labels)

    @property
    def f1(self) -> dict[str, float]:
        """F1 of each class that occurs."""
        return {
            name: _f1(self.labels, self.guesses, index)
            for index, name in enumerate(self.classes)
            if index in self.labels
        }

    @property
    def macro_f1(self) -> float:
        """Mean of `f1`."""
        return sum(self.f1.values()) / len(self.f1)

    @property
    def majority_macro_f1(self) -> float:
        """Macro F1 of always guessing the most frequent class."""
        guesses = [_most_frequent(self.labels)] * len(self.labels)
        present = sorted(set(self.labels))
        return sum(_f1(self.labels, guesses, index) for index in present) / len(present)

    @property
    def verdict(self) -> str:
        """What the figures say, in a sentence."""
        low, high = self.interval
        if low > self.majority:
            return "The rationales tell the classes apart: the interval lies above the majority."
        if high < self.majority:
            return "The rationales mislead: the interval lies below the majority."
        return "No sign that the rationales know the class: the majority lies in the interval."

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON can hold them."""
        return {
            "n": len(self.labels),
            "scheme": self.scheme,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "majority": self.majority,
            "macro_f1": self.macro_f1,
            "majority_macro_f1": self.majority_macro_f1,
            "f1": self.f1,
            "telling": {name: list(found) for name, found in self.telling.items()},
            "wrong": [
                clip
                for clip, label, guess in zip(self.clips, self.labels, self.guesses, strict=True)
                if label != guess
            ],
        }

    def __str__(self) -> str:
        low, high = self.interval
        lines = [
            f"The class guessed from {len(self.labels)} rationales alone, class words masked "
            f"({self.scheme}):",
            f"  accuracy  {self.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}), always the "
            f"most frequent class {self.majority:.1%}",
            f"  macro F1  {self.macro_f1:.1%}, always the most frequent class "
            f"{self.majority_macro_f1:.1%}",
        ]
        lines += [f"  {name}: {', '.join(found)}" for name, found in self.telling.items() if found]
        return "\n".join([*lines, self.verdict])


def check_texts(
    samples: Sequence[Sample],
    card: Card,
    *,
    leave_one_out: int = LEAVE_ONE_OUT,
    folds: int = FOLDS,
    seed: int = 0,
) -> TextCheck:
    """Guesses the class of each rationale from its words.

    TF-IDF of the words that stand in two texts or more, and logistic regression, both fitted
    without the rationales that are guessed; rationales of one video are left out together.

    Leaving one video out makes its own class rarer, so that texts that know nothing would all be
    guessed wrong. Therefore a video of every other class is left out with it, by lot, and fitted
    rationales are weighted so that classes are as frequent as overall.

    Args:
        samples: Rationales of clips with a label.
        card: Whose classes they are, and whose class words and names are taken out of the texts.
        leave_one_out: Up to so many videos, each is left out alone; beyond, in folds.
        folds: Number of folds, stratified by class.
        seed: Of the folds and lots.

    Raises:
        ValueError: If scikit-learn is not installed, a clip has no label, or fewer than two
            classes have rationales of two videos.
    """
    _need_sklearn()
    unlabelled = [one.clip for one in samples if one.label is None]
    if unlabelled:
        raise ValueError(
            f"{len(unlabelled)} of {len(samples)} rationales are of clips without a label (first: "
            f"{unlabelled[0]}), so nothing can be guessed right. Leave them out."
        )
    labels = np.array([one.label for one in samples], dtype=np.int64)
    groups = np.array([one.group for one in samples])
    videos = {index: len(set(groups[labels == index])) for index in sorted(set(labels.tolist()))}
    for index, count in videos.items():
        if count < 2:
            raise ValueError(
                f"Class '{card.classes[index]}' has rationales of {count} video; to guess from "
                "others it needs 2 or more. Have more written, or leave the class out."
            )
    if len(videos) < 2:
        there = ", ".join(card.classes[index] for index in videos) or "none"
        raise ValueError(
            f"Rationales of 2 or more classes are needed to tell them apart; got {there}."
        )
    class_words = ClassWords.of(card)
    texts = [words(class_words.mask(one.text)) for one in samples]
    alone = len(set(groups.tolist())) <= leave_one_out
    weights = np.bincount(labels, minlength=len(card.classes)) / len(labels)
    guesses = np.full(len(labels), -1, dtype=np.int64)
    for fit, guess in _splits(labels, groups, 0 if alone else min(folds, *videos.values()), seed):
        classifier = _fit([texts[place] for place in fit], labels[fit], weights)
        guesses[guess] = classifier.guess([texts[place] for place in guess])
    assert (guesses >= 0).all(), "a rationale was never guessed"
    return TextCheck(
        classes=card.classes,
        clips=tuple(one.clip for one in samples),
        labels=tuple(labels.tolist()),
        guesses=tuple(guesses.tolist()),
        scheme="leave-one-video-out" if alone else f"{min(folds, *videos.values())}-fold",
        telling=_telling(texts, labels, weights, card.classes),
    )


def _need_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "The check of rationales by a text classifier needs scikit-learn, which is not "
            f"installed ({error}). Run: pip install 'rbft[analysis]'"
        ) from error


def _splits(
    labels: Int[ndarray, " texts"], groups: ndarray, folds: int, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Places to fit to and to guess; 0 folds leaves each group out alone."""
    if folds:
        from sklearn.model_selection import StratifiedGroupKFold

        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for fit, guess in splitter.split(labels, labels, groups):
            yield fit.tolist(), guess.tolist()
        return
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(place)
    classes = {group: set(labels[places].tolist()) for group, places in members.items()}
    for group, guess in members.items():
        left_out = {group}
        for other in sorted(set(labels.tolist()) - classes[group]):
            rest = [one for one in members if other in classes[one]]
            # The lot of a video depends on its name, not on the order of the texts.
            left_out.add(min(rest, key=lambda one, of=group: _lot(seed, of, one)))
        gone = {place for one in left_out for place in members[one]}
        yield [place for place in range(len(labels)) if place not in gone], guess


def _lot(seed: int, *names: str) -> str:
    content = json.dumps([seed, *names]).encode()
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class _Classifier:
    """A vectoriser and a linear classifier on it, fitted to the same texts.

    Attributes:
        vectorizer: From lists of words to TF-IDF; None where there is no model.
        model: The classifier; None where no two texts share a word, or there was only one class.
        present: The classes that were fitted to.
        shares: Share of each class in the whole data.
    """

    vectorizer: Any
    model: Any
    present: list[int]
    shares: Float[ndarray, " classes"]

    def guess(self, texts: list[list[str]]) -> Int[ndarray, " texts"]:
        """The likeliest class; of those that are equally likely, the most frequent one."""
        shares = self.shares[self.present]
        if self.model is None:
            return np.full(len(texts), self.present[int(shares.argmax())])
        logs = self.model.predict_log_proba(self.vectorizer.transform(texts))
        equal = logs >= logs.max(axis=1, keepdims=True) - TIE
        return np.array(self.present)[np.where(equal, shares, -1.0).argmax(axis=1)]


def _fit(
    texts: list[list[str]], labels: Int[ndarray, " texts"], shares: Float[ndarray, " classes"]
) -> _Classifier:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    present = sorted(set(labels.tolist()))
    spread = Counter(word for text in texts for word in set(text))
    if len(present) < 2 or max(spread.values(), default=0) < 2:
        return _Classifier(None, None, present, shares)
    analyzer: Any = list  # what comes in are lists of words
    vectorizer = TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, min_df=2)
    inputs = vectorizer.fit_transform(texts)
    counts = np.bincount(labels, minlength=len(shares))
    weights = (shares * len(labels) / np.maximum(counts, 1))[labels]
    model = LogisticRegression(C=STRENGTH, max_iter=1000, tol=1e-8)
    return _Classifier(vectorizer, model.fit(inputs, labels, weights), present, shares)


def _telling(
    texts: list[list[str]],
    labels: Int[ndarray, " texts"],
    shares: Float[ndarray, " classes"],
    classes: Sequence[str],
) -> dict[str, tuple[str, ...]]:
    """Words with the largest weights for each class."""
    fitted = _fit(texts, labels, shares)
    if fitted.model is None:
        return {classes[index]: () for index in fitted.present}
    names, rows = fitted.vectorizer.get_feature_names_out(), fitted.model.coef_
    if len(rows) == 1:  # two classes have one row, for the second
        rows = np.concatenate([-rows, rows])
    best = np.argsort(-rows, axis=1, kind="stable")[:, :TELLING]
    return {
        classes[index]: tuple(str(names[one]) for one in order if rows[row, one] > 0)
        for row, (index, order) in enumerate(zip(fitted.present, best, strict=True))
    }


def _most_frequent(labels: Sequence[int]) -> int:
    counts = Counter(labels)
    return min(counts, key=lambda index: (-counts[index], index))


def _f1(labels: Sequence[int], guesses: Sequence[int], index: int) -> float:
    pairs = list(zip(labels, guesses, strict=True))
    hits = pairs.count((index, index))
    misses = sum((label == index) != (guess == index) for label, guess in pairs)
    return 2 * hits / (2 * hits + misses) if hits else 0.0
