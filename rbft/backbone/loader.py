"""How a module's backbone is read: which weights, which adapters, which kernels."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rbft.backbone.adapters import LoRA, add_adapters, find_base, is_adapter, weights_dtype
from rbft.backbone.family import Family
from rbft.backbone.kernels import apply_kernels, set_cudnn_attention
from rbft.backbone.loading import (
    check_prompt_rule,
    generation_settings,
    load_config,
    load_model,
    load_processor,
)
from rbft.backbone.targets import linear_layers


@dataclass(frozen=True)
class BackboneLoader:
    """What a stage starts from and how it is read. Weights are read by `load` alone.

    Attributes:
        backbone: A `from_pretrained` folder or hub id.
        weights: Weights folder, whole or an adapter, to read instead of the backbone's own.
        attention: Attention implementation of transformers: sdpa, eager or flash_attention_2.
        gradient_checkpointing: Share of the blocks whose activations are recomputed.
        lora: Adapters to train; None trains the weights themselves.
        quantize: How the frozen weights are stored, `4bit`; None stores them as they are.
        merger: Whether the merger trains.
        compile: Compile the blocks for training.
        liger: Use the Liger kernels.
        cudnn_attention: Let torch take cuDNN's attention.
        trust: Run code that comes with the backbone.
    """

    backbone: str
    weights: Path | None = None
    attention: str = "sdpa"
    gradient_checkpointing: bool | float = False
    lora: LoRA | None = None
    quantize: str | None = None
    merger: bool = True
    compile: bool = False
    liger: bool = False
    cudnn_attention: bool = False
    trust: bool = False

    @property
    def source(self) -> str:
        """Folder or hub id of what is read: `weights` where given, else the backbone."""
        return str(self.weights or self.backbone)

    @cached_property
    def base(self) -> str:
        """Folder or hub id of the whole weights, on which an adapter stands."""
        return find_base(self.backbone, self.weights)

    @cached_property
    def _config_and_family(self) -> tuple[Any, Family]:
        given = self.weights is not None and self.base == str(self.weights)
        setting = "model.weights" if given else "model.backbone"
        config, family = load_config(self.base, self.trust, setting)
        if self.weights is not None:
            check_prompt_rule(self.weights, family)
        return config, family

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self._config_and_family[0]

    @property
    def family(self) -> Family:
        """The backbone's family."""
        return self._config_and_family[1]

    @cached_property
    def linear_layers(self) -> list[str]:
        """Names of the backbone's linear layers; makes it on the meta device."""
        return linear_layers(self.config, self.trust)

    @cached_property
    def processor(self) -> Any:
        """Tokenizer, chat template and video processor; read at first use."""
        return load_processor(self.source, self.trust)

    def generation(self, max_new_tokens: int) -> dict[str, Any]:
        """How the model writes, see `generation_settings`; reads the processor, but no weights."""
        return generation_settings(self.base, self.processor, max_new_tokens, self.trust)

    def dtype(self, precision: str, *, sharded: bool, training: bool) -> torch.dtype:
        """Precision in which weights are loaded, see `weights_dtype`."""
        return weights_dtype(
            self.lora, self.quantize, self.weights, precision, sharded=sharded, training=training
        )

    def load(
        self,
        precision: str,
        device: torch.device,
        *,
        sharded: bool = False,
        empty: bool = False,
        training: bool = True,
    ) -> Any:
        """The model, in training mode; nothing is frozen yet.

        Args:
            precision: The Trainer's.
            device: Where it will run.
            sharded: Whether FSDP2 will shard the weights.
            empty: Read no weights, for a process that another one sends them to.
            training: Whether a stage is trained, instead of scoring or writing.
        """
        model = load_model(
            self.base,
            self.attention,
            self.gradient_checkpointing,
            empty=empty,
            dtype=self.dtype(precision, sharded=sharded, training=training),
            four_bit=device if self.quantize else None,
            trust=self.trust,
        )
        adapter = self.weights if is_adapter(self.weights) else None
        if adapter or (self.lora and training):  # new ones change nothing and cost time
            add_adapters(
                model,
                self.lora if training else None,
                adapter,
                merger=self.merger,
                read=not empty,
                autocast=precision.endswith("-mixed"),
            )
        compiled = self.compile and training  # generation grows by a token at a time
        set_cudnn_attention(cudnn=self.cudnn_attention)
        apply_kernels(model, compile=compiled, liger=self.liger, device=device)
        return model
