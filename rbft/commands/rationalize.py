"""Stage 0: the base model writes a rationale for every training clip, r_i = M_theta(v_i, P)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.card import Card
from rbft.clip import Clip
from rbft.data.rationales import CUT, STOPPED, UNDECODABLE, RationaleStore

log = logging.getLogger(__name__)


class RationaleWriter(Callback):
    """Appends each batch's rationales to this process's part of the stores.

    Args:
        stores: The rationale file of each prompt.
    """

    def __init__(self, stores: Sequence[RationaleStore]) -> None:
        self.stores = stores

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
            store.append(trainer.global_rank, self._records(pl_module, store, written, batch))

    def _records(
        self, module: Any, store: RationaleStore, written: list[list[int]], batch: Any
    ) -> list[dict[str, Any]]:
        records = []
        for ids, text, clip, weight, error in zip(
            written,
            module.texts(written),
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
                "finish": STOPPED if module.ended(ids) else CUT,
                "tokens": len(ids),
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


def passes(
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


def rationalize(
    trainer: Trainer,
    module: Any,
    data: Any,
    stores: Sequence[RationaleStore],
    clips: Sequence[Clip],
) -> None:
    """Writes rationales over all processes of the trainer; each clip is read once.

    Args:
        trainer: A trainer with a `RationaleWriter` of the same stores.
        module: An `RBFTModule` of the stage `rationale` on the bare backbone; its `cards` have the
            prompts.
        data: The benchmark.
        stores: The rationale file of each prompt.
        clips: The clips that lack a rationale of each.
    """
    data.predict_clips = list(clips)
    trainer.predict(module, datamodule=data, return_predictions=False)
    trainer.strategy.barrier("rationales")
    if trainer.is_global_zero:
        for store in stores:
            store.merge([clip.id for clip in data.clips_to_describe()])
    trainer.strategy.barrier("merged")
