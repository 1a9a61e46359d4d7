"""Lightning's FSDPStrategy where there is no GPU."""

from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLVisionBlock,
)


class FSDPOnCPU(FSDPStrategy):
    """Says which device, which Lightning leaves to torch, which knows no processor."""

    def _setup_model(self, model: Any) -> Any:
        return FullyShardedDataParallel(
            module=model,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=torch.device("cpu"),
            auto_wrap_policy=ModuleWrapPolicy({Qwen2_5_VLDecoderLayer, Qwen2_5_VLVisionBlock}),
            **self.kwargs,
        )
