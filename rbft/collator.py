"""From clips to tensors: the only place that tokenizes and masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rbft.backbone.family import Family
from rbft.batch import IGNORED, Batch, CachedFeatures, Sequences, Targets
from rbft.card import Card
from rbft.clip import Clip
from rbft.data.dataset import Example, Supervision
from rbft.stages import CLASS, RATIONALE, SEPARATOR, Stage
from rbft.video.feature_cache import EncodedVideo
from rbft.video.sampling import Video
from rbft.video.times import PairTimes


@dataclass(frozen=True)
class Answer:
    """One answer about a clip, token by token.

    Attributes:
        ids: Token ids.
        labels: The same where they are learnt, -100 where they are only read.
        weights: Weight in the loss of those that are learnt.
        of_class: Whether they belong to the class; of those that are learnt.
    """

    ids: list[int]
    labels: list[int]
    weights: list[float]
    of_class: list[bool]

    @classmethod
    def of(
        cls, parts: Sequence[list[int]], names: Sequence[str], weights: Mapping[str, float]
    ) -> "Answer":
        """An answer of parts.

        Args:
            parts: Token ids of each part.
            names: What each part is.
            weights: Weight of each part that is learnt, by name.
        """
        ids, labels, shares, of_class = [], [], [], []
        for part, name in zip(parts, names, strict=True):
            ids += part
            labels += part if name in weights else [IGNORED] * len(part)
            shares += [weights[name]] * len(part) if name in weights else []
            of_class += [name == CLASS] * len(part) if name in weights else []
        return cls(ids, labels, shares, of_class)


@dataclass(frozen=True)
class Collator:
    """Turns examples into a `Batch`. Plain and picklable.

    Attributes:
        processor: The backbone's processor.
        config: The backbone's configuration.
        family: The backbone's family.
        card: The task's words.
        target_stage: The stage whose answer is learnt or measured; None builds no answer.
        prompt_stage: The stage whose prompt is put for scoring or writing; None builds no prompt.
        extra_prompts: Stages and cards whose prompts are put besides.
        packing: Put all clips in one row instead of padding them: prompts with their answers, and
            prompts that are only asked.
        answer_weight: Weight of the class's tokens in the loss against the rationale's, where an
            answer has both.
    """

    processor: Any
    config: Any
    family: Family
    card: Card
    target_stage: Stage | None = None
    prompt_stage: Stage | None = None
    extra_prompts: tuple[tuple[Stage, Card], ...] = ()
    packing: bool = False
    answer_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.packing and not self.family.packs:
            raise ValueError(
                f"The clips of a {self.family.model_type} cannot be packed: its linear attention "
                "would mix them. Make their batches with packing=False."
            )

    @property
    def needs_rationales(self) -> bool:
        """Whether examples must carry a rationale."""
        return self.target_stage is not None and self.target_stage.needs_rationales

    @property
    def reads_rationales(self) -> list[bool]:
        """For each turn of the stage whether it needs rationales."""
        stages = [] if self.target_stage is None else self.target_stage.turns or [self.target_stage]
        return [one.needs_rationales for one in stages] or [False]

    @property
    def learns_class(self) -> bool:
        """Whether the class is all that is learnt (Stage II)."""
        stage = self.target_stage
        return stage is not None and stage.parts == (CLASS,) and not stage.turns

    def part_ids(self, text: str, *, last: bool, cut: bool = False) -> list[int]:
        """Token ids of one part of an answer with what ends it.

        Training, scoring and what is read before a class is scored all come from here. A tokenizer
        may make one token of a text's last character and the separator, so both are tokenized
        together, and parts apart from each other: what is scored then is what was trained, whatever
        the tokenizer merges.

        Args:
            text: A class word or a rationale.
            last: Whether the turn ends after it; otherwise the separator follows.
            cut: Whether the text stops in its middle: the turn does not end there.
        """
        tokenizer = self.processor.tokenizer
        text = text if last else text + SEPARATOR
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not last or (cut and ids):  # an answer has at least one token
            return ids
        return [*ids, tokenizer.eos_token_id]

    def class_answers(self, stage: Stage) -> list[list[int]]:
        """Token ids of each word that may answer, `Card.answers`, with what ends it.

        That is the turn, or the separator in P+C+R.
        """
        last = stage.parts.index(CLASS) == len(stage.parts) - 1
        return [self.part_ids(word, last=last) for word in self.card.answers]

    def answer_parts(
        self, clip: Clip, rationale: str | None, cut: bool = False, question: int = 0
    ) -> list[list[int]]:
        """Token ids of each part of the clip's answer with what ends it, see `answer_ids`."""
        assert self.target_stage is not None
        *before, end = self.target_stage.target_parts(self.card, clip, rationale, question)
        ids = [self.part_ids(text, last=False) for text in before]
        cut = cut and self.target_stage.parts[-1] == RATIONALE
        return [*ids, self.part_ids(end, last=True, cut=cut)]

    def answer_ids(
        self, clip: Clip, rationale: str | None, cut: bool = False, question: int = 0
    ) -> list[int]:
        """Token ids of the clip's answer, the end of the turn included.

        Args:
            clip: The clip.
            rationale: Its rationale, None where `target_stage` needs none.
            cut: Whether the rationale was cut off when it was written. If it ends the answer, the
                answer has no end of the turn: the model would learn to stop in mid-sentence.
            question: Index of the class that is asked about, see `Stage.questions`.
        """
        parts = self.answer_parts(clip, rationale, cut, question)
        return [token for part in parts for token in part]

    def answer_tokens(self, clip: Clip, rationale: str | None, cut: bool = False) -> int:
        """Length of the clip's answer in tokens, without decoding the video; see `answer_ids`.

        Of several questions, that of the longest answer.
        """
        assert self.target_stage is not None
        asked = range(self.target_stage.questions(self.card))
        return max(len(self.answer_ids(clip, rationale, cut, one)) for one in asked)

    def loss_tokens(self, taught: Supervision) -> float:
        """What a clip counts in the loss: the tokens that it learns, each by its weight.

        Where the expected cost is minimised, every clip counts 1.
        """
        assert self.target_stage is not None
        if self.target_stage.objective == "expected_cost":
            return 1.0
        return sum(weight for one in self._answers(taught) for weight in one.weights)

    def _answers(self, taught: Supervision) -> list[Answer]:
        """The clip's answers: one a question, or one a class where several are looked at."""
        assert self.target_stage is not None
        stage = self.target_stage.turn(taught.turn)
        own = replace(self, target_stage=stage)
        if stage.all_classes:
            shares = taught.soft_label or [1.0] * len(self.card.words)
            return [
                Answer.of(own.answer_parts(clip, taught.rationale), stage.parts, {CLASS: share})
                for clip, share in self._as_each_class(taught.clip, shares)
            ]
        if CLASS in stage.parts and taught.soft_label is not None:
            return own._weighted_answers(taught, taught.soft_label)
        asked = [
            own.answer_parts(taught.clip, taught.rationale, taught.cut, question)
            for question in range(stage.questions(self.card))
        ]
        return [Answer.of(parts, stage.parts, own._part_weights) for parts in asked]

    def _weighted_answers(self, taught: Supervision, shares: Sequence[float]) -> list[Answer]:
        """An answer for each class that has votes, whose class counts by its share of them.

        What else there is to learn stands once, beside the clip's own class, or where that has no
        vote beside the first that has most.
        """
        assert self.target_stage is not None
        stage, label = self.target_stage, taught.clip.label
        if label is None or not shares[label]:
            label = max(range(len(shares)), key=shares.__getitem__)
        answers = []
        for clip, share in self._as_each_class(taught.clip, shares):
            parts = self.answer_parts(clip, taught.rationale, taught.cut)
            names, weights = stage.parts, self._part_weights
            if clip.label != label:
                names = names[: names.index(CLASS) + 1]
                weights = {CLASS: weights[CLASS]}
            weights = {**weights, CLASS: share * weights[CLASS]}
            answers.append(Answer.of(parts[: len(names)], names, weights))
        return answers

    @property
    def _part_weights(self) -> dict[str, float]:
        """Weight of each part of the answer in the loss."""
        assert self.target_stage is not None
        both = len(self.target_stage.parts) > 1
        return {RATIONALE: 1.0, CLASS: self.answer_weight if both else 1.0}

    def _as_each_class(self, clip: Clip, shares: Sequence[float]) -> list[tuple[Clip, float]]:
        """The clip as one of each class that has a share; others are not computed."""
        return [(replace(clip, label=label), share) for label, share in enumerate(shares) if share]

    def prompt_ids(self, prompt: str, times: PairTimes, video_tokens: int) -> list[int]:
        """Token ids of one user turn, video first, up to where the assistant answers.

        Args:
            prompt: What is asked about the clip.
            times: When the clip's frame pairs are shown.
            video_tokens: Tokens of the clip.
        """
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        turn = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.family.chat_template(self.processor.chat_template),
            tokenize=False,
            add_generation_prompt=True,
        )
        text = self.family.prompt_text(turn, times)
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        video = self.config.video_token_id
        run = [video] * (video_tokens // ids.count(video))
        return [token for each in ids for token in (run if each == video else (each,))]

    def __call__(self, examples: list[Example]) -> Batch:
        """One batch of the examples in order."""
        video, grids = self._video(examples)
        answer, targets = None, None
        if self.target_stage is not None:
            answer, answers = self._answer(examples, grids)
            apart = not self.target_stage.all_classes and len(self.target_stage.parts) > 1
            targets = _targets(answer, answers, apart=apart)
        asked = (
            []
            if self.prompt_stage is None
            else [(self.prompt_stage, self.card), *self.extra_prompts]
        )
        rows = [
            self._prompts(examples, grids, stage, card, question)
            for stage, card in asked
            for question in range(stage.questions(card))
        ]
        prompts = [self._prompt(own, examples, grids) for own in rows]
        cached = self._cached(examples)
        return Batch(
            video=video,
            answer=answer,
            targets=targets,
            prompt=prompts[0] if prompts else None,
            clips=tuple(e.clip for e in examples),
            label=torch.tensor([-1 if e.clip.label is None else e.clip.label for e in examples]),
            labels=self._labels(examples),
            index=torch.tensor([e.draw.index for e in examples]),
            weight=torch.tensor([e.draw.weight for e in examples]),
            total=torch.tensor(float(examples[0].draw.total)),
            errors=[e.error for e in examples],
            extra_prompts=tuple(prompts[1:]),
            shared=tuple(map(_shared, zip(*rows, strict=True))) if len(rows) > 1 else (),
            cached=cached,
            frames=tuple({} if e.error else e.video.shown for e in examples),
            tower={} if cached else self.family.tower_inputs(video["video_grid_thw"], self.config),
        )

    def _labels(self, examples: list[Example]) -> Int[Tensor, "clips classes"] | None:
        """Which classes the clips have, where they may have several."""
        if self.card.several is None:
            return None
        classes = range(len(self.card.words))
        known = [e.clip.labels for e in examples]
        return torch.tensor(
            [[-1 if own is None else int(label in own) for label in classes] for own in known]
        )

    def _video(self, examples: list[Example]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Patches of the clips that come as frames, and every clip's grid."""
        frames = [e.video.frames for e in examples if isinstance(e.video, Video)]
        video, made = {}, []
        if frames:
            # The frames have their final size: the processor only normalises and cuts patches.
            tensors = self.processor.video_processor(
                videos=frames,
                do_resize=False,
                do_sample_frames=False,
                cap_pixels_per_frame=False,
                return_tensors="pt",
            )
            video = {"pixel_values_videos": tensors["pixel_values_videos"]}
            made = tensors["video_grid_thw"].tolist()
        new = iter(made)
        grids = [e.video.grid if isinstance(e.video, EncodedVideo) else next(new) for e in examples]
        return {**video, "video_grid_thw": torch.tensor(grids)}, grids

    def _cached(self, examples: list[Example]) -> CachedFeatures | None:
        keys = [e.key for e in examples]
        if not any(keys):
            return None
        seen = [e.video.features if isinstance(e.video, EncodedVideo) else None for e in examples]
        return CachedFeatures(seen, keys, [e.video.sampled_fps for e in examples])

    def _answer(
        self, examples: list[Example], grids: list[list[int]]
    ) -> tuple[Sequences, list[list[Answer]]]:
        """The rows to learn from, and what they answer about each clip."""
        assert self.target_stage is not None
        stages = [self.target_stage.turn(e.draw.turn) for e in examples]
        answers = [self._answers(e.supervision) for e in examples]
        # Of each answer: one question for all classes, or a question for each.
        prompts: list[list[int]] = []
        for e, grid, stage, own in zip(examples, grids, stages, answers, strict=True):
            count = stage.questions(self.card)
            asked = [self._prompts([e], [grid], stage, self.card, n)[0] for n in range(count)]
            prompts += asked * (len(own) // count)
        # Tokenized apart: at inference the prompt's tokens are fixed before the answer's begin.
        places = [place for place, own in enumerate(answers) for _ in own]
        flat = [one for own in answers for one in own]
        rows = [[*prompt, *one.ids] for prompt, one in zip(prompts, flat, strict=True)]
        labels = [
            [IGNORED] * len(prompt) + one.labels for prompt, one in zip(prompts, flat, strict=True)
        ]
        shown, seen = [examples[place] for place in places], [grids[place] for place in places]
        if self.packing:
            made = self._pack(rows, labels, shown, seen)
        else:
            made = self._pad(rows, labels, shown, seen, side="right")
        if len(rows) > len(examples):
            made = replace(made, video_sources=self._sources(grids, places))
        return made, answers

    def _sources(self, grids: list[list[int]], places: list[int]) -> Int[Tensor, " video"]:
        """Which of the clips' video tokens stand in rows of which several show the same clip."""
        merged = self.config.vision_config.spatial_merge_size**2
        sizes = [grid[0] * grid[1] * grid[2] // merged for grid in grids]
        first = [0, *accumulate(sizes)]
        return torch.cat([torch.arange(first[own], first[own + 1]) for own in places])

    def _prompt(
        self, rows: list[list[int]], examples: list[Example], grids: list[list[int]]
    ) -> Sequences:
        labels = [[IGNORED] * len(row) for row in rows]
        if self.packing:
            return self._pack(rows, labels, examples, grids)
        return self._pad(rows, labels, examples, grids, side="left")

    def _prompts(
        self,
        examples: list[Example],
        grids: list[list[int]],
        stage: Stage,
        card: Card,
        question: int = 0,
    ) -> list[list[int]]:
        merged = self.config.vision_config.spatial_merge_size**2
        return [
            self.prompt_ids(
                stage.prompt(card, e.clip, question),
                e.video.pair_times,
                grid[0] * grid[1] * grid[2] // merged,
            )
            for e, grid in zip(examples, grids, strict=True)
        ]

    def _positions(
        self, rows: list[Tensor], examples: list[Example], grids: list[list[int]]
    ) -> list[Int[Tensor, "3 _"]]:
        return [
            self.family.position_ids(row, grid, e.video.pair_times, self.config)
            for row, grid, e in zip(rows, grids, examples, strict=True)
        ]

    def _pack(
        self,
        rows: list[list[int]],
        labels: list[list[int]],
        examples: list[Example],
        grids: list[list[int]],
    ) -> Sequences:
        ids = [torch.tensor(row) for row in rows]
        row = torch.cat(ids)[None]
        return Sequences(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            position_ids=torch.cat(self._positions(ids, examples, grids), dim=1)[:, None],
            labels=torch.cat([torch.tensor(row) for row in labels])[None],
            lengths=tuple(map(len, rows)),
            video_indices=self._video_indices(row),
        )

    def _pad(
        self,
        rows: list[list[int]],
        labels: list[list[int]],
        examples: list[Example],
        grids: list[list[int]],
        side: str,
    ) -> Sequences:
        ids = [torch.tensor(row) for row in rows]
        positions = [own.T for own in self._positions(ids, examples, grids)]

        def pad(values: list[Tensor], filler: int) -> Tensor:
            return pad_sequence(values, batch_first=True, padding_value=filler, padding_side=side)

        padded = pad(ids, self.processor.tokenizer.pad_token_id)
        return Sequences(
            input_ids=padded,
            attention_mask=pad([torch.ones_like(row) for row in ids], 0),
            position_ids=pad(positions, 0).movedim(2, 0),
            labels=pad([torch.tensor(row) for row in labels], IGNORED),
            lengths=tuple(map(len, rows)),
            video_indices=self._video_indices(padded),
            padded_left=side == "left",
        )

    def _video_indices(self, ids: Int[Tensor, "rows tokens"]) -> Int[Tensor, " video"]:
        """Video tokens among all rows' tokens; found while they are in the processor's memory."""
        return (ids.flatten() == self.config.video_token_id).nonzero()[:, 0]


def _targets(answer: Sequences, answers: list[list[Answer]], *, apart: bool) -> Targets:
    # Sequences begin with a prompt: what comes before an answer's token is of the same clip.
    places, columns = (answer.labels != IGNORED).nonzero(as_tuple=True)
    ends = torch.tensor(answer.lengths).cumsum(0)
    ids = answer.labels[places, columns]
    rows = torch.searchsorted(ends, columns, right=True) if answer.packed else places
    flat = [one for own in answers for one in own]
    clips, weights, of_class = rows, None, None
    if len(flat) > len(answers):
        clips = torch.tensor([clip for clip, own in enumerate(answers) for _ in own])[rows]
    shares = [share for one in flat for share in one.weights]
    if any(share != 1 for share in shares):
        weights = torch.tensor(shares)
    if apart:  # also where all rationales of a batch are empty: processes must agree
        of_class = torch.tensor([mark for one in flat for mark in one.of_class])
    return Targets(
        places * answer.labels.shape[1] + columns - 1,
        ids,
        clips,
        [one.ids for one in flat],
        weights,
        of_class,
        rows if len(flat) > len(answers) else None,
    )


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """With how many tokens prompts begin alike, without the last of each: something must be asked.

    Found here, where the tokens are in the processor's memory.
    """
    most = min(map(len, prompts)) - 1
    alike = (len(set(tokens)) == 1 for tokens in zip(*prompts, strict=False))
    return next((place for place, same in zip(range(most), alike, strict=False) if not same), most)
