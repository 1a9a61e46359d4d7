"""Stage 0: the base model writes a rationale for every training clip, r_i = M_theta(v_i, P)."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.backbone.loader import BackboneLoader
from rbft.backbone.loading import short_name
from rbft.backbone_module import BackboneModule
from rbft.batch import Batch, Transferable
from rbft.build import Experiment, build
from rbft.callbacks.cut import cut_note
from rbft.card import Card
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.base import VideoDataModule
from rbft.data.rationales import CUT, STOPPED, UNDECODABLE, RationaleStore
from rbft.inference.classifier import naming_clips
from rbft.inference.generation import decode_texts, ended, greedy_decode, prefill
from rbft.inputs import Inputs
from rbft.module import RBFTModule
from rbft.runtime.console import print_rank_zero
from rbft.runtime.lock import Lock
from rbft.stages import STAGES
from rbft.training.fsdp2 import wait_for_all

SHOWN = 3  # rationales on the screen, when all are written

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written(Transferable):
    """What the model wrote about the clips of a batch.

    Attributes:
        texts: The texts.
        lengths: Tokens of each.
        ended: Whether the model ended each itself; otherwise the limit of tokens did.
    """

    texts: list[str]
    lengths: list[int]
    ended: list[bool]


class RationaleModule(BackboneModule):
    """Has a backbone write rationales; nothing is trained.

    Args:
        loader: Reads the backbone.
        cards: The task card with each of the prompts that ask for a rationale.
        max_new_tokens: Longest rationale, in tokens.
        packing: Put the prompts of a batch behind each other in one row, without padding.
    """

    def __init__(
        self, loader: BackboneLoader, cards: Sequence[Card], max_new_tokens: int, *, packing: bool
    ) -> None:
        super().__init__(loader, max_new_tokens)
        self.cards, self.packing = list(cards), packing

    def collators(self) -> dict[str, Collator]:
        """What makes the batches to predict on; reads the processor."""
        stage, (card, *others) = STAGES["rationale"], self.cards
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
        """What the model writes to each of the prompts."""
        assert batch.prompt is not None
        prompts = [batch.prompt, *batch.extra_prompts]
        with naming_clips(batch):
            reads = prefill(self.backbone, prompts, self.vision(batch), batch.shared)
            return [self._write(read) for read in reads]

    def _write(self, prompt: Any) -> Written:
        ids = greedy_decode(self.backbone, prompt, self.generation)
        texts = decode_texts(ids, self.processor.tokenizer, self.generation)
        return Written(texts, [*map(len, ids)], [ended(own, self.generation) for own in ids])


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
        for store, written in zip(self.stores, outputs, strict=True):
            records = [self._named(one) for one in _records(store, written, batch)]
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
    for text, length, whole, clip, weight, error in zip(
        written.texts,
        written.lengths,
        written.ended,
        batch.clips,
        batch.weight.tolist(),
        batch.errors,
        strict=True,
    ):
        if weight == 0:
            continue
        record = {
            "id": clip.id,
            "rationale": text.strip(),
            "finish": STOPPED if whole else CUT,
            "tokens": length,
            "source": "self",
        }
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


def check_prompts(names: Sequence[str], card: Card) -> None:
    """Refuses names that are no rationale prompts of the card, or that stand twice.

    Raises:
        ValueError: Naming those that there are.
    """
    allowed = [name for name in card.prompts if name != "label"]
    if not names or len(set(names)) < len(names) or not set(names) <= set(allowed):
        raise ValueError(
            f"--prompts [{', '.join(names)}] must name rationale prompts of the card "
            f"'{card.name}', each once; it has {', '.join(allowed)}."
        )


def group_by_missing_prompts(
    missing: Mapping[str, Sequence[str]], clips: Sequence[Clip]
) -> dict[tuple[str, ...], list[Clip]]:
    """The prompts that clips lack a rationale of, and the clips that lack just these.

    All is one pass, unless an earlier run has written more for one prompt than for another.

    Args:
        missing: Ids of the clips that lack a rationale, by the name of its prompt.
        clips: The clips to describe.
    """
    sets = {name: set(ids) for name, ids in missing.items()}
    found: dict[tuple[str, ...], list[Clip]] = {}
    for clip in clips:
        if lacking := tuple(name for name, ids in sets.items() if clip.id in ids):
            found.setdefault(lacking, []).append(clip)
    return found


def write_rationales(inputs: Inputs, prompts: Sequence[str] | None = None) -> None:
    """Has the backbone write the rationales that are missing.

    Args:
        inputs: What the experiment is made from.
        prompts: Names of the prompts on the card that ask for them; None takes that of the
            experiment.
    """
    data, model = inputs.data, inputs.model
    writer = short_name(inputs.experiment.settings.model.backbone)
    variants = prompt_variants(inputs.experiment, inputs.data, prompts)
    stores = {name: inputs.rationale_store(variant) for name, variant in variants.items()}
    clips = data.clips_to_describe()
    ids = [clip.id for clip in clips]
    wanted = ids if data.rationale_ratio else []
    with ExitStack() as owned:
        for store in stores.values():
            owned.enter_context(Lock(store.path, "Rationale file"))
            store.read()  # what another run may have written meanwhile
        missing = {name: store.missing(wanted) for name, store in stores.items()}
        for name, store in stores.items():
            _say_reuse(store, wanted, missing[name])
        for lacking, some in group_by_missing_prompts(missing, clips).items():
            cards = [variants[name].card for name in lacking]

            def module(model: RBFTModule, cards: list[Card] = cards) -> RationaleModule:
                longest = model.max_new_tokens
                return RationaleModule(model.loader, cards, longest, packing=model.packing)

            build(
                inputs.experiment,
                "rationale",
                None,
                "Stage 0: writing rationales",
                [RationaleWriter([stores[name] for name in lacking], writer)],
                feed={"predict_clips": some},
                module=module,
            ).predict()
        wait_for_all(inputs.trainer, inputs.model)  # before the first process joins what is read
        if _get_rank():
            return
        for store in stores.values():
            store.recover(ids)
    for name, store in stores.items():
        texts, which = store.texts(), f", {name}" if len(stores) > 1 else ""
        for clip in [clip for clip in missing[name] if clip in texts][:SHOWN]:
            print_rank_zero(f"{clip}{which}: {texts[clip]}")
        known = [clip for clip in wanted if clip in texts]
        cut = len(store.cut().intersection(known))
        if note := cut_note(cut, len(known), model.max_new_tokens):
            print_rank_zero(f"Stage 0{which}: {note}")


def prompt_variants(
    experiment: Experiment, data: VideoDataModule, prompts: Sequence[str] | None
) -> dict[str, VideoDataModule]:
    """The benchmark with each of several prompts as the one that asks for rationales.

    Args:
        experiment: The settings.
        data: The benchmark.
        prompts: Names of prompts on the card; None takes that of the experiment.

    Returns:
        The benchmarks by the prompts' names.

    Raises:
        ValueError: If one is no rationale prompt of the card, or `data.rationale_file` would be the
            file of several.
    """
    if prompts is None:
        return {data.rationale_prompt: data}
    check_prompts(prompts, data.card)
    if data.rationale_file is not None and len(prompts) > 1:
        raise ValueError(
            f"--prompts names {len(prompts)} prompts, but data.rationale_file "
            f"({data.rationale_file}) is the file of one. Set it to null, or name one prompt."
        )
    return {
        name: experiment.changed(data__init_args__rationale_prompt=name).data() for name in prompts
    }


def _say_reuse(store: RationaleStore, wanted: list[str], missing: list[str]) -> None:
    """Says how many rationales are there already, and whether what they are about is known."""
    there = len(wanted) - len(missing)
    if there:
        print_rank_zero(f"Stage 0: {there} of {len(wanted)} rationales reused from {store.path}")
    if silent := [name for name in wanted if name in set(store.unproven)]:
        print_rank_zero(
            f"{len(silent)} of them do not say which video they are about and are taken by the "
            f"clip's id (first: {silent[0]})."
        )
    if missing:
        print_rank_zero(f"Stage 0: {len(missing)} rationales to write into {store.path}")
