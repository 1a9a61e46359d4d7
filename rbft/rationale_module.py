"""RationaleModule: a backbone that writes rationales, and who keeps them (Stage 0)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.backbone.loader import BackboneLoader
from rbft.backbone_module import BackboneModule
from rbft.batch import Batch, Transferable
from rbft.card import Card
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.rationales import CUT, STOPPED, UNDECODABLE, RationaleStore
from rbft.inference.classifier import naming_clips
from rbft.inference.generation import (
    Choose,
    PrefilledPrompt,
    decode,
    decode_texts,
    ended,
    find_class,
    likeliest,
    prefill,
)
from rbft.inference.sampling import Draw, RationaleSampling, text_key
from rbft.stages import RATIONALE_STAGE, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written(Transferable):
    """What the model wrote about the clips of a batch.

    Attributes:
        ids: Token ids of each text, with what ended it.
        texts: The texts.
        ended: Whether the model ended each itself; otherwise the limit of tokens did.
        sample: Which of the K samples of its clip each is; None where they were not drawn.
    """

    ids: list[list[int]]
    texts: list[str]
    ended: list[bool]
    sample: int | None = None


class RationaleModule(BackboneModule):
    """Has a backbone write rationales; nothing is trained.

    Args:
        loader: Reads the backbone.
        cards: The task card with each of the prompts that ask for a rationale.
        max_new_tokens: Longest rationale, in tokens.
        packing: Put the prompts of a batch behind each other in one row, without padding.
        sampling: How texts are drawn, and how many about a clip; None takes the likeliest tokens.
        abouts: For each card what its texts are about by clip id, see
            `rbft.data.rationales.about`; with `sampling` alone.
        stage: The stage whose question is put. After the rationale that of P+R+C has the class
            named, which is left out.
    """

    def __init__(
        self,
        loader: BackboneLoader,
        cards: Sequence[Card],
        max_new_tokens: int,
        *,
        packing: bool,
        sampling: RationaleSampling | None = None,
        abouts: Sequence[Mapping[str, Mapping[str, Any]]] = (),
        stage: Stage = RATIONALE_STAGE,
    ) -> None:
        super().__init__(loader, max_new_tokens)
        assert sampling is None or len(abouts) == len(cards)
        self.cards, self.packing = list(cards), packing
        self.sampling, self.abouts = sampling, list(abouts)
        self.stage = stage

    def collators(self) -> dict[str, Collator]:
        """What makes the batches to predict on; reads the processor."""
        stage, (card, *others) = self.stage, self.cards
        collator = Collator(
            self.processor,
            self.config,
            self.family,
            card,
            prompt_stage=stage,
            extra_prompts=tuple((stage, other) for other in others),
            packing=self.packing,
        )
        return {"predict": collator}

    def predict_step(self, batch: Batch) -> list[Written]:
        """What the model writes to each of the prompts: all samples of the first, and so on."""
        assert batch.prompt is not None
        prompts = [batch.prompt, *batch.extra_prompts]
        with naming_clips(batch):
            reads = prefill(self.backbone, prompts, self.vision(batch), batch.shared)
            if self.sampling is None:
                return [self._write(read, likeliest) for read in reads]
            pairs = zip(reads, self.abouts, strict=True)
            return [one for read, about in pairs for one in self._draw(read, about, batch.clips)]

    def _draw(
        self, prompt: PrefilledPrompt, about: Mapping[str, Any], clips: Sequence[Clip]
    ) -> Iterator[Written]:
        """All samples, one number after the other: each takes the memory of a greedy text."""
        sampling = self.sampling
        assert sampling is not None
        for sample in range(sampling.samples):
            keys = [text_key(about[clip.id], sampling.seed, sample) for clip in clips]
            last = sample == sampling.samples - 1
            written = self._write(prompt if last else prompt.copy(), Draw(sampling, keys))
            yield replace(written, sample=sample)

    def _write(self, prompt: PrefilledPrompt, choose: Choose) -> Written:
        ids = decode(self.backbone, prompt, self.generation, choose)
        kept = self._without_class(ids) if self.stage.elicits else ids
        texts = decode_texts(kept, self.processor.tokenizer, self.generation)
        return Written(ids, texts, [ended(own, self.generation) for own in ids])

    def _without_class(self, written: list[list[int]]) -> list[list[int]]:
        """The texts without the class at their ends."""
        words, kept = self.collators()["predict"].class_answers(self.stage), []
        for ids in written:
            turn = ids
            if ended(ids, self.generation):
                turn = [*ids[:-1], self.processor.tokenizer.eos_token_id]
            named, before = find_class(turn, words, at_end=True)
            kept.append(ids if named is None else before)
        return kept


class RationaleWriter(Callback):
    """Appends each batch's rationales to this process's part of the stores.

    Args:
        stores: The rationale file of each prompt.
        model: Name of the backbone, which the lines say; empty says none.
    """

    def __init__(self, stores: Sequence[RationaleStore], model: str = "") -> None:
        self.stores, self.model = stores, model

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
        samples = len(outputs) // len(self.stores)
        assert samples * len(self.stores) == len(outputs)
        for number, store in enumerate(self.stores):
            records = [
                self._named(record)
                for written in outputs[number * samples : (number + 1) * samples]
                for record in _records(store, written, batch)
            ]
            # All samples of a clip at once: a kill leaves a clip whole or without, but for the one
            # that it cuts through.
            order = [clip.id for clip in batch.clips]
            records.sort(key=lambda record: order.index(record["id"]))
            store.append(trainer.global_rank, records)

    def _named(self, record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "model": self.model} if self.model else record

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins what all processes have written, on the first one."""
        trainer.strategy.barrier("rationales")
        if trainer.is_global_zero:
            module: Any = pl_module
            order = [clip.id for clip in module.data.clips_to_describe()]
            for store in self.stores:
                store.merge(order)
        trainer.strategy.barrier("merged")


def _records(store: RationaleStore, written: Written, batch: Batch) -> list[dict[str, Any]]:
    records = []
    for text, ids, whole, clip, weight, error, shown in zip(
        written.texts,
        written.ids,
        written.ended,
        batch.clips,
        batch.weight.tolist(),
        batch.errors,
        batch.frames or ({},) * len(batch),
        strict=True,
    ):
        if weight == 0 or (error and written.sample):
            continue  # a clip that cannot be decoded has one line
        record = {
            "id": clip.id,
            "rationale": text.strip(),
            "finish": STOPPED if whole else CUT,
            "tokens": len(ids),
            "source": "self",
            **shown,
        }
        if written.sample is not None:
            record["sample"] = written.sample
        if error:
            record |= {"rationale": "", "finish": UNDECODABLE, "tokens": 0, "error": error}
            log.warning(
                "%s Clip %s has no rationale; in training another takes its place. To try "
                "again, take its line out of %s.",
                error,
                record["id"],
                store.path,
            )
        records.append(record)
    return records
