"""Stage 0: the base model writes a rationale for every training clip, r_i = M_theta(v_i, P)."""

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.data.rationales import UNDECODABLE, RationaleStore

log = logging.getLogger(__name__)


class RationaleWriter(Callback):
    """Appends each batch's rationales to this process's part of the store.

    Args:
        store: The rationale file.
    """

    def __init__(self, store: RationaleStore) -> None:
        self.store = store

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
        module: Any = pl_module
        tokenizer = module.processor.tokenizer
        records = []
        for ids, index, weight, error in zip(
            outputs, batch.index.tolist(), batch.weight.tolist(), batch.errors, strict=True
        ):
            if weight == 0:
                continue
            record = {
                "id": module.data.predict_clips[index].id,
                "rationale": tokenizer.decode(ids, skip_special_tokens=True).strip(),
                "finish": "stop" if ids[-1:] == [tokenizer.eos_token_id] else "length",
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
                    self.store.path,
                )
            records.append(record)
        self.store.append(trainer.global_rank, records)


def rationalize(trainer: Trainer, module: Any, data: Any, store: RationaleStore) -> None:
    """Writes the missing rationales, over all processes of the trainer.

    Args:
        trainer: A trainer with a `RationaleWriter` of the same store.
        module: An `RBFTModule` of the stage `rationale` on the bare backbone.
        data: The benchmark.
        store: The rationale file; what stands in it is not written again.
    """
    clips = data.clips_to_describe()
    ids = [clip.id for clip in clips]
    missing = set(store.missing(ids))
    data.predict_clips = [clip for clip in clips if clip.id in missing]
    trainer.predict(module, datamodule=data, return_predictions=False)
    trainer.strategy.barrier("rationales")
    if trainer.is_global_zero:
        store.merge(ids)
    trainer.strategy.barrier("merged")
