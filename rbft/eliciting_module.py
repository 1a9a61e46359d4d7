"""ElicitingModule: names the class behind rationales that were written before, and who keeps it."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.backbone.loader import BackboneLoader
from rbft.backbone_module import BackboneModule
from rbft.batch import Batch
from rbft.card import Card
from rbft.collator import Collator
from rbft.data.elicited import ElicitedClasses
from rbft.data.verified import QUESTION
from rbft.inference.classifier import Classified, naming_clips
from rbft.inference.generation import extend, prefill, score_candidates

log = logging.getLogger(__name__)
Records = Mapping[str, Sequence[Mapping[str, Any]]]  # lines of the rationale file, by clip id


class ElicitingModule(BackboneModule):
    """Asks the backbone for the class behind given rationales; nothing is trained or written.

    The prompt is that of P+R+C, the rationale stands behind it as if the model had just written it,
    tokenized as in training, and the class is the likeliest of all class words. A clip with its
    prompt is read once for all its rationales.

    Args:
        loader: Reads the backbone.
        card: The task's words.
        records: The rationales of each clip.
        packing: Put the prompts of a batch behind each other in one row, without padding.
    """

    def __init__(
        self, loader: BackboneLoader, card: Card, records: Records, *, packing: bool
    ) -> None:
        super().__init__(loader, 1)  # it writes nothing
        self.card, self.records, self.packing = card, records, packing

    def collators(self) -> dict[str, Collator]:
        """What makes the batches to predict on; reads the processor."""
        return {"predict": self.collator}

    @cached_property
    def collator(self) -> Collator:
        """Puts the question, and tokenizes rationales and class words."""
        return Collator(
            self.processor,
            self.config,
            self.family,
            self.card,
            prompt_stage=QUESTION,
            packing=self.packing,
        )

    def predict_step(self, batch: Batch) -> list[Classified]:
        """The classes behind the first rationale of each clip, behind the second, and so on.

        Where a clip has fewer than others of the batch, what stands there is of no rationale.
        """
        assert batch.prompt is not None
        collator = self.collator
        words, given = collator.class_answers(QUESTION), _texts(self.records, batch)
        made = []
        with naming_clips(batch):
            (read,) = prefill(self.backbone, [batch.prompt], self.vision(batch))
            for number in range(max(map(len, given))):
                texts = [own[number] if number < len(own) else None for own in given]
                ids = [
                    [] if text is None else collator.part_ids(text, last=False) for text in texts
                ]
                behind = extend(self.backbone, read.copy(), ids)
                scores = score_candidates(self.backbone, behind, words)
                made.append(Classified.by_scores(scores, [""] * len(batch)))
                made[-1].check_finite()
        return made


class ElicitedWriter(Callback):
    """Appends each batch's classes to this process's part of the file.

    Args:
        elicited: The file.
        records: The rationales of each clip, as the module has them.
    """

    def __init__(self, elicited: ElicitedClasses, records: Records) -> None:
        self.elicited, self.records = elicited, records

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the batch to disk before the next one begins."""
        names, answers = self.elicited.classes, []
        columns = [(own.prediction.tolist(), own.probabilities.tolist()) for own in outputs]
        for place, (clip, weight, error) in enumerate(
            zip(batch.clips, batch.weight.tolist(), batch.errors, strict=True)
        ):
            if weight == 0:
                continue
            for record, (predictions, probabilities) in zip(
                self.records[clip.id], columns, strict=False
            ):
                answer: dict[str, Any] = {"elicited": names[predictions[place]]}
                shares = [float(f"{share:.7g}") for share in probabilities[place]]
                answer["probabilities"] = dict(zip(names, shares, strict=True))
                if error:
                    answer = {"elicited": None, "error": error}
                answers.append((record, answer))
            if error:
                log.warning(
                    "%s No class can be elicited behind the rationales of clip %s, which count as "
                    "wrong. To try again, take its lines out of %s.",
                    error,
                    clip.id,
                    self.elicited.path,
                )
        self.elicited.append(trainer.global_rank, answers)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins what all processes have written, on the first one."""
        trainer.strategy.barrier("elicited")
        if trainer.is_global_zero:
            module: Any = pl_module
            self.elicited.merge([clip.id for clip in module.data.clips_to_describe()])
        trainer.strategy.barrier("joined")


def _texts(records: Records, batch: Batch) -> list[list[str]]:
    return [[record["rationale"].strip() for record in records[clip.id]] for clip in batch.clips]
