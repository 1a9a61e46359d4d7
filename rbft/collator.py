"""From clips to tensors: the only place that tokenizes and masks."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rbft.data.base import Clip, Example
from rbft.data.card import Card
from rbft.families import Family
from rbft.stages import CLASS, SEPARATOR, Stage

IGNORED = -100


class Transferable:
    """Moves the tensors of a dataclass; Lightning and the DataLoader call these two."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Any:
        """A copy on the device."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Any:
        """A copy in page-locked memory."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Any) -> Any:
        moved = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, dict):
                moved[field.name] = {key: function(tensor) for key, tensor in value.items()}
            elif isinstance(value, Tensor | Transferable):
                moved[field.name] = function(value)
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class Sequences(Transferable):
    """Padded token sequences, one video in each.

    Attributes:
        input_ids: Token ids.
        attention_mask: 1 for tokens, 0 for padding.
        position_ids: Rotary positions (time, height, width), see `rbft.positions`.
        labels: The answer's token ids where they stand, -100 elsewhere.
    """

    input_ids: Int[Tensor, "clips tokens"]
    attention_mask: Int[Tensor, "clips tokens"]
    position_ids: Int[Tensor, "3 clips tokens"]
    labels: Int[Tensor, "clips tokens"]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Arguments of the backbone's forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


@dataclass(frozen=True)
class Batch(Transferable):
    """One forward's worth of clips.

    Attributes:
        video: Patches and grids of all clips, as the backbone takes them.
        answer: Prompt and answer, padded on the right (for the loss); None where not asked for.
        prompt: The classifying or rationale prompt, padded on the left (for scoring and writing).
        label: Class index, -1 where unknown.
        index: Index of the clip in its split.
        weight: Weight of the clip, 0 for one repeated to even out processes.
        total: Weighted answer tokens of the global batch.
        errors: For each clip what could not be decoded, empty where all is well.
        explain: The rationale prompt where clips are classified and explained.
    """

    video: dict[str, Tensor]
    answer: Sequences | None
    prompt: Sequences | None
    label: Int[Tensor, " clips"]
    index: Int[Tensor, " clips"]
    weight: Float[Tensor, " clips"]
    total: Float[Tensor, ""]
    errors: list[str]
    explain: Sequences | None = None

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Collator:
    """Turns examples into a `Batch`. Plain and picklable.

    Attributes:
        processor: The backbone's processor.
        config: The backbone's configuration.
        family: The backbone's family.
        card: The task's words.
        learn: The stage whose answer is learnt or measured; None builds no answer.
        ask: The stage whose prompt is put for scoring or writing; None builds no prompt.
        explain: The stage whose prompt asks for a rationale besides; None builds no prompt.
    """

    processor: Any
    config: Any
    family: Family
    card: Card
    learn: Stage | None = None
    ask: Stage | None = None
    explain: Stage | None = None

    @property
    def needs_rationales(self) -> bool:
        """Whether examples must carry a rationale."""
        return self.learn is not None and self.learn.needs_rationales

    @property
    def learns_class(self) -> bool:
        """Whether the class is all that is learnt (Stage II)."""
        return self.learn is not None and self.learn.parts == (CLASS,)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer, the end of the turn included."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id]

    def separator_ids(self) -> list[int]:
        """Token ids of what stands between rationale and class."""
        return self.processor.tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]

    def class_answers(self, stage: Stage) -> list[list[int]]:
        """Token ids of each class word with what ends it: the turn, or the separator in P+C+R."""
        words = [self.answer_ids(word) for word in self.card.words.values()]
        if stage.parts[-1] == CLASS:
            return words
        return [[*ids[:-1], *self.separator_ids()] for ids in words]

    def answer_tokens(self, clip: Clip, rationale: str | None) -> int:
        """Length of the clip's answer in tokens, without decoding the video."""
        assert self.learn is not None
        return len(self.answer_ids(self.learn.target(self.card, clip, rationale)))

    def prompt_ids(self, prompt: str, video_tokens: int) -> list[int]:
        """Token ids of one user turn, video first, up to where the assistant answers."""
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        place = ids.index(self.config.video_token_id)
        return ids[:place] + [self.config.video_token_id] * video_tokens + ids[place + 1 :]

    def __call__(self, examples: list[Example]) -> Batch:
        """One batch of the examples in order."""
        processor = self.processor.video_processor
        # The frames have their final size: the processor only normalises and cuts patches.
        tensors = processor(
            videos=[example.video.frames for example in examples],
            do_resize=False,
            do_sample_frames=False,
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )
        video = {key: tensors[key] for key in ("pixel_values_videos", "video_grid_thw")}
        grids: list[list[int]] = video["video_grid_thw"].tolist()
        return Batch(
            video=video,
            answer=None if self.learn is None else self._answer(examples, grids, self.learn),
            prompt=None if self.ask is None else self._prompt(examples, grids, self.ask),
            label=torch.tensor([-1 if e.clip.label is None else e.clip.label for e in examples]),
            index=torch.tensor([e.draw.index for e in examples]),
            weight=torch.tensor([e.draw.weight for e in examples]),
            total=torch.tensor(float(examples[0].draw.total)),
            errors=[e.error for e in examples],
            explain=None if self.explain is None else self._prompt(examples, grids, self.explain),
        )

    def _answer(self, examples: list[Example], grids: list[list[int]], stage: Stage) -> Sequences:
        prompts = self._prompts(examples, grids, stage)
        answers = [self.answer_ids(stage.target(self.card, e.clip, e.rationale)) for e in examples]
        # Tokenized apart: at inference the prompt's tokens are fixed before the answer's begin.
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        labels = [
            [IGNORED] * len(prompt) + answer
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return self._pad(rows, labels, examples, grids, side="right")

    def _prompt(self, examples: list[Example], grids: list[list[int]], stage: Stage) -> Sequences:
        rows = self._prompts(examples, grids, stage)
        labels = [[IGNORED] * len(row) for row in rows]
        return self._pad(rows, labels, examples, grids, side="left")

    def _prompts(
        self, examples: list[Example], grids: list[list[int]], stage: Stage
    ) -> list[list[int]]:
        merged = self.config.vision_config.spatial_merge_size**2
        return [
            self.prompt_ids(stage.prompt(self.card, e.clip), grid[0] * grid[1] * grid[2] // merged)
            for e, grid in zip(examples, grids, strict=True)
        ]

    def _pad(
        self,
        rows: list[list[int]],
        labels: list[list[int]],
        examples: list[Example],
        grids: list[list[int]],
        side: str,
    ) -> Sequences:
        patch = self.config.vision_config.temporal_patch_size
        ids = [torch.tensor(row) for row in rows]
        positions = [
            self.family.position_ids(row, grid, e.video.seconds_per_pair(patch), self.config).T
            for row, grid, e in zip(ids, grids, examples, strict=True)
        ]

        def pad(values: list[Tensor], filler: int) -> Tensor:
            return pad_sequence(values, batch_first=True, padding_value=filler, padding_side=side)

        return Sequences(
            input_ids=pad(ids, self.processor.tokenizer.pad_token_id),
            attention_mask=pad([torch.ones_like(row) for row in ids], 0),
            position_ids=pad(positions, 0).movedim(2, 0),
            labels=pad([torch.tensor(row) for row in labels], IGNORED),
        )
