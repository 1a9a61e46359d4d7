"""RBFTModule: one Lightning module for both stages, the bare backbone and every ablation.

The `stage` says what is asked and what should be answered (`rbft.stages`); the loss is the same
function for all of them.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from rbft.answers import continue_prompts, find_class, score_answers, write_answers
from rbft.backbone import (
    generation_settings,
    load_config,
    load_model,
    load_processor,
    parameter_parts,
)
from rbft.collator import IGNORED, Batch, Collator, Transferable
from rbft.data.base import VideoDataModule
from rbft.data.card import Card
from rbft.metrics import ClassificationMetrics
from rbft.optim import cosine_schedule, parameter_groups
from rbft.stages import CLASS, RATIONALE, STAGES, find_stage

log = logging.getLogger(__name__)


def answer_nll(
    logits: Float[Tensor, "answer vocab"],
    targets: Int[Tensor, " answer"],
    weights: Float[Tensor, " answer"],
    total: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Negative log-likelihood per answer token, -log P(answer | video, prompt).

    Serves both stages (section 3): the answer is the rationale r_i in Stage I and the class word
    y_i in Stage II.

    Args:
        logits: Scores before softmax, computed at the positions that predict an answer token and
            nowhere else (the language-model head is never run on video or prompt tokens).
        targets: The answer tokens' ids.
        weights: Weight of each token: its clip's.
        total: Weighted answer tokens in the global batch, over ranks and micro-batches; the
            micro-batches' losses add up to the global batch's mean.

    Returns:
        Nats per token, in float32.

    Raises:
        ValueError: If the batch holds no answer token.
    """
    if len(targets) == 0:
        raise ValueError("The batch holds no answer token. Check the stage's target and the card.")
    nll = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    return (nll * weights).sum() / total


@dataclass(frozen=True)
class Classified(Transferable):
    """What the model says about a batch of clips.

    Attributes:
        prediction: Class index; the number of classes stands for an answer that is none of them.
        scores: Log-probability of each whole class answer; None where the answer was written.
        texts: What the model wrote, "" where it only scored.
        rationales: The rationales, where they were asked for besides.
    """

    prediction: Int[Tensor, " clips"]
    scores: Float[Tensor, "clips classes"] | None
    texts: list[str]
    rationales: list[str] | None = None

    @property
    def probabilities(self) -> Float[Tensor, "clips classes"] | None:
        """The scores normalised over the classes."""
        return None if self.scores is None else self.scores.softmax(-1)


