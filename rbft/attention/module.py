"""AttentionModule: reads the maps of clips and what the answer loses when cells are masked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rbft.attention.bands import band_layers
from rbft.attention.causal import (
    CausalSettings,
    causal_scores,
    grey_out,
    log_odds,
    random_cells,
    top_cells,
)
from rbft.attention.maps import Kind, VideoMap, read_map, token_grid
from rbft.attention.prompts import GENERIC, generic_prompt, shuffled_prompt
from rbft.attention.records import Records
from rbft.backbone.family import Family
from rbft.backbone.loader import BackboneLoader
from rbft.backbone.loading import parameter_parts
from rbft.backbone_module import BackboneModule
from rbft.batch import Batch, Sequences
from rbft.callbacks.answer_rows import seven_digits
from rbft.card import Card
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.inference.classifier import naming_clips
from rbft.inference.generation import NotFiniteError, prefill, score_candidates
from rbft.stages import Stage
from rbft.video.sampling import Video

AT_ONCE = 4  # masked copies of a clip in one forward


@dataclass(frozen=True)
class MapSettings:
    """How maps are read.

    Attributes:
        kind: Mean over heads and layers, the same relative to a generic prompt, or rollout.
        layers: A key of `rbft.attention.bands.BANDS`, or layers by number; rollout takes all.
        generic: The prompt that `relative` divides by.
        causal: How much is masked; None masks nothing.
        seed: Of re-drawn weights and shuffled words.
    """

    kind: Kind = "mean"
    layers: str | tuple[int, ...] = "middle_to_late"
    generic: str = GENERIC
    causal: CausalSettings | None = field(default_factory=CausalSettings)
    seed: int = 0


@dataclass(frozen=True)
class ClipMap:
    """What was read of one clip with one prompt.

    Attributes:
        map: Where the answer's first token looks.
        scores: Log-probability of each class answer.
        causal: What masking costs the class, see `causal_scores`; empty where nothing was masked.
    """

    map: VideoMap
    scores: Float[Tensor, " classes"]
    causal: Mapping[str, float]


class AttentionModule(BackboneModule):
    """Asks a backbone for the class of clips and reads where it looks for it; nothing is trained.

    Args:
        loader: Reads the backbone.
        card: The task's words.
        stage: Whose question is asked; its answer must begin with the class.
        settings: How maps are read.
        redrawn: Replace the language model's weights by random ones, the first control.
        shuffled: Also read the map of the question with shuffled words, the second control.
    """

    def __init__(
        self,
        loader: BackboneLoader,
        card: Card,
        stage: Stage,
        settings: MapSettings,
        *,
        redrawn: bool = False,
        shuffled: bool = False,
    ) -> None:
        super().__init__(loader, max_new_tokens=1)
        self.card, self.stage, self.settings = card, stage, settings
        self.redrawn, self.shuffled = redrawn, shuffled

    @property
    def collator(self) -> Collator:
        """Makes the batches of the question."""
        return Collator(
            self.processor,
            self.config,
            self.family,
            self.card,
            prompt_stage=self.stage,
            packing=self.family.packs,
        )

    def collators(self) -> dict[str, Collator]:
        """What makes the batches to predict on; reads the processor."""
        return {"predict": self.collator}

    def prepare(self, *, training: bool) -> None:
        """Replaces the weights, where that is asked for."""
        if self.redrawn:
            redraw(self.backbone, self.family, self.settings.seed)

    @property
    def layers(self) -> list[int] | None:
        """The layers that a map is the mean of; None for rollout."""
        if self.settings.kind == "rollout":
            return None
        return band_layers(self.settings.layers, self.config.text_config.num_hidden_layers)

    def predict_step(self, batch: Batch) -> list[ClipMap]:
        """Of one clip, what was read with the question and, if asked for, with shuffled words."""
        (clip,) = batch.clips
        if batch.errors[0]:
            return []
        video = self.data.reader.decode(clip)
        with naming_clips(batch):
            own, scores = self._read(clip, video, self.stage)
            asked = [own]
            if self.shuffled:
                other = shuffled_prompt(self.stage, self.settings.seed)
                asked.append(self._read(clip, video, other)[0])
            if self.settings.kind == "relative":
                generic = generic_prompt(self.stage, self.settings.generic)
                plain, _ = self._read(clip, video, generic)
                asked = [one.relative_to(plain) for one in asked]
            lost = self._causal(clip, video, asked, scores)
        return [ClipMap(one, scores, own) for one, own in zip(asked, lost, strict=True)]

    @torch.no_grad()
    def _read(
        self, clip: Clip, video: Video, stage: Stage
    ) -> tuple[VideoMap, Float[Tensor, " classes"]]:
        """Map and class scores of a prompt; both come from one forward."""
        batch = self._batch([Example(clip, video, None, SampleSlot(0))], stage)
        prompt = _prompt(batch)
        is_video = prompt.input_ids[0] == self.config.video_token_id
        grid = token_grid(
            batch.video["video_grid_thw"][0].tolist(), self.config.vision_config.spatial_merge_size
        )

        def forward() -> Any:
            return next(prefill(self.backbone, [prompt], self.vision(batch)))

        made, read = read_map(self.backbone, self.layers, is_video, grid, forward)
        return made, self._scores(read)[0]

    def _scores(self, read: Any) -> Float[Tensor, "clips classes"]:
        """Log-probabilities of the class answers.

        Raises:
            NotFiniteError: If some are not finite.
        """
        answers = self.collator.class_answers(self.stage)
        scores = score_candidates(self.backbone, read, answers).float().cpu()
        if not scores.isfinite().all():
            raise NotFiniteError([0])  # the only clip of the batch, masked or not
        return scores

    def _causal(
        self,
        clip: Clip,
        video: Video,
        maps: Sequence[VideoMap],
        scores: Float[Tensor, " classes"],
    ) -> list[dict[str, float]]:
        """What masking costs the clip's class (where it has none, the one that was answered)."""
        settings = self.settings.causal
        if settings is None:
            return [{} for _ in maps]
        label = int(scores.argmax()) if clip.label is None else clip.label
        count = settings.cells(maps[0].values.size)
        cells = [top_cells(one.values, count) for one in maps]
        cells += random_cells(maps[0].values.shape, count, clip.id, settings)
        odds = self._masked_odds(clip, [grey_out(video, own) for own in cells], label)
        before = float(log_odds(scores[None], label))
        tops, drawn = odds[: len(maps)], odds[len(maps) :]
        return [causal_scores(before, top, drawn) for top in tops]

    @torch.no_grad()
    def _masked_odds(self, clip: Clip, videos: Sequence[Video], label: int) -> list[float]:
        """Log-odds of a class for several versions of a clip."""
        found: list[float] = []
        for start in range(0, len(videos), AT_ONCE):
            part = videos[start : start + AT_ONCE]
            examples = [Example(clip, one, None, SampleSlot(n)) for n, one in enumerate(part)]
            batch = self._batch(examples, self.stage)
            read = next(prefill(self.backbone, [_prompt(batch)], self.vision(batch)))
            found += log_odds(self._scores(read), label).tolist()
        return found

    def _batch(self, examples: list[Example], stage: Stage) -> Batch:
        return replace(self.collator, prompt_stage=stage)(examples).to(self.device)


