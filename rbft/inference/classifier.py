"""How a clip gets its class: by the probabilities of the class words, or by what is written."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbft.batch import Batch, Transferable
from rbft.collator import Collator
from rbft.inference.generation import (
    NotFiniteError,
    PrefilledPrompt,
    decode,
    decode_texts,
    ended,
    extend,
    find_class,
    greedy_decode,
    score_candidates,
)
from rbft.inference.metrics import unparsed
from rbft.inference.sampling import Draw, SelfConsistency, text_key
from rbft.runtime.transfer import to_device
from rbft.stages import CLASS, Stage

NAMED = 10  # clips that a message names


@dataclass(frozen=True)
class Classified(Transferable):
    """What the model says about a batch of clips.

    Attributes:
        prediction: Class index, or `unparsed` for an answer that is no class.
        scores: Log-probability of each whole class answer; None where the answer was written.
        texts: What the model wrote, "" where it only scored.
        rationales: The rationales, where they were asked for besides.
        tied: Whether several classes share the highest score; the first of them on the card is the
            prediction.
        written: Tokens that the model wrote about each clip to find its class; None where it only
            scored.
    """

    prediction: Int[Tensor, " clips"]
    scores: Float[Tensor, "clips classes"] | None
    texts: list[str]
    rationales: list[str] | None = None
    tied: Bool[Tensor, " clips"] | None = None
    written: list[int] | None = None

    @classmethod
    def by_scores(
        cls,
        scores: Float[Tensor, "clips classes"],
        texts: list[str],
        written: list[int] | None = None,
    ) -> "Classified":
        """The likeliest class of each clip; of several as likely, the first one on the card."""
        likeliest = scores == scores.amax(-1, keepdim=True)
        # argmax promises an order of equal values on no device that is not the processor.
        places = torch.arange(scores.shape[1], device=scores.device)
        first = places.where(likeliest, scores.shape[1]).amin(-1)
        return cls(first, scores, texts, tied=likeliest.sum(-1) > 1, written=written)

    def check_finite(self) -> None:
        """Reads the scores, for which it waits where they are on a device.

        Raises:
            NotFiniteError: If some are not finite. No class is the likeliest then.
        """
        if self.scores is None:
            return
        finite = self.scores.isfinite().all(-1).tolist()
        if broken := [clip for clip, fine in enumerate(finite) if not fine]:
            raise NotFiniteError(broken)

    @property
    def probabilities(self) -> Float[Tensor, "clips classes"] | None:
        """The scores normalised over the classes."""
        return None if self.scores is None else self.scores.softmax(-1)


@dataclass(frozen=True)
class ClassifiedEach(Transferable):
    """What the model says about a batch of clips that may have several classes, or none.

    Attributes:
        scores: Log-probability of the whole answers yes and no to the question about each class.
        answered: Whether the clip could be decoded.
        rationales: The rationales, where they were asked for besides.
    """

    scores: Float[Tensor, "clips classes 2"]
    answered: Bool[Tensor, " clips"]
    rationales: list[str] | None = None

    def check_finite(self) -> None:
        """Reads the scores, see `Classified.check_finite`."""
        finite = self.scores.isfinite().all(-1).all(-1).tolist()
        if broken := [clip for clip, fine in enumerate(finite) if not fine]:
            raise NotFiniteError(broken)

    @property
    def probabilities(self) -> Float[Tensor, "clips classes"]:
        """Of yes, normalised over yes and no, for each class by itself."""
        return self.scores.softmax(-1)[..., 0]


@dataclass(frozen=True)
class Classifier:
    """Classifies clips whose prompts the backbone has read.

    Attributes:
        collator: Tokenizes; has the processor and the card.
        stage: The stage whose question is asked.
        generation: How the model writes, see `rbft.backbone.loading.generation_settings`.
        answer: `score` compares the probabilities of all class words, `generate` lets the model
            write and parses it.
        consistency: Averages over several drawn rationales, where the model writes one before the
            class; None takes the greedy one.
    """

    collator: Collator
    stage: Stage
    generation: Mapping[str, Any]
    answer: str = "score"
    consistency: SelfConsistency | None = None

    @torch.no_grad()
    def classify_each(
        self, backbone: Any, batch: Batch, prompts: Iterator[PrefilledPrompt]
    ) -> ClassifiedEach:
        """Which classes each clip has, where it may have several: a yes or no for each.

        Args:
            backbone: The model.
            batch: The clips.
            prompts: The questions about the classes, one by one, as the backbone has read them;
                no more than these are taken.
        """
        answers = self.collator.class_answers(self.stage)
        questions = range(self.stage.questions(self.collator.card))
        scores = [score_candidates(backbone, next(prompts), answers) for _ in questions]
        answered = to_device([not error for error in batch.errors], batch.weight.device)
        return ClassifiedEach(torch.stack(scores, dim=1), answered)

    @torch.no_grad()
    def classify(self, backbone: Any, batch: Batch, prompt: PrefilledPrompt) -> Classified:
        """The class of each clip; a clip that cannot be decoded has no answer.

        Args:
            backbone: The model.
            batch: The clips.
            prompt: What they are asked, as the backbone has read it.
        """
        words = self.collator.class_answers(self.stage)
        none = unparsed(words)
        classified = self._classify(backbone, batch, prompt, words)
        prediction = classified.prediction
        lost = to_device([bool(error) for error in batch.errors], prediction.device)
        return replace(classified, prediction=prediction.masked_fill(lost, none))

    def _classify(
        self, backbone: Any, batch: Batch, prompt: PrefilledPrompt, words: list[list[int]]
    ) -> Classified:
        if self.answer != "generate" and not self.stage.elicits:
            return Classified.by_scores(
                score_candidates(backbone, prompt, words), [""] * len(batch)
            )
        if self.consistency is not None and self.stage.elicits:
            return self._average(backbone, batch, prompt, words, self.consistency)
        ids = greedy_decode(backbone, prompt.copy(), self.generation)
        written = self._parse(ids, words)
        if self.answer == "generate":
            classes = written.classes
            if self.stage.parts == (CLASS,):
                classes = [self.collator.card.parse(text) for text in written.texts]
            classes = [unparsed(words) if index is None else index for index in classes]
            found = to_device(classes, batch.weight.device)
            return Classified(found, None, written.texts, written=written.lengths)
        prompt = extend(backbone, prompt, written.rationales)
        scores = score_candidates(backbone, prompt, words)
        return Classified.by_scores(scores, written.texts, written.lengths)

    def _parse(self, written: list[list[int]], words: list[list[int]]) -> "_Written":
        """Finds the class in what the model wrote, token ids of each text."""
        tokenizer, elicited = self.collator.processor.tokenizer, self.stage.elicits
        texts = decode_texts(written, tokenizer, self.generation)
        # Whatever ended the turn, class words are trained with the tokenizer's end.
        end = tokenizer.eos_token_id
        turns = [[*ids[:-1], end] if ended(ids, self.generation) else ids for ids in written]
        found = [find_class(ids, words, at_end=elicited) for ids in turns]
        # The class is scored after the model's own rationale; where no class followed it, after
        # the rationale as it stands before a class in training.
        rationales = [
            self.collator.part_ids(text.strip(), last=False) if index is None else rest
            for (index, rest), text in zip(found, texts, strict=True)
        ]
        lengths = [len(ids) for ids in written]
        return _Written(texts, lengths, [index for index, _ in found], rationales)

    def _average(
        self,
        backbone: Any,
        batch: Batch,
        prompt: PrefilledPrompt,
        words: list[list[int]],
        consistency: SelfConsistency,
    ) -> Classified:
        """The class probabilities averaged over rationales that are drawn one after the other.

        What is shown of a clip is the first of its texts that leads to its class.
        """
        clips, device = len(batch), batch.weight.device
        sums = torch.zeros(clips, len(words), dtype=torch.float64, device=device)
        texts: list[list[str]] = [[] for _ in range(clips)]
        named: list[list[int]] = [[] for _ in range(clips)]
        lengths, open_clips = [0] * clips, list(range(clips))
        for number in range(consistency.samples):
            keys = [
                text_key({"clip": batch.clips[clip].id}, consistency.seed, number)
                for clip in open_clips
            ]
            mine = prompt.select(open_clips)
            ids = decode(backbone, mine.copy(), self.generation, Draw(consistency, keys))
            written = self._parse(ids, words)
            read = extend(backbone, mine, written.rationales)
            scores = score_candidates(backbone, read, words)
            sums[to_device(open_clips, device)] += scores.double().softmax(-1)
            for clip, text, own, best in zip(
                open_clips, written.texts, written.lengths, scores.argmax(-1).tolist(), strict=True
            ):
                texts[clip].append(text)
                named[clip].append(best)
                lengths[clip] += own
            if consistency.early_stop:
                first, second = sums.topk(2).values.unbind(-1)
                left = consistency.samples - number - 1
                undecided = (first - second <= left).tolist()
                open_clips = [clip for clip in open_clips if undecided[clip]]
            if not open_clips:
                break
        best = sums.argmax(-1).tolist()
        shown = [
            own[one.index(kind) if kind in one else 0]
            for own, one, kind in zip(texts, named, best, strict=True)
        ]
        means = sums / sums.sum(-1, keepdim=True)
        return Classified.by_scores(means.clamp(min=1e-300).log().float(), shown, lengths)


@dataclass(frozen=True)
class _Written:
    """What the model wrote about each clip.

    Attributes:
        texts: The texts.
        lengths: Their tokens.
        classes: The class that each names; None for none.
        rationales: Token ids of the rationale before the class.
    """

    texts: list[str]
    lengths: list[int]
    classes: list[int | None]
    rationales: list[list[int]]


@contextmanager
def naming_clips(batch: Batch) -> Iterator[None]:
    """Names the clips of a batch whose scores are not finite.

    Raises:
        ValueError: Instead of `NotFiniteError`. The results of the batch are not written then.
    """
    try:
        yield
    except NotFiniteError as error:
        names = [batch.clips[clip].id for clip in error.clips]
        raise ValueError(not_finite(names)) from error


def not_finite(clips: Sequence[str]) -> str:
    """The message about clips whose scores are not finite.

    Args:
        clips: Their ids.
    """
    names = list(dict.fromkeys(clips))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"The model's scores are not finite for the clip{'s' * (len(names) > 1)} "
        f"{', '.join(names[:NAMED])}{more}: no class and no text follows from them, and none was "
        "written. Weights that are not finite do this, numbers that half precision cannot hold "
        "(set trainer.precision to 32-true to see) and faults of an attention kernel (set "
        "model.attention to eager to see)."
    )
