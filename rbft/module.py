"""RBFTModule: one Lightning module for both stages, the bare backbone and every ablation.

The `stage` says what is asked and what should be answered (`rbft.stages`); the loss is the same
function for all of them.
"""

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from rbft.backbone.adapters import (
    LoRA,
    add_adapters,
    check_adapters,
    find_base,
    is_adapter,
    weights_dtype,
)
from rbft.backbone.attention import forward_inputs, tower_inputs
from rbft.backbone.embeddings import PLACES, flatten_hidden_states
from rbft.backbone.kernels import apply_kernels, set_cudnn_attention
from rbft.backbone.loading import (
    available_attention,
    generation_settings,
    load_config,
    load_model,
    load_processor,
    parameter_parts,
)
from rbft.backbone.vision_features import embed_features, tower_digest, tower_features
from rbft.batch import Batch, Transferable
from rbft.card import Card
from rbft.collator import Collator
from rbft.data.base import VideoDataModule
from rbft.inference.generation import (
    NotFiniteError,
    PrefilledPrompt,
    extend,
    find_class,
    greedy_decode,
    prefill,
    score_candidates,
    score_own_candidates,
)
from rbft.inference.metrics import ClassificationMetrics
from rbft.runtime.fault_tolerance import signals
from rbft.runtime.ranges import check_ranges
from rbft.runtime.transfer import send
from rbft.stages import CLASS, RATIONALE, STAGES, find_stage
from rbft.training.fsdp2 import (
    FSDP2,
    all_gather_objects,
    clip_gradients,
    is_sharded,
    reshard,
    shard,
    unshard,
)
from rbft.training.loss import token_nll
from rbft.training.optim import cosine_schedule, freeze, parameter_groups
from rbft.training.step_monitor import Step, StepMonitor, signal_of

log = logging.getLogger(__name__)
NAMED = 10  # clips that a message names


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