class MapWriter(Callback):
    """Keeps what was read of each clip as soon as it is.

    Args:
        records: Where the question's maps go, and those of the shuffled one where it is asked.
        abouts: What determines the record of a clip, by its id.
        classes: Class names in order.
    """

    def __init__(
        self,
        records: Sequence[Records],
        abouts: Mapping[str, Mapping[str, Any]],
        classes: Sequence[str],
    ) -> None:
        self.records, self.abouts, self.classes = records, abouts, classes

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the clip's files."""
        if not outputs:
            return
        (clip,), shown = batch.clips, batch.frames[0]
        for records, one in zip(self.records, outputs, strict=True):
            shares = one.scores.softmax(-1).tolist()
            content = {
                "prediction": self.classes[int(one.scores.argmax())],
                "probabilities": dict(zip(self.classes, map(seven_digits, shares), strict=True)),
                **shown,  # frames and the file's frames per second
                "video_share": seven_digits(one.map.video_share),
                "causal": {name: seven_digits(value) for name, value in one.causal.items()},
                "map": [
                    [[seven_digits(value) for value in row] for row in rows]
                    for rows in one.map.values.tolist()
                ],
            }
            records.write(clip.id, self.abouts[clip.id], content)


def redraw(model: Any, family: Family, seed: int) -> None:
    """Draws the language model's weights anew, as a model has them before any training.

    The vision tower and the merger stay: what is lost is what the decoder has learnt.

    Args:
        model: The backbone; changed in place.
        family: Its family.
        seed: Of the draws.
    """
    spread = model.config.text_config.initializer_range
    with torch.no_grad():
        for number, (name, parameter) in enumerate(parameter_parts(model, family)["language"]):
            if parameter.ndim > 1:
                device = parameter.device
                drawn = torch.Generator(device).manual_seed(seed * 1_000_003 + number)
                parameter.normal_(0.0, spread, generator=drawn)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _prompt(batch: Batch) -> Sequences:
    assert batch.prompt is not None
    return batch.prompt
