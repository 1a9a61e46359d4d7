"""Predictions and metrics of a scored split, as files and in TensorBoard."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from rbft.analysis.calibration import reliability_figure
from rbft.analysis.multilabel import LABELS
from rbft.callbacks.answer_rows import answer_row
from rbft.inference.classifier import Classified
from rbft.inference.multilabel_file import write_multilabel
from rbft.inference.result_file import write_results
from rbft.runs.folder import TOLD, read_provenance
from rbft.training.fsdp2 import all_gather_objects


class ResultsWriter(Callback):
    """Collects every clip's answer over all processes, writes them and the metrics.

    Leaves `<file's stem>_predictions.jsonl` (one line a clip, in the split's order) and, last, the
    file, whose presence marks the split as scored. Clips that cannot be decoded count as unparsed,
    that is as wrong, and are named in both. Of classes that share the highest score the first on
    the card is the prediction; `n_ties` counts such clips. Where the scored weights have learnt
    rationales, `rationales` says how many, and how many of them were cut off; `label_conditioned`
    says how many all stages have learnt whose writer was told the class, where there are such.
    `tokens_written` is the number of tokens that the model wrote to answer, where it wrote any.
    TensorBoard gets the reliability diagram of the class probabilities. What is left where clips
    may have several classes says `rbft.inference.multilabel_file`.

    Args:
        file: The results, `.json`.
        split: "test" or "val".
        facts: What else to note beside the metrics.
    """

    def __init__(self, file: Path, split: str, facts: dict[str, Any]) -> None:
        self.file, self.split, self.facts = file, split, facts
        self.rows: list[dict[str, Any]] = []
        self.tokens: list[int] = []

    def _collect(self, module: Any, outputs: Any, batch: Any) -> None:
        classes, levels = module.card.classes, module.card.levels
        for place, (index, weight) in enumerate(
            zip(batch.index.tolist(), batch.weight.tolist(), strict=True)
        ):
            if weight:
                clip = batch.clips[place]
                key = "label" if module.card.several is None else LABELS
                row = {"index": index, "id": clip.id, key: clip.class_names(classes)}
                row |= answer_row(outputs, batch, place, classes, levels)
                if batch.frames and (masked := batch.frames[place].get("masked")):
                    row["masked"] = masked
                self.rows.append(row)
                if isinstance(outputs, Classified) and outputs.written is not None:
                    self.tokens.append(outputs.written[place])

    def _write(self, trainer: Trainer, module: Any, metrics: Any) -> None:
        # Computing is collective: every process takes part.
        values = {name: float(value) for name, value in metrics.compute().items()}
        several = module.card.several is not None
        confusion = None if several else metrics.confusion()
        rows = all_gather_objects(trainer.world_size, self.rows)
        tokens = all_gather_objects(trainer.world_size, self.tokens)
        if not trainer.is_global_zero:
            return
        rows = sorted(rows, key=lambda row: row["index"])
        self.rows = rows
        rows = [{name: value for name, value in row.items() if name != "index"} for row in rows]
        more = {}
        made = None if module.weights is None else read_provenance(module.weights)
        if made is not None and "rationales" in made:
            more["rationales"] = made["rationales"]
        if made is not None and TOLD in made:
            more[TOLD] = made[TOLD]
        if tokens:  # each clip counts once, as its row does
            more["tokens_written"] = sum(tokens)
        if confusion is None:
            write_multilabel(self.file, rows, module.data, self.split, self.facts, values, more)
            return
        found = write_results(
            self.file, rows, module.data, self.split, self.facts, values, confusion, more
        )
        if found["calibration"] is not None:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    figure = reliability_figure(found["calibration"])
                    place = f"{self.split}/reliability"
                    logger.experiment.add_figure(place, figure, module.trained_steps)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the batch's answers."""
        outputs = outputs["classified"]
        self._collect(pl_module, outputs, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the files."""
        self._write(trainer, pl_module, pl_module.test_metrics)
