"""RBFTModule: one Lightning module for both stages, the bare backbone and every ablation.

The `stage` says what is asked and what should be answered (`rbft.stages`); the loss is the same
function for all of them.
"""

import hashlib
import logging
import math
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from rbft.backbone.adapters import LoRA, check_adapters, check_targets
from rbft.backbone.attention import forward_inputs
from rbft.backbone.embeddings import VIDEO_INDICES, VIDEO_SOURCES, flatten_hidden_states
from rbft.backbone.loader import BackboneLoader
from rbft.backbone.loading import available_attention, available_packing, parameter_parts
from rbft.backbone_module import BackboneModule
from rbft.batch import Batch
from rbft.card import Card
from rbft.collator import Collator
from rbft.inference.classifier import (
    Classified,
    ClassifiedEach,
    Classifier,
    naming_clips,
    not_finite,
)
from rbft.inference.generation import (
    decode_texts,
    greedy_decode,
    prefill,
    score_own_candidates,
)
from rbft.inference.metrics import ClassificationMetrics, MultiLabelMetrics
from rbft.inference.sampling import RationaleSampling, SelfConsistency
from rbft.runs.folder import read_provenance
from rbft.runtime.ranges import check_ranges
from rbft.runtime.transfer import to_device
from rbft.stages import STAGES, find_stage
from rbft.training.fsdp2 import all_gather_objects, clip_gradients
from rbft.training.loss import token_nll
from rbft.training.objectives import PARTS, cost_matrix, expected_cost, part_losses
from rbft.training.optim import cosine_schedule, freeze, parameter_groups
from rbft.training.step_monitor import FIRST_PART, FIRST_SIGNAL, StepMonitor, is_scaled

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
            nowhere else (the language-model head is never run on video or prompt tokens). The
            backward pass writes their gradient over them, see `rbft.training.loss`.
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
    nll = token_nll(logits, targets)
    return (nll * weights).sum() / total


