"""What values the numeric settings may have, checked before anything is loaded or written."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Allowed values of a number.

    Attributes:
        least: The smallest.
        most: The largest; infinity sets no limit, and is itself no allowed value.
        above: Whether `least` itself is not allowed.
        below: Whether `most` itself is not allowed.
        also: A value outside of the range that is allowed as well.
        note: What a value does, or what to do instead; the end of the message.
    """

    least: int | float
    most: int | float = math.inf
    above: bool = False
    below: bool = False
    also: int | float | None = None
    note: str = ""

    def holds(self, value: int | float) -> bool:
        """Whether the value is allowed; infinity and nan never are."""
        if value == self.also:
            return True
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return math.isfinite(value) and low and high

    def __str__(self) -> str:
        if self.most == math.inf:
            text = f"above {self.least:g}" if self.above else f"{self.least:g} or more"
        elif self.above:
            text = f"above {self.least:g} and at most {self.most:g}"
        elif self.below:
            text = f"{self.least:g} or more and below {self.most:g}"
        else:
            text = f"from {self.least:.10g} to {self.most:.10g}"
        return text if self.also is None else f"{text}, or {self.also:g}"


COUNT, NOT_NEGATIVE, SHARE, SEED = Range(1), Range(0), Range(0, 1), Range(0, 2**32 - 1)
# What OpenAI's API allows.
LOGPROBS = Range(0, 20, note="0 asks for none")
TO_SERVER = "0 takes the likeliest token, null leaves it to the server"
GB = "GB; 0 keeps nothing"
NO_BOUND, NO_LIMIT, ALL = "null sets no bound", "null sets no limit", "null allows all"
RANGES = {
    "checkpoint_every": Range(1, note="it counts optimiser steps"),
    "seeds": COUNT,
    "first_seed": SEED,
    "patience": Range(1, note="it counts validations; null goes through all epochs"),
    "cpu_threads": Range(1, note="null leaves it to torch"),
    "seed_everything": SEED,
    "gpu_gb": Range(0, above=True, note="it is the GPU's memory in GiB"),
    "every": Range(0, above=True, note="it is seconds of video time; null takes whole videos"),
    "window": Range(0, above=True, note="it is seconds of video time; null is as long as every"),
    "port": Range(1, 65535, note="it is a port of this machine"),
    "max_mb": Range(0, above=True, note="it is megabytes"),
    "repeats": COUNT,
    "masked_share": Range(0, 1, below=True, note="0 masks nothing"),
    "pictures": NOT_NEGATIVE,
    "seed": SEED,
    "texts": Range(1, note="null takes all"),
    "objects": Range(1, note="it is the most boxes of a frame"),
    "threshold": SHARE,
    "text_threshold": SHARE,
    "temperature": Range(0, note=TO_SERVER),
    "top_logprobs": LOGPROBS,
    "data.fps": Range(0, above=True, note="it is frames per second of video time"),
    "data.image_fps": Range(0, above=True, note="it is images per second"),
    "data.num_frames": Range(2, note="null samples by data.fps"),
    "data.min_pixels": NOT_NEGATIVE,
    "data.max_pixels": Range(784, note="a token shows 28 x 28 pixels"),
    "data.min_frames": NOT_NEGATIVE,
    "data.max_frames": Range(2, note="a token shows two frames"),
    "data.batch_size": COUNT,
    "data.global_batch_size": COUNT,
    "data.eval_batch_size": COUNT,
    "data.num_workers": Range(0, note="0 decodes in the process that trains"),
    "data.val_fraction": Range(0, 1, below=True, note="0 trains on all training clips"),
    "data.rationale_ratio": SHARE,
    "data.min_coverage": SHARE,
    "data.rationale_rules.min_words": Range(0, note=NO_BOUND),
    "data.rationale_rules.max_words": Range(1, note=NO_BOUND),
    "data.rationale_rules.min_tokens": Range(0, note=NO_BOUND),
    "data.rationale_rules.max_tokens": Range(1, note=NO_BOUND),
    "data.rationale_rules.max_repetition": Range(0, 1, note=ALL),
    "data.rationale_rules.repetition_ngram": COUNT,
    "data.rationale_rules.min_script_share": Range(0, 1, note=ALL),
    "data.rationale_rules.max_similarity": Range(0, 1, above=True, note=ALL),
    "data.rationale_rules.similarity_ngram": COUNT,
    "data.label_share": SHARE,
    "data.vague_share": SHARE,
    "data.masking.repeats": COUNT,
    "data.masking.seed": SEED,
    "data.masking.repeat": Range(0, note="draws are counted from 0; null scores all"),
    "data.frame_cache_gb": Range(0, note=GB),
    "data.feature_cache_gb": Range(0, note=GB),
    "data.seed": SEED,
    "data.split_seed": SEED,
    "data.test_fraction": SHARE,
    "data.train_size": COUNT,
    "data.val_size": NOT_NEGATIVE,
    "data.test_size": COUNT,
    "data.clip_seed": SEED,
    "model.learning_rate": Range(0, note="0 freezes the language model"),
    "model.merger_learning_rate": Range(0, note="0 freezes the merger"),
    "model.vision_learning_rate": Range(0, note="0 freezes the vision tower"),
    "model.weight_decay": NOT_NEGATIVE,
    "model.warmup_ratio": SHARE,
    "model.gradient_checkpointing": Range(0, 1, note="true is all blocks, false none"),
    "model.max_new_tokens": COUNT,
    "model.answer_weight": Range(0, above=True, note="1 weighs all tokens alike"),
    "model.self_consistency.samples": COUNT,
    "model.self_consistency.temperature": Range(
        0.01, note="model.self_consistency null takes the likeliest token"
    ),
    "model.self_consistency.top_p": Range(0, 1, above=True, note="1 draws from all tokens"),
    "model.self_consistency.top_k": Range(0, note="0 draws from all tokens"),
    "model.self_consistency.seed": SEED,
    "model.rationale_sampling.temperature": Range(
        0.01, note="model.rationale_sampling null takes the likeliest token"
    ),
    "model.rationale_sampling.top_p": Range(0, 1, above=True, note="1 draws from all tokens"),
    "model.rationale_sampling.top_k": Range(0, note="0 draws from all tokens"),
    "model.rationale_sampling.samples": COUNT,
    "model.rationale_sampling.seed": SEED,
    "model.lora.rank": COUNT,
    "model.lora.alpha": COUNT,
    "model.lora.dropout": Range(0, 1, below=True),
    "endpoint.side": COUNT,
    "endpoint.temperature": Range(0, note=TO_SERVER),
    "endpoint.top_logprobs": LOGPROBS,
    "endpoint.concurrency": COUNT,
    "endpoint.attempts": COUNT,
    "endpoint.timeout": Range(0, above=True, note="it is seconds"),
    "endpoint.requests_per_minute": Range(1, note=NO_LIMIT),
    "endpoint.tokens_per_minute": Range(1, note=NO_LIMIT),
    "endpoint.max_requests": Range(0, note=NO_LIMIT),
    "endpoint.max_tokens": Range(0, note=NO_LIMIT),
    "endpoint.max_money": Range(0, note=NO_LIMIT),
    "decision.miss": Range(0, above=True, note="only its ratio to decision.false_alarm counts"),
    "decision.false_alarm": Range(0, above=True, note="only its ratio to decision.miss counts"),
    "decision.recall": Range(0, 1, above=True, note="1 finds all, whatever the false alarms"),
    "trainer.devices": Range(1, also=-1, note="-1 takes all that are present"),
    "trainer.num_nodes": COUNT,
    "trainer.max_epochs": Range(1, note="rbft trains no stage for 0 epochs, nor without an end"),
    "trainer.min_epochs": NOT_NEGATIVE,
    "trainer.max_steps": Range(1, also=-1, note="-1 sets no limit beside trainer.max_epochs"),
    "trainer.min_steps": NOT_NEGATIVE,
    "trainer.limit_train_batches": Range(0, above=True, note="null takes all batches"),
    "trainer.limit_val_batches": NOT_NEGATIVE,
    "trainer.limit_test_batches": NOT_NEGATIVE,
    "trainer.limit_predict_batches": NOT_NEGATIVE,
    "trainer.overfit_batches": NOT_NEGATIVE,
    "trainer.fast_dev_run": NOT_NEGATIVE,
    "trainer.val_check_interval": Range(0, above=True),
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.num_sanity_val_steps": Range(0, also=-1, note="-1 takes all batches"),
    "trainer.log_every_n_steps": Range(1, note="it counts optimiser steps"),
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.gradient_clip_val": Range(0, note="0 and null do not clip"),
    "trainer.reload_dataloaders_every_n_epochs": NOT_NEGATIVE,
}


def check_ranges(prefix: str, values: Mapping[str, Any]) -> None:
    """Checks all numbers among some settings that have a range.

    Args:
        prefix: What stands before their names in `RANGES`: "data." or "".
        values: Value by name. What is no number (null, "auto", true) and what has no range is
            somebody else's to check.

    Raises:
        ValueError: Naming the first setting that is out of range, its value and what is allowed.
    """
    for name, value in values.items():
        allowed = RANGES.get(f"{prefix}{name}")
        if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
            value = int(value)  # the Trainer takes "2" for 2 devices
        if allowed is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not allowed.holds(value):
            note = f"; {allowed.note}" if allowed.note else ""
            raise ValueError(f"{prefix}{name} ({value:.10g}) must be {allowed}{note}.")
