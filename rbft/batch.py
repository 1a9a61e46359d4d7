"""One forward's worth of clips: token sequences, patches, answers, and the clips themselves."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbft.clip import Clip

IGNORED = -100
# Stay in the processor's memory, where they are read: copies on the device would be waited for.
HOST = ("video_grid_thw", "video_cu_seqlens", "video_cu_window_seqlens")


class Transferable:
    """Moves the tensors of a dataclass; Lightning and the DataLoader call these two."""

    def to(self, device: torch.device, non_blocking: bool | None = None) -> Any:
        """A copy on the device.

        Args:
            device: The device.
            non_blocking: Go on before the copy is there; what is queued on the device behind it
                waits for it. None, as Lightning calls it, does so where the device is a GPU.
        """
        if non_blocking is None:
            non_blocking = device.type == "cuda"
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Any:
        """A copy in page-locked memory."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Any) -> Any:
        names = [place.name for place in fields(self)]  # type: ignore[arg-type]
        moved = {name: _apply(function, getattr(self, name)) for name in names}
        return replace(self, **moved)  # type: ignore[type-var]


def _apply(function: Any, value: Any) -> Any:
    """The value with the function applied to every tensor in it, but those of the host."""
    if isinstance(value, Tensor | Transferable):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_apply(function, item) for item in value)
    if isinstance(value, dict):
        return {key: item if key in HOST else _apply(function, item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Sequences(Transferable):
    """Token sequences with one video each: padded, a clip in a row, or packed, all in one row.

    Attributes:
        input_ids: Token ids.
        attention_mask: 1 for tokens, 0 for padding.
        position_ids: Rotary positions (time, height, width), see `rbft.backbone.positions`.
        labels: The answer's token ids where they stand, -100 elsewhere.
        lengths: Tokens of each clip, in the processor's memory.
        video_indices: Indices of the video tokens among all rows' tokens, clip after clip. None
            where they are not known.
        video_sources: For each of them which of the batch's video tokens stands there; None where
            each clip stands in one sequence, so that they stand there in order.
        padded_left: Whether padding stands before the tokens, which then see it unless it is
            masked. Tokens see nothing of what follows them.
    """

    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Int[Tensor, "rows tokens"]
    position_ids: Int[Tensor, "3 rows tokens"]
    labels: Int[Tensor, "rows tokens"]
    lengths: tuple[int, ...]
    video_indices: Int[Tensor, " video"] | None = None
    video_sources: Int[Tensor, " video"] | None = None
    padded_left: bool = False

    @property
    def packed(self) -> bool:
        """Whether all clips stand in one row; a single clip always does."""
        return len(self.input_ids) == 1


@dataclass(frozen=True)
class Targets(Transferable):
    """The answer tokens of a batch, clip after clip.

    Found here, before the batch is on its device: to look for them there, the host would have to
    wait.

    Attributes:
        logit_indices: For each the index, among all rows' tokens, of the token before it, whose
            logits predict it.
        ids: What each is.
        clips: The clip that each belongs to, its place in the batch.
        answers: Token ids of each answer, in the processor's memory: one a clip, or one for each
            class of each clip, where all classes are looked at or asked about one by one.
        weights: Weight of each beside that of its clip; None weighs all alike.
        of_class: Whether each belongs to the class, with what ends it; None where the answers
            have one part.
        rows: The answer that each belongs to, where a clip has several; else None.
    """

    logit_indices: Int[Tensor, " answer"]
    ids: Int[Tensor, " answer"]
    clips: Int[Tensor, " answer"]
    answers: list[list[int]]
    weights: Float[Tensor, " answer"] | None = None
    of_class: Bool[Tensor, " answer"] | None = None
    rows: Int[Tensor, " answer"] | None = None


@dataclass(frozen=True)
class CachedFeatures(Transferable):
    """What the feature cache holds of a batch.

    Attributes:
        features: For each clip the vision tower's output, None where the tower must run.
        keys: For each clip the key under which it is kept, empty where it must not be.
        sampled_fps: For each clip the pictures per second that the tower is shown.
    """

    features: list[Tensor | None]
    keys: list[str]
    sampled_fps: list[float]


@dataclass(frozen=True)
class Batch(Transferable):
    """One forward's worth of clips.

    Attributes:
        video: Patches and grids of all clips, as the backbone takes them; with a feature cache
            the patches of those clips alone that the vision tower has not seen.
        answer: Prompt and answer, packed or padded on the right (for the loss); None where not
            asked for.
        prompt: The classifying or rationale prompt, packed or padded on the left (for scoring and
            writing).
        label: Class index, -1 where unknown.
        clips: The clips, in order.
        index: Index of the clip in its split.
        weight: Weight of the clip, 0 for one repeated to even out processes.
        total: Weighted answer tokens of the global batch.
        errors: For each clip what could not be decoded, empty where all is well.
        extra_prompts: What is asked besides, each packed or padded like `prompt`.
        shared: For each clip, with how many tokens `prompt` and all of `extra_prompts` begin alike;
            the last token of none is among them. Empty where there are none.
        cached: What the feature cache holds; None without one.
        targets: The answers' tokens; None where there are no answers.
        tower: What the vision tower would compute from the grids, see `Family.tower_inputs`.
        frames: For each clip which frames of its file it shows, see `rbft.video.sampling.Video`;
            empty where that is not known.
        labels: Where clips may have several classes: 1 for each that the clip has, 0 for the
            others, -1 where they are unknown. `prompt` and the first of `extra_prompts` ask about
            one class each then. Else None.
    """

    video: dict[str, Tensor]
    answer: Sequences | None
    prompt: Sequences | None
    clips: tuple[Clip, ...]
    label: Int[Tensor, " clips"]
    index: Int[Tensor, " clips"]
    weight: Float[Tensor, " clips"]
    total: Float[Tensor, ""]
    errors: list[str]
    extra_prompts: tuple[Sequences, ...] = ()
    shared: tuple[int, ...] = ()
    cached: CachedFeatures | None = None
    targets: Targets | None = None
    tower: dict[str, Any] = field(default_factory=dict)
    frames: tuple[dict[str, Any], ...] = ()
    labels: Int[Tensor, "clips classes"] | None = None

    def __len__(self) -> int:
        return len(self.label)