class RBFTModule(BackboneModule):
    """The model, its two losses and its classification.

    Args:
        backbone: The base model M_theta: a `from_pretrained` folder or hub id of any Qwen2-VL,
            Qwen2.5-VL or Qwen3-VL.
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
        gradient_checkpointing: Recompute activations in the backward pass to save memory: true in
            every block of decoder and vision tower, false in none, a number from 0 to 1 in that
            share of them (0.5 in every other one). The fewer, the faster; `--dry_run true` says
            how few fit the GPU.
        attention: Attention implementation: sdpa, eager or flash_attention_2 (where installed;
            elsewhere sdpa, with a message).
        packing: Put the clips of a training micro-batch, and the prompts that are read to score and
            to write, behind each other in one row, without padding and without a mask; not with
            eager attention and not with Qwen3.5, which are padded.
        compile: Have torch.compile make kernels of all that the blocks of decoder and vision tower
            compute in training but attention (norms, rotations, MLPs), where it works; not of
            blocks with linear attention.
        trust_remote_code: Run Python code that comes with the backbone. The families that rbft
            knows need none.
        liger: Use the Liger kernels for norms and MLPs of decoder and vision tower, on a GPU where
            installed.
        cudnn_attention: Let torch take cuDNN's attention on a GPU. It plans anew for every length
            of clip and text, so it is off; to be turned on where it was measured to be faster.
        lora: Train LoRA adapters (rank, alpha, dropout; peft's use_dora, use_rslora, target_modules
            and layers_to_transform) on the language model's blocks instead of its weights; the
            vision tower must be frozen, the merger may train. null trains the weights.
        quantize: Store the frozen weights of the language model's blocks in 4 bits (nf4 of
            bitsandbytes); null stores them as trainer.precision says.
        answer_weight: Weight of the class's tokens in the loss, in stages that learn a rationale
            and the class (class_rationale, rationale_class): the rationale's forty tokens and more
            otherwise have nearly all of it. 1 weighs all tokens alike.
        costs: What the stages label_reward and rationale_class_reward take a wrong answer to cost,
            by class and answered class: {abnormal: {normal: 5}}. What is not named costs 1, a right
            answer nothing. null has every wrong answer cost 1, which maximises expected accuracy.
        answer: How a clip is classified: score compares the probabilities of all class words,
            generate lets the model write and parses it.
        max_new_tokens: Longest text that the model writes, in tokens. A rationale that is cut off
            there is trained without the end of the turn, and counted.
        self_consistency: Average the class probabilities over several drawn rationales (samples,
            temperature, top_p, top_k, seed), where the model writes one before it names the class;
            with early_stop no more are drawn than can change the class. null takes the one that is
            likeliest token by token.
        rationale_sampling: Draw the rationales of Stage 0 (temperature, top_p, top_k), several
            about each clip (samples), by a seed of their own (seed); null takes the likeliest
            token and writes one rationale a clip. All else that the model writes is greedy.
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
        gradient_checkpointing: bool | float,
        max_new_tokens: int,
        stage: str | None = None,
        weights: Path | None = None,
        attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa",
        packing: bool = True,
        trust_remote_code: bool = False,
        compile: bool = False,
        liger: bool = False,
        cudnn_attention: bool = False,
        lora: LoRA | None = None,
        quantize: Literal["4bit"] | None = None,
        answer_weight: float = 1.0,
        costs: dict[str, dict[str, float]] | None = None,
        answer: Literal["score", "generate"] = "score",
        self_consistency: SelfConsistency | None = None,
        rationale_sampling: RationaleSampling | None = None,
    ) -> None:
        check_ranges("model.", locals())
        loader = BackboneLoader(
            backbone=backbone,
            weights=weights,
            attention=available_attention(attention),
            gradient_checkpointing=gradient_checkpointing,
            lora=lora,
            quantize=quantize,
            merger=merger_learning_rate > 0,
            compile=compile,
            liger=liger,
            cudnn_attention=cudnn_attention,
            trust=trust_remote_code,
        )
        super().__init__(loader, max_new_tokens)
        self.config  # noqa: B018 (a backbone that is none is refused here)
        self.weights = weights
        self.card, self.stage, self.answer = card, find_stage(stage or "label"), answer
        self.learning_rates = {
            "language": learning_rate,
            "merger": merger_learning_rate,
            "vision": vision_learning_rate,
        }
        self.weight_decay, self.warmup_ratio = weight_decay, warmup_ratio
        self.answer_weight, self.costs = answer_weight, cost_matrix(costs, card.classes)
        self.packing = packing and attention != "eager" and available_packing(self.family)
        self.rationale_sampling, self.self_consistency = rationale_sampling, self_consistency
        self.val_metrics, self.test_metrics = _metrics(card), _metrics(card)
        self.monitor = StepMonitor()
        # Checkpoints hold the trainable parameters alone, see rbft/training/checkpoints.py.
        self.strict_loading = False

    @cached_property
    def trained_steps(self) -> int:
        """Optimiser steps that made the weights which the module starts from."""
        found = None if self.weights is None else read_provenance(self.weights)
        return (found or {}).get("steps", 0)

    @cached_property
    def collator(self) -> Collator:
        """Makes batches to train on, and tokenizes answers."""
        return Collator(
            self.processor,
            self.config,
            self.family,
            self.card,
            target_stage=self.stage,
            packing=self.packing,
            answer_weight=self.answer_weight,
        )

    @property
    def classifier(self) -> Classifier:
        """Classifies clips by the stage's question."""
        stage = self.stage.classifier
        return Classifier(self.collator, stage, self.generation, self.answer, self.self_consistency)

    def collators(self, *, rationale: bool = False) -> dict[str, Collator]:
        """What makes the batches of each of the data module's loaders; reads the processor.

        Args:
            rationale: Whether to ask for a rationale besides the class in prediction.
        """
        learn, asked, validated = self.collator, self.stage.classifier, self.stage.validated
        # In validation the stage's own prompt stands beside the one that asks for the class.
        beside = () if asked.parts == validated.parts else ((validated, self.card),)
        ask = replace(learn, target_stage=None, prompt_stage=asked)
        explained = ((STAGES["rationale"], self.card),) if rationale else ()
        return {
            "train": learn,
            "val": replace(learn, target_stage=validated, prompt_stage=asked, extra_prompts=beside),
            "test": ask,
            "predict": replace(ask, extra_prompts=explained),
        }

    def check_trainable(self) -> None:
        """Refuses settings that cannot be trained; loads nothing."""
        loader = self.loader
        check_adapters(loader.lora, loader.quantize, loader.weights, self.learning_rates)
        check_targets(
            loader.lora, loader.weights, self.family, self.config, lambda: loader.linear_layers
        )

    def setup(self, stage: str) -> None:
        """Refuses settings that cannot be trained."""
        if stage == "fit":
            self.check_trainable()
        super().setup(stage)

    def prepare(self, *, training: bool) -> None:
        """Freezes parts: the strategy must know the trainable parameters."""
        freeze(parameter_parts(self.backbone, self.family), self.learning_rates)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with one learning rate per part, and a cosine schedule with warm-up."""
        groups = parameter_groups(
            parameter_parts(self.backbone, self.family), self.learning_rates, self.weight_decay
        )
        # One kernel for all weights. With a gradient scaler it would unscale the gradients itself,
        # after they were clipped.
        optimizer = torch.optim.AdamW(groups, fused=not is_scaled(self.trainer))
        # Not trainer.estimated_stepping_batches: it builds the loader before a resumed run
        # knows where it stopped.
        steps = self.data.steps(self.trainer.world_size, self.trainer.max_epochs or 1)
        schedule = cosine_schedule(optimizer, steps, self.warmup_ratio)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def forward(self, batch: Batch) -> Float[Tensor, "answer vocab"]:
        """Logits at the positions that predict an answer token, clip after clip."""
        answer, targets = batch.answer, batch.targets
        assert answer is not None
        assert targets is not None
        with nullcontext() if answer.packed else flatten_hidden_states(self.backbone):
            logits = self.backbone(
                **forward_inputs(answer, self.backbone.config.text_config._attn_implementation),
                **self.vision(batch),
                **{VIDEO_INDICES: answer.video_indices, VIDEO_SOURCES: answer.video_sources},
                use_cache=False,
                logits_to_keep=targets.logit_indices,
            ).logits
        return logits[0]

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The batch's share of its global batch's loss, see `losses`."""
        return self.losses(batch)[0]

    def losses(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, "2 2"] | None]:
        """The batch's share of its global batch's loss; that of each part of the answer.

        The loss is the negative log-likelihood per answer token, or, in the stages of
        docs/beyond_the_paper.md that say so, the expected cost of the answers per clip. Where the
        answer has a rationale and a class, their losses are also given apart, see `part_losses`.
        """
        targets = batch.targets
        assert targets is not None
        weights = batch.weight[targets.clips]
        weights = weights if targets.weights is None else weights * targets.weights
        if self.stage.objective == "expected_cost":
            nll = token_nll(self(batch), targets.ids)
            assert targets.rows is not None
            costs = to_device(self.costs, nll.device)[batch.label]
            return expected_cost(nll, targets.rows, costs, batch.weight, batch.total), None
        if targets.of_class is None:
            return answer_nll(self(batch), targets.ids, weights, batch.total), None
        nll = token_nll(self(batch), targets.ids)
        seen = batch.weight[targets.clips]
        if targets.rows is not None and targets.weights is not None:  # by votes
            seen = seen * (targets.weights / self.answer_weight).where(targets.of_class, 1.0)
        parts = part_losses(nll.detach(), targets.of_class, seen)
        return (nll * weights).sum() / batch.total, parts

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes what is drawn at random a function of the place in training.

        So a run that resumes draws the same (LoRA's dropout) and no state must be saved.
        """
        place = (
            os.environ.get("PL_GLOBAL_SEED", 0),  # where seed_everything leaves it
            self.stage.name,
            self.trainer.current_epoch,
            batch_idx,
            self.trainer.global_rank,
        )
        name = hashlib.sha256(repr(place).encode()).digest()
        torch.manual_seed(int.from_bytes(name[:8], "big") >> 1)

    def training_step(self, batch: Batch) -> Float[Tensor, ""]:
        """One micro-batch."""
        loss, parts = self.losses(batch)
        replaced = [error for error in batch.errors if error]
        for error in replaced:
            log.warning("%s", error)
        self.monitor.add([clip.id for clip in batch.clips], loss, len(replaced), parts)
        # Lightning divides by the accumulation steps and averages over processes; the loss is
        # already a share of the whole.
        share = self.trainer.accumulate_grad_batches * self.trainer.world_size
        # A loss that is not finite can have finite gradients. Here it has none, and by the sum over
        # processes neither has any of them: the norm tells all.
        factor = torch.full_like(loss, share)
        return loss * factor.where(loss.detach().isfinite(), float("nan"))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, and gives the gradients' memory back.

        Lightning would hold them through the next forward pass, where the peak is.
        """
        super().optimizer_step(*args, **kwargs)
        self.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by norm and logs the global batch; a step that is not finite changes nothing.

        Raises:
            ValueError: If loss or gradients of the step before were not finite, on all processes.
        """
        self.monitor.check_last(self.trainer)
        norm = clip_gradients(self, gradient_clip_val)
        figures = self.monitor.close(self.trainer, norm).figures
        norm, loss, replaced = figures[:FIRST_SIGNAL]
        if not is_scaled(self.trainer):  # a gradient scaler passes over such a step by itself
            # The optimiser's kernel reads it on the device, long before the host learns of it.
            optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.log_dict({"train/loss": loss, "train/grad_norm": norm, "train/replaced": replaced})
        if len(parts := figures[FIRST_PART:]):
            self.log_dict({f"train/loss_{n}": v for n, v in zip(PARTS, parts, strict=True)})

    def on_train_epoch_end(self) -> None:
        """Looks at the last step."""
        self.monitor.check_last(self.trainer)

    def validation_step(self, batch: Batch) -> dict[str, Classified | ClassifiedEach]:
        """The stage's loss, and the classification of the stage; each clip is read once."""
        with naming_clips(batch):
            return self._validate(batch)

    def _validate(self, batch: Batch) -> dict[str, Classified | ClassifiedEach]:
        assert batch.prompt is not None
        assert batch.targets is not None
        prompts = [batch.prompt, *batch.extra_prompts]
        reads = prefill(self.backbone, prompts, self.vision(batch), batch.shared)
        read = None
        if self.card.several is None:
            read = next(reads)
            classified = self.classifier.classify(self.backbone, batch, read.copy())
        else:
            classified = self.classifier.classify_each(self.backbone, batch, reads)
        _count(self.val_metrics, classified, batch)
        # A clip that cannot be decoded counts as a wrong answer, but has no likelihood.
        seen = [float(not error) for error in batch.errors]
        weight = batch.weight * to_device(seen, batch.weight.device)
        if self.collator.learns_class and batch.labels is not None:
            assert classified.scores is not None
            # The scores are those of yes and no; a class that the clip has is a yes.
            scores = classified.scores.gather(2, 1 - batch.labels[..., None]).sum(1)
        elif self.collator.learns_class and classified.scores is not None:
            scores = classified.scores.gather(1, batch.label[:, None])
        else:
            # What is learnt answers the extra prompt, or else the one that asks for the class.
            answers = [[answer] for answer in batch.targets.answers]
            prompt = next(reads, read)
            assert prompt is not None
            scores = score_own_candidates(self.backbone, prompt, answers)
        finite = scores[:, 0].isfinite()
        if classified.scores is not None:
            finite = finite & classified.scores.isfinite().flatten(1).all(-1)
        self._val_finite.append(([clip.id for clip in batch.clips], finite))
        nll = -(scores[:, 0] * weight).sum()
        self._val_loss += torch.stack([nll, weight[batch.targets.clips].sum()])
        return {"classified": classified}

    def on_validation_start(self) -> None:
        """Looks at the last step, and gathers the weights, where they are sharded."""
        self.monitor.check_last(self.trainer)
        super().on_validation_start()

    def on_validation_epoch_start(self) -> None:
        """Starts the sums of the loss and its tokens, and the list of what is finite."""
        self._val_finite: list[tuple[list[str], Tensor]] = []
        self._val_loss = torch.zeros(2, dtype=torch.float32, device=self.device)

    def on_validation_epoch_end(self) -> None:
        """Logs the loss per token and the metrics, exact over processes.

        Raises:
            ValueError: If scores of a clip are not finite, on all processes. They are looked at
                here, where the host waits for the device anyway.
        """
        mine = [
            name
            for names, finite in self._val_finite
            for name, fine in zip(names, finite.tolist(), strict=True)
            if not fine
        ]
        if broken := all_gather_objects(self.trainer.world_size, mine):
            if not self.trainer.is_global_zero:
                raise SystemExit(2)  # the first process speaks for all
            raise ValueError(not_finite(broken))
        nll, tokens = self.trainer.strategy.reduce(self._val_loss, reduce_op="sum")
        self.log("val/loss", nll / tokens)
        self._log_metrics("val", self.val_metrics)
        self.val_metrics.reset()

    def classify(self, batch: Batch) -> Classified | ClassifiedEach:
        """The class of each clip, or its classes where it may have several.

        And a rationale where the batch asks for one besides.

        Raises:
            NotFiniteError: If scores are not finite.
        """
        assert batch.prompt is not None
        prompts = [batch.prompt, *batch.extra_prompts]
        reads = prefill(self.backbone, prompts, self.vision(batch), batch.shared)
        if self.card.several is None:
            classified = self.classifier.classify(self.backbone, batch, next(reads))
        else:
            classified = self.classifier.classify_each(self.backbone, batch, reads)
        classified.check_finite()
        if len(prompts) == self.stage.classifier.questions(self.card):
            return classified
        written = greedy_decode(self.backbone, next(reads), self.generation)
        texts = decode_texts(written, self.processor.tokenizer, self.generation)
        return replace(classified, rationales=texts)

    def test_step(self, batch: Batch) -> dict[str, Classified | ClassifiedEach]:
        """The classification of the batch."""
        with naming_clips(batch):
            classified = self.classify(batch)
        _count(self.test_metrics, classified, batch)
        return {"classified": classified}

    def on_test_epoch_end(self) -> None:
        """Logs the metrics, exact over processes, where the stage's curves end."""
        self._log_metrics(self.data.feed.scored_split, self.test_metrics)
        self.log("step", float(self.trained_steps))  # Lightning takes it for the place on the axis

    def _log_metrics(self, split: str, metrics: ClassificationMetrics | MultiLabelMetrics) -> None:
        values = metrics.compute().items()
        # A class without a clip has no F1.
        self.log_dict({f"{split}/{n}": value for n, value in values if not math.isnan(value)})

    def predict_step(self, batch: Batch) -> Classified | ClassifiedEach:
        """The classification of the batch."""
        with naming_clips(batch):
            return self.classify(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes the stage: a Lightning checkpoint resumes the same stage only."""
        self.monitor.check_last(self.trainer)
        checkpoint["rbft_stage"] = self.stage.name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another stage."""
        check_stage(checkpoint, self.stage.name)


def _metrics(card: Card) -> ClassificationMetrics | MultiLabelMetrics:
    """What counts the answers about clips of a card."""
    if card.several is not None:
        return MultiLabelMetrics(card.classes)
    return ClassificationMetrics(card.classes, card.levels)


def _count(
    metrics: ClassificationMetrics | MultiLabelMetrics,
    classified: Classified | ClassifiedEach,
    batch: Batch,
) -> None:
    """Adds a batch's clips to the metrics."""
    counted = batch.weight > 0
    if isinstance(classified, Classified):
        assert isinstance(metrics, ClassificationMetrics)
        shares = classified.probabilities
        metrics.update(classified.prediction, batch.label, counted, shares)
        return
    assert isinstance(metrics, MultiLabelMetrics)
    assert batch.labels is not None
    metrics.update(classified.probabilities, classified.answered, batch.labels, counted)


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
