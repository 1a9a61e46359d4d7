"""Rationales that the limit of tokens cut off: said before they are learnt, and logged."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.runtime.console import print_rank_zero


class CutRationales(Callback):
    """Says how many of the rationales that a stage learns were cut off, and logs their share.

    `train/cut_rationales` in TensorBoard, from 0 to 1, where it is not 0. Does nothing in a stage
    without rationales.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the rationales of the training clips."""
        module: Any = pl_module
        if not module.stage.needs_rationales:
            return
        counts = module.data.rationales("train").counts()
        for logger in trainer.loggers:
            logger.log_metrics({"train/cut_rationales": counts["share_cut"]}, trainer.global_step)
        note = cut_note(counts["cut"], counts["learnt"], module.max_new_tokens)
        if note:
            print_rank_zero(f"{module.stage.paper}: {note}")


def cut_note(cut: int, count: int, limit: int) -> str:
    """A sentence about rationales that were cut off; empty where none was.

    Args:
        cut: How many were cut off.
        count: How many there are.
        limit: The limit of tokens, `model.max_new_tokens`.
    """
    if not cut:
        return ""
    return (
        f"{cut} of {count} rationales ({cut / count:.1%}) were cut off at model.max_new_tokens "
        f"({limit}) and are trained without the end of the turn. To have whole ones, raise "
        "model.max_new_tokens and start a run of another name: all rationales are written anew."
    )