class RBFTModule(LightningModule):
    """The model, its two losses and its classification.

    Args:
        backbone: The base model M_theta: a `from_pretrained` folder or hub id of any Qwen2-VL or
            Qwen2.5-VL.
        card: The task's words; taken from the data module.
        stage: What is learnt: rationale (Stage I), label (Stage II), or the compositions
            class_rationale (P+C+R) and rationale_class (P+R+C). null runs the experiment's
            whole list.
        weights: Weights folder to start from or to score instead of the backbone's own; fit sets
            it to what the stage before left.
        learning_rate: Learning rate of the language model.
        merger_learning_rate: Learning rate of the merger between vision tower and language model.
        vision_learning_rate: Learning rate of the vision tower.
        weight_decay: AdamW's decay of all weights but biases and norms.
        warmup_ratio: Share of the optimiser steps in which the learning rate rises linearly,
            before it falls along a half cosine.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        attention: Attention implementation: sdpa, eager or flash_attention_2 (where installed).
        answer: How a clip is classified: score compares the probabilities of all class words,
            generate lets the model write and parses it.
        max_new_tokens: Longest text that the model writes, in tokens.
    """

    def __init__(
        self,
        backbone: str,
        card: Card,
        *,
        learning_rate: float,
        merger_learning_rate: float,
        vision_learning_rate: float,
        weight_decay: float,
        warmup_ratio: float,
        gradient_checkpointing: bool,
        stage: str | None = None,
        weights: Path | None = None,
        attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa",
        answer: Literal["score", "generate"] = "score",
        max_new_tokens: int = 256,
    ) -> None:
        super().__init__()
        self.source = str(weights or backbone)
        self.card, self.stage = card, find_stage(stage or "label")
        self.learning_rates = {
            "language": learning_rate,
            "merger": merger_learning_rate,
            "vision": vision_learning_rate,
        }
        self.weight_decay, self.warmup_ratio = weight_decay, warmup_ratio
        self.gradient_checkpointing, self.attention = gradient_checkpointing, attention
        self.answer, self.max_new_tokens = answer, max_new_tokens
        self.config, self.family = load_config(self.source)
        self.backbone: Any = None
        self.processor: Any = None
        self.val_metrics = ClassificationMetrics(card.classes)
        self.test_metrics = ClassificationMetrics(card.classes)
        self.explain = False  # whether predict asks for a rationale besides the class
        self._window_loss = torch.zeros(())
        self._window_replaced = 0
        self._stepped = 0

    @property
    def data(self) -> VideoDataModule:
        """The data module of the run."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, VideoDataModule)
        return data

    def setup(self, stage: str) -> None:
        """Reads the processor and tells the data module how to make batches."""
        if (
            self.trainer.world_size > 1
            and self.trainer._accelerator_connector.use_distributed_sampler
        ):
            raise ValueError(
                "trainer.use_distributed_sampler must be false: rbft's own sampler shares the "
                "clips out, and Lightning's would count some of them twice."
            )
        if self.processor is None:
            self.processor = load_processor(self.source)
        asked = self.stage if stage == "predict" else self.stage.classifier
        learn = Collator(self.processor, self.config, self.family, self.card, learn=self.stage)
        ask = Collator(self.processor, self.config, self.family, self.card, ask=asked)
        both = Collator(
            self.processor, self.config, self.family, self.card, self.stage, self.stage.classifier
        )
        why = replace(ask, explain=STAGES["rationale"]) if self.explain else ask
        self.collator = learn
        self.data.collators = {"train": learn, "val": both, "test": ask, "predict": why}

    def configure_model(self) -> None:
        """Loads the weights; Lightning calls this where the strategy wants them."""
        if self.backbone is None:
            self.backbone = load_model(self.source, self.attention, self.gradient_checkpointing)
            # Before the strategy wraps the model: it must know what takes part in a step.
            for part, named in parameter_parts(self.backbone, self.family).items():
                for _, parameter in named:
                    parameter.requires_grad_(self.learning_rates[part] > 0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with one learning rate per part, and a cosine schedule with warm-up."""
        groups = parameter_groups(
            parameter_parts(self.backbone, self.family), self.learning_rates, self.weight_decay
        )
        optimizer = torch.optim.AdamW(groups)
        # Not trainer.estimated_stepping_batches: it builds the loader before a resumed run
        # knows where it stopped.
        steps = self.data.steps(self.trainer.world_size, self.trainer.max_epochs or 1)
        schedule = cosine_schedule(optimizer, steps, self.warmup_ratio)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, batch: Batch) -> Float[Tensor, "answer vocab"]:
        """Logits at the positions that predict an answer token, clip after clip."""
        assert batch.answer is not None
        predicts = torch.zeros_like(batch.answer.labels, dtype=torch.bool)
        predicts[:, :-1] = batch.answer.labels[:, 1:] != IGNORED
        return self.backbone(
            **batch.answer.inputs, **batch.video, use_cache=False, logits_to_keep=predicts
        ).logits

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The batch's share of its global batch's negative log-likelihood per answer token."""
        assert batch.answer is not None
        is_answer = batch.answer.labels[:, 1:] != IGNORED
        targets = batch.answer.labels[:, 1:][is_answer]
        weights = batch.weight[:, None].expand_as(is_answer)[is_answer]
        return answer_nll(self(batch), targets, weights, batch.total)

    def training_step(self, batch: Batch) -> Float[Tensor, ""]:
        """One micro-batch."""
        loss = self.loss(batch)
        self._window_loss = self._window_loss.to(loss.device) + loss.detach()
        for error in filter(None, batch.errors):
            log.warning("%s", error)
            self._window_replaced += 1
        # Lightning divides by the accumulation steps and averages over processes; the loss is
        # already a share of the whole.
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the loss of the global batch that was just stepped on, and its replaced clips."""
        if self.trainer.global_step != self._stepped:
            self._stepped = self.trainer.global_step
            self.log("train/loss", self._window_loss, sync_dist=True, reduce_fx="sum")
            self._window_loss = torch.zeros_like(self._window_loss)
            count = float(self._window_replaced)
            self.log("data/replaced", count, sync_dist=True, reduce_fx="sum")
            self._window_replaced = 0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by norm as torch does, and logs the norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or float("inf"))
        self.log("train/grad_norm", norm)

    def classify(self, batch: Batch) -> Classified:
        """The class of each clip in the batch; a clip that cannot be decoded has no answer."""
        classified = self._classify(batch)
        lost = torch.tensor([bool(error) for error in batch.errors], device=self.device)
        prediction = classified.prediction.masked_fill(lost, len(self.card.classes))
        return replace(classified, prediction=prediction)

    @torch.no_grad()
    def _classify(self, batch: Batch) -> Classified:
        assert batch.prompt is not None
        stage, pad = self.stage.classifier, self.processor.tokenizer.pad_token_id
        words = self.collator.class_answers(stage)
        prompt, texts = batch.prompt, [""] * len(batch)
        elicited = stage.parts[0] == RATIONALE
        if self.answer == "generate" or elicited:
            settings = generation_settings(self.processor, self.max_new_tokens)
            written = write_answers(self.backbone, prompt, batch.video, settings)
            texts = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
            found = [find_class(ids, words, at_end=elicited) for ids in written]
            if self.answer == "generate":
                classes = [index for index, _ in found]
                if stage.parts == (CLASS,):
                    classes = [self.card.parse(text) for text in texts]
                classes = [len(words) if index is None else index for index in classes]
                return Classified(torch.tensor(classes, device=self.device), None, texts)
            # The class is scored after the model's own rationale.
            separator = self.collator.separator_ids()
            rationales = [
                rest if index is not None else [*rest, *separator] for index, rest in found
            ]
            prompt = continue_prompts(prompt, rationales, pad)
        scores = score_answers(self.backbone, prompt, batch.video, words)
        return Classified(scores.argmax(-1), scores, texts)

    def validation_step(self, batch: Batch) -> dict[str, Classified]:
        """The stage's loss, and the classification of the stage."""
        # A clip that cannot be decoded counts as a wrong answer, but has no likelihood.
        seen = [float(not error) for error in batch.errors]
        weight = batch.weight * torch.tensor(seen, device=batch.weight.device)
        loss = self.loss(replace(batch, weight=weight))
        assert batch.answer is not None
        tokens = (batch.answer.labels != IGNORED).sum(-1) * weight
        self._val_loss += torch.stack([loss * batch.total, tokens.sum()])
        classified = self.classify(batch)
        self.val_metrics.update(classified.prediction, batch.label, batch.weight > 0)
        return {"classified": classified}

    def on_validation_epoch_start(self) -> None:
        """Starts the sums of the loss and its tokens."""
        self._val_loss = torch.zeros(2, device=self.device)

    def on_validation_epoch_end(self) -> None:
        """Logs the loss per token and the metrics, exact over processes."""
        nll, tokens = self.trainer.strategy.reduce(self._val_loss, reduce_op="sum")
        self.log("val/loss", nll / tokens)
        self._log_metrics("val", self.val_metrics)
        self.val_metrics.reset()

    def test_step(self, batch: Batch) -> dict[str, Classified]:
        """The classification of the batch."""
        classified = self.classify(batch)
        self.test_metrics.update(classified.prediction, batch.label, batch.weight > 0)
        return {"classified": classified}

    def on_test_epoch_end(self) -> None:
        """Logs the metrics, exact over processes."""
        self._log_metrics(self.data.scored_split, self.test_metrics)

    def _log_metrics(self, split: str, metrics: ClassificationMetrics) -> None:
        self.log_dict({f"{split}/{name}": value for name, value in metrics.compute().items()})

    def predict_step(self, batch: Batch) -> Classified | list[list[int]]:
        """Class probabilities, or in the rationale stage the rationale's token ids (Stage 0)."""
        settings = generation_settings(self.processor, self.max_new_tokens)
        if self.stage.classifier is not self.stage:
            assert batch.prompt is not None
            return write_answers(self.backbone, batch.prompt, batch.video, settings)
        classified = self.classify(batch)
        if batch.explain is None:
            return classified
        written = write_answers(self.backbone, batch.explain, batch.video, settings)
        texts = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        return replace(classified, rationales=texts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes the stage: a Lightning checkpoint resumes the same stage only."""
        checkpoint["rbft_stage"] = self.stage.name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another stage."""
        check_stage(checkpoint, self.stage.name)


def check_stage(checkpoint: dict[str, Any], stage: str) -> None:
    """Refuses a Lightning checkpoint that is not of the given stage.

    Raises:
        ValueError: If it is of another one.
    """
    found = checkpoint.get("rbft_stage")
    if found != stage:
        raise ValueError(
            f"The checkpoint is of stage '{found}', this is stage '{stage}'. A checkpoint only "
            "resumes its own stage; to start from another stage's result, set model.weights to its "
            "weights folder."
        )