@dataclass(frozen=True)
class Classified(Transferable):
    """What the model says about a batch of clips.

    Attributes:
        prediction: Class index; the number of classes stands for an answer that is none of them.
        scores: Log-probability of each whole class answer; None where the answer was written.
        texts: What the model wrote, "" where it only scored.
        rationales: The rationales, where they were asked for besides.
        tied: Whether several classes share the highest score; the first of them on the card is the
            prediction.
    """

    prediction: Int[Tensor, " clips"]
    scores: Float[Tensor, "clips classes"] | None
    texts: list[str]
    rationales: list[str] | None = None
    tied: Bool[Tensor, " clips"] | None = None

    @classmethod
    def by_scores(cls, scores: Float[Tensor, "clips classes"], texts: list[str]) -> "Classified":
        """The likeliest class of each clip; of several as likely, the first one on the card."""
        likeliest = scores == scores.amax(-1, keepdim=True)
        # argmax promises an order of equal values on no device that is not the processor.
        places = torch.arange(scores.shape[1], device=scores.device)
        first = places.where(likeliest, scores.shape[1]).amin(-1)
        return cls(first, scores, texts, tied=likeliest.sum(-1) > 1)

    def check_finite(self) -> None:
        """Reads the scores, for which it waits where they are on a device.

        Raises:
            NotFiniteError: If some are not finite. No class is the likeliest then.
        """
        if self.scores is None:
            return
        finite = self.scores.isfinite().all(-1).tolist()
        if broken := [clip for clip, fine in enumerate(finite) if not fine]:
            raise NotFiniteError(broken)

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
        gradient_checkpointing: Recompute activations in the backward pass to save memory: true in
            every block of decoder and vision tower, false in none, a number from 0 to 1 in that
            share of them (0.5 in every other one). The fewer, the faster; `--dry_run true` says
            how few fit the GPU.
        attention: Attention implementation: sdpa, eager or flash_attention_2 (where installed;
            elsewhere sdpa, with a message).
        packing: Put the clips of a training micro-batch, and the prompts that are read to score and
            to write, behind each other in one row, without padding and without a mask; not with
            eager attention, which pads.
        compile: Have torch.compile make kernels of all that the blocks of decoder and vision tower
            compute in training but attention (norms, rotations, MLPs), where it works.
        trust_remote_code: Run Python code that comes with the backbone. Qwen2-VL and Qwen2.5-VL
            need none.
        liger: Use the Liger kernels for norms and MLPs of decoder and vision tower, on a GPU where
            installed.
        cudnn_attention: Let torch take cuDNN's attention on a GPU. It plans anew for every length
            of clip and text, so it is off; to be turned on where it was measured to be faster.
        lora: Train LoRA adapters (rank, alpha, dropout) on the language model's blocks instead of
            its weights; the vision tower must be frozen, the merger may train. null trains the
            weights.
        quantize: Store the frozen weights of the language model's blocks in 4 bits (nf4 of
            bitsandbytes); null stores them as trainer.precision says.
        answer: How a clip is classified: score compares the probabilities of all class words,
            generate lets the model write and parses it.
        max_new_tokens: Longest text that the model writes, in tokens. A rationale that is cut off
            there is trained without the end of the turn, and counted.
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
        answer: Literal["score", "generate"] = "score",
    ) -> None:
        check_ranges("model.", locals())
        super().__init__()
        self.source, self.base = str(weights or backbone), find_base(backbone, weights)
        self.weights, self.lora, self.quantize = weights, lora, quantize
        self.card, self.stage = card, find_stage(stage or "label")
        self.learning_rates = {
            "language": learning_rate,
            "merger": merger_learning_rate,
            "vision": vision_learning_rate,
        }
        self.weight_decay, self.warmup_ratio = weight_decay, warmup_ratio
        self.gradient_checkpointing = gradient_checkpointing
        self.attention = available_attention(attention)
        self.packing = packing and attention != "eager"
        self.faster = {"compile": compile, "liger": liger}
        self.cudnn_attention = cudnn_attention
        self.answer, self.max_new_tokens = answer, max_new_tokens
        self.config, self.family = load_config(self.base, trust_remote_code)
        self.trust = trust_remote_code
        self.backbone: Any = None
        self.processor: Any = None
        self._generation: dict[str, Any] | None = None
        self.val_metrics = ClassificationMetrics(card.classes)
        self.test_metrics = ClassificationMetrics(card.classes)
        self.matrices: set[str] = set()  # names of the parameters with several axes
        self.trained_steps = 0  # optimiser steps that made the weights which are scored
        self.explain = False  # whether predict asks for a rationale besides the class
        self.cards = [card]  # Stage 0 puts the rationale prompt of each
        self.strict_loading = (
            False  # checkpoints hold what trains, see rbft/training/checkpoints.py
        )
        self.stopping = 0  # the signal that has asked the run to end after this step
        self.watch = StepMonitor()

    @property
    def data(self) -> VideoDataModule:
        """The data module of the run."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, VideoDataModule)
        return data

    @property
    def generation(self) -> dict[str, Any]:
        """How the model writes, see `generation_settings`; reads the processor, but no weights."""
        if self._generation is None:
            if self.processor is None:
                self.processor = load_processor(self.source, self.trust)
            self._generation = generation_settings(
                self.base, self.processor, self.max_new_tokens, self.trust
            )
        return self._generation

    def texts(self, written: Sequence[Sequence[int]]) -> list[str]:
        """What the model wrote, without what ended it."""
        whole = [ids[:-1] if self.ended(ids) else ids for ids in written]
        return self.processor.tokenizer.batch_decode(whole, skip_special_tokens=True)

    def ended(self, written: Sequence[int]) -> bool:
        """Whether the model ended an answer itself; otherwise the limit of tokens did."""
        return bool(written) and written[-1] in self.generation["eos_token_id"]

    def check_trainable(self) -> None:
        """Refuses settings that cannot be trained; loads nothing."""
        check_adapters(self.lora, self.quantize, self.weights, self.learning_rates)

    def to(self, *args: Any, **settings: Any) -> "RBFTModule":
        """Moves and converts as torch does, but leaves rotary frequencies in 32 bits.

        Lightning converts all that is in the module for bf16-true and 16-true. Frequencies in
        bfloat16 are off by up to 0.4 %: the angle of the 500th token by half a radian.
        """
        before = {name: held for name, held in self.named_buffers() if name.endswith("inv_freq")}
        super().to(*args, **settings)
        for name, held in before.items():
            owner, _, attribute = name.rpartition(".")
            if (now := self.get_buffer(name)).dtype != held.dtype:
                setattr(self.get_submodule(owner), attribute, held.to(now.device))
        return self

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
        if stage == "fit":
            self.check_trainable()
        if self.quantize and isinstance(self.trainer.strategy, FSDP2):
            raise ValueError(
                f"model.quantize is {self.quantize}, but trainer.strategy "
                f"{type(self.trainer.strategy).__name__} shares out whole weights only. Set "
                "model.quantize to null, or trainer.strategy to auto."
            )
        # Lightning would halve the precision of all that is in a batch, weights and counts too; the
        # vision tower casts its patches itself.
        self.trainer.precision_plugin.convert_input = _as_it_is
        if self.processor is None:
            self.processor = load_processor(self.source, self.trust)
        classifier = self.stage.classifier
        asked = self.stage if stage == "predict" else classifier
        ask = Collator(
            self.processor, self.config, self.family, self.card, ask=asked, packing=self.packing
        )
        learn = replace(ask, learn=self.stage, ask=None)
        besides = () if classifier is self.stage else ((self.stage, self.card),)
        both = replace(learn, ask=classifier, besides=besides)
        rationale, predict = STAGES["rationale"], ask
        if self.explain:
            predict = replace(ask, besides=((rationale, self.card),))
        elif asked is rationale:
            first, *others = self.cards
            predict = replace(ask, card=first, besides=tuple((asked, card) for card in others))
        self.collator = learn
        self.data.collators = {"train": learn, "val": both, "test": ask, "predict": predict}

    def configure_model(self) -> None:
        """Loads the weights; Lightning calls this where the strategy wants them."""
        if self.backbone is None:
            strategy = None if self._trainer is None else self.trainer.strategy
            sharded = strategy is not None and is_sharded(strategy)
            self.backbone = self._load(sharded)
            # Before the strategy wraps the model: it must know what takes part in a step.
            freeze(parameter_parts(self.backbone, self.family), self.learning_rates)
            named = self.backbone.named_parameters()
            self.matrices = {name for name, parameter in named if parameter.ndim > 1}
            if self._trainer is not None and self.data.feature_cache.max_bytes:
                self.data.tower = tower_digest(
                    self.backbone, self.family, self.processor, str(self.trainer.precision)
                )
            if isinstance(strategy, FSDP2):
                half = self.trainer.precision == "bf16-mixed"
                shard(self.backbone, self.family.blocks(self.backbone), strategy, half=half)

    def _load(self, sharded: bool) -> Any:
        """The backbone with what it starts from."""
        trainer = self._trainer
        empty = sharded and not self.trainer.is_global_zero
        adapter = self.weights if is_adapter(self.weights) else None
        precision = "32-true" if trainer is None else str(trainer.precision)
        device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
        training = trainer is None or trainer.state.fn == TrainerFn.FITTING
        backbone = load_model(
            self.base,
            self.attention,
            self.gradient_checkpointing,
            empty=empty,
            dtype=weights_dtype(
                self.lora,
                self.quantize,
                self.weights,
                precision,
                sharded=sharded,
                training=training,
            ),
            four_bit=device if self.quantize else None,
            trust=self.trust,
        )
        if adapter or (self.lora and training):  # new ones change nothing and cost time
            merger = self.learning_rates["merger"] > 0
            lora = self.lora if training else None
            add_adapters(
                backbone,
                lora,
                adapter,
                merger=merger,
                read=not empty,
                autocast=precision.endswith("-mixed"),
            )
        compiled = self.faster["compile"] and training  # generation grows by a token at a time
        set_cudnn_attention(cudnn=self.cudnn_attention)
        apply_kernels(backbone, compile=compiled, liger=self.faster["liger"], device=device)
        return backbone

    def vision(self, batch: Batch) -> dict[str, Any]:
        """Arguments of the backbone's forward that show it the batch's clips."""
        if batch.kept is None:
            vision = self.backbone.config.vision_config
            tower = tower_inputs(vision._attn_implementation, batch.tower, batch.weight.device)
            return {**batch.video, **tower}
        features = tower_features(self.backbone, self.family, batch, self.data.feature_cache)
        return embed_features(self.backbone, features, self.config.vision_config.spatial_merge_size)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with one learning rate per part, and a cosine schedule with warm-up."""
        groups = parameter_groups(
            parameter_parts(self.backbone, self.family),
            self.learning_rates,
            self.weight_decay,
            self.matrices,
        )
        # One kernel for all weights. With a gradient scaler it would unscale the gradients itself,
        # after they were clipped.
        optimizer = torch.optim.AdamW(groups, fused=self.trainer.precision != "16-mixed")
        # Not trainer.estimated_stepping_batches: it builds the loader before a resumed run
        # knows where it stopped.
        steps = self.data.steps(self.trainer.world_size, self.trainer.max_epochs or 1)
        schedule = cosine_schedule(optimizer, steps, self.warmup_ratio)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, batch: Batch) -> Float[Tensor, "answer vocab"]:
        """Logits at the positions that predict an answer token, clip after clip."""
        answer, targets = batch.answer, batch.targets
        assert answer is not None
        assert targets is not None
        with nullcontext() if answer.packed else flatten_hidden_states(self.backbone):
            logits = self.backbone(
                **forward_inputs(answer, self.backbone.config.text_config._attn_implementation),
                **self.vision(batch),
                **{PLACES: answer.places},
                use_cache=False,
                logits_to_keep=targets.places,
            ).logits
        return logits[0]

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The batch's share of its global batch's negative log-likelihood per answer token."""
        assert batch.targets is not None
        weights = batch.weight[batch.targets.clips]
        return answer_nll(self(batch), batch.targets.ids, weights, batch.total)

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
        loss = self.loss(batch)
        replaced = [error for error in batch.errors if error]
        for error in replaced:
            log.warning("%s", error)
        self.watch.add(batch.index, loss, len(replaced))
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
        self.look_back()
        norm = clip_gradients(self, gradient_clip_val)
        world = self.trainer.world_size
        step = self.watch.close(self.trainer.global_step + 1, norm, world)
        norm, loss, replaced, *_ = step.figures
        if not self._scaled:  # a gradient scaler passes over such a step by itself
            # The optimiser's kernel reads it on the device, long before the host learns of it.
            optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.log_dict({"train/loss": loss, "train/grad_norm": norm, "data/replaced": replaced})
        if world == 1:
            self.stopping = signals.received or 0

    @property
    def _scaled(self) -> bool:
        return self.trainer.precision == "16-mixed"

    def look_back(self) -> None:
        """Ends the run if the last step was not finite, or notes a signal that came meanwhile.

        Called before the next step is taken, and before anything is saved or scored.

        Raises:
            ValueError: If loss or gradients were not finite, on all processes.
        """
        step = self.watch.last()
        if step is None:
            return
        norm, loss, *_ = figures = step.read()
        # Gradients that overflow in half precision are the scaler's business.
        if not math.isfinite(loss if self._scaled else norm):
            self._refuse(step, norm)
        self.stopping = self.stopping or signal_of(figures)

    def _refuse(self, step: Step, norm: float) -> None:
        mine = [
            (name, not math.isfinite(loss))
            for indices, loss in step.batches
            for name in self.data.ids("train", indices.tolist())
        ]
        found = all_gather_objects(self.trainer.world_size, mine)
        guilty = [name for name, broken in found if broken]
        what = "gradient norm" if not guilty else "loss"
        names = ", ".join(dict.fromkeys(guilty or [name for name, _ in found]))
        if not self.trainer.is_global_zero:
            raise SystemExit(2)  # the first process speaks for all
        raise ValueError(
            f"The {what} of step {step.number} is not finite (gradient norm {norm:g}), with the "
            f"clips {names}. The step was not taken and the last checkpoint is untouched. Look at "
            "these clips, lower model.learning_rate or set trainer.precision to 32-true; then "
            "start again with --restart true or under another name."
        )

    def on_train_epoch_end(self) -> None:
        """Looks back at the last step."""
        self.look_back()

    def classify(self, batch: Batch, read: PrefilledPrompt | None = None) -> Classified:
        """The class of each clip in the batch; a clip that cannot be decoded has no answer.

        Args:
            batch: The clips and what they are asked.
            read: The prompts as the backbone has read them; None if it has not.
        """
        if read is None:
            assert batch.prompt is not None
            (read,) = prefill(self.backbone, [batch.prompt], self.vision(batch))
        classified = self._classify(batch, read)
        lost = send([bool(error) for error in batch.errors], self.device)
        prediction = classified.prediction.masked_fill(lost, len(self.card.classes))
        return replace(classified, prediction=prediction)

    @torch.no_grad()
    def _classify(self, batch: Batch, read: PrefilledPrompt) -> Classified:
        stage = self.stage.classifier
        words = self.collator.class_answers(stage)
        texts = [""] * len(batch)
        elicited = stage.parts[0] == RATIONALE
        if self.answer == "generate" or elicited:
            written = greedy_decode(self.backbone, read.copy(), self.generation)
            texts = self.texts(written)
            # Whatever ended the turn, class words are trained with the tokenizer's end.
            end = self.processor.tokenizer.eos_token_id
            turns = [[*ids[:-1], end] if self.ended(ids) else ids for ids in written]
            found = [find_class(ids, words, at_end=elicited) for ids in turns]
            if self.answer == "generate":
                classes = [index for index, _ in found]
                if stage.parts == (CLASS,):
                    classes = [self.card.parse(text) for text in texts]
                classes = [len(words) if index is None else index for index in classes]
                return Classified(send(classes, self.device), None, texts)
            # The class is scored after the model's own rationale; where no class followed it,
            # after the rationale as it stands before a class in training.
            rationales = [
                self.collator.part_ids(text.strip(), last=False) if index is None else rest
                for (index, rest), text in zip(found, texts, strict=True)
            ]
            read = extend(self.backbone, read, rationales)
        scores = score_candidates(self.backbone, read, words)
        return Classified.by_scores(scores, texts)

    def validation_step(self, batch: Batch) -> dict[str, Classified]:
        """The stage's loss, and the classification of the stage; each clip is read once."""
        with _naming(batch):
            return self._validate(batch)

    def _validate(self, batch: Batch) -> dict[str, Classified]:
        assert batch.prompt is not None
        assert batch.targets is not None
        prompts = [batch.prompt, *batch.besides]
        reads = prefill(self.backbone, prompts, self.vision(batch), batch.shared)
        read = next(reads)
        classified = self.classify(batch, read.copy())
        self.val_metrics.update(classified.prediction, batch.label, batch.weight > 0)
        # A clip that cannot be decoded counts as a wrong answer, but has no likelihood.
        seen = [float(not error) for error in batch.errors]
        weight = batch.weight * send(seen, batch.weight.device)
        if self.collator.learns_class and classified.scores is not None:
            scores = classified.scores.gather(1, batch.label[:, None])
        else:
            # What is learnt answers the prompt besides, or else the one that asks for the class.
            answers = [[answer] for answer in batch.targets.answers]
            scores = score_own_candidates(self.backbone, next(reads, read), answers)
        finite = scores[:, 0].isfinite()
        if classified.scores is not None:
            finite = finite & classified.scores.isfinite().all(-1)
        self._val_finite.append((batch.index, finite))
        nll = -(scores[:, 0] * weight).sum()
        self._val_loss += torch.stack([nll, weight[batch.targets.clips].sum()])
        return {"classified": classified}

    def on_validation_start(self) -> None:
        """Looks back at the last step; has all weights at hand, where they are in shares."""
        self.look_back()
        unshard(self.backbone)

    def on_validation_end(self) -> None:
        """Goes back to shares."""
        reshard(self.backbone)

    def on_test_start(self) -> None:
        """Has all weights at hand, where they are in shares."""
        unshard(self.backbone)

    def on_predict_start(self) -> None:
        """Has all weights at hand, where they are in shares."""
        unshard(self.backbone)

    def on_validation_epoch_start(self) -> None:
        """Starts the sums of the loss and its tokens, and the list of what is finite."""
        self._val_finite: list[tuple[Tensor, Tensor]] = []
        self._val_loss = torch.zeros(2, dtype=torch.float32, device=self.device)

    def on_validation_epoch_end(self) -> None:
        """Logs the loss per token and the metrics, exact over processes.

        Raises:
            ValueError: If scores of a clip are not finite, on all processes. They are looked at
                here, where the host waits for the device anyway.
        """
        mine = [
            name
            for index, finite in self._val_finite
            for name in self.data.ids("val", index[~finite].tolist())
        ]
        if broken := all_gather_objects(self.trainer.world_size, mine):
            if not self.trainer.is_global_zero:
                raise SystemExit(2)  # the first process speaks for all
            raise ValueError(_not_finite(broken))
        nll, tokens = self.trainer.strategy.reduce(self._val_loss, reduce_op="sum")
        self.log("val/loss", nll / tokens)
        self._log_metrics("val", self.val_metrics)
        self.val_metrics.reset()

    def test_step(self, batch: Batch) -> dict[str, Classified]:
        """The classification of the batch."""
        with _naming(batch):
            classified = self.classify(batch)
            classified.check_finite()
        self.test_metrics.update(classified.prediction, batch.label, batch.weight > 0)
        return {"classified": classified}

    def on_test_epoch_end(self) -> None:
        """Logs the metrics, exact over processes, where the stage's curves end."""
        self._log_metrics(self.data.scored_split, self.test_metrics)
        self.log("step", float(self.trained_steps))  # Lightning takes it for the place on the axis

    def _log_metrics(self, split: str, metrics: ClassificationMetrics) -> None:
        values = metrics.compute().items()
        # A class without a clip has no F1.
        self.log_dict({f"{split}/{n}": value for n, value in values if not math.isnan(value)})

    def predict_step(self, batch: Batch) -> Classified | list[list[list[int]]]:
        """Class probabilities, or in the rationale stage (Stage 0) the rationales' token ids.

        These are lists of prompts, of their clips, of tokens.
        """
        with _naming(batch):
            return self._predict(batch)

    def _predict(self, batch: Batch) -> Classified | list[list[list[int]]]:
        assert batch.prompt is not None
        prompts = [batch.prompt, *batch.besides]
        reads = prefill(self.backbone, prompts, self.vision(batch), batch.shared)
        if self.stage.classifier is not self.stage:
            return [greedy_decode(self.backbone, read, self.generation) for read in reads]
        classified = self.classify(batch, next(reads))
        classified.check_finite()
        if not batch.besides:
            return classified
        written = greedy_decode(self.backbone, next(reads), self.generation)
        return replace(classified, rationales=self.texts(written))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes the stage: a Lightning checkpoint resumes the same stage only."""
        self.look_back()
        checkpoint["rbft_stage"] = self.stage.name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another stage."""
        check_stage(checkpoint, self.stage.name)


@contextmanager
def _naming(batch: Batch) -> Iterator[None]:
    """Names the clips of a batch of test, val or predict whose scores are not finite.

    Raises:
        ValueError: Instead of `NotFiniteError`. The results of the batch are not written then.
    """
    try:
        yield
    except NotFiniteError as error:
        names = [batch.clips[clip].id for clip in error.clips]
        raise ValueError(_not_finite(names)) from error


def _not_finite(clips: Sequence[str]) -> str:
    names = list(dict.fromkeys(clips))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"The model's scores are not finite for the clip{'s' * (len(names) > 1)} "
        f"{', '.join(names[:NAMED])}{more}: no class and no text follows from them, and none was "
        "written. Weights that are not finite do this, numbers that half precision cannot hold "
        "(set trainer.precision to 32-true to see) and faults of an attention kernel (set "
        "model.attention to eager to see)."
    )


def _as_it_is(data: Any) -> Any:
    return data


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
