"""Faster ways to compute the same: each says so where it is not to be had, and is left out."""

from functools import cache
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rbft.backbone.blocks import compile_blocks, stacks
from rbft.runtime.console import print_rank_zero

CASTS = "cast_input_dtype_enabled"  # whether a layer of peft casts its input itself


class PatchProjection(nn.Conv3d):
    """The vision tower's patch embedding as the matrix product that it is.

    Its convolution is given single patches, each as large as its kernel. As convolutions these are
    slow, up to seconds in bfloat16 on some GPUs. The weights keep their name and shape.
    """

    @classmethod
    def of(cls, convolution: nn.Conv3d) -> "PatchProjection":
        """The same convolution, with the same weights."""
        assert convolution.stride == convolution.kernel_size
        with torch.device("meta"):
            made = cls(
                convolution.in_channels,
                convolution.out_channels,
                convolution.kernel_size,  # type: ignore[arg-type]
                stride=convolution.stride,  # type: ignore[arg-type]
                bias=convolution.bias is not None,
            )
        made.weight, made.bias = convolution.weight, convolution.bias
        return made.train(convolution.training)

    def forward(
        self, input: Float[Tensor, "patches channels frames height width"]
    ) -> Float[Tensor, "patches out 1 1 1"]:
        """The product of each patch with the weights."""
        rows = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return rows[:, :, None, None, None]


def multiply_patches(model: Any) -> None:
    """Has a backbone embed patches by a matrix product, in place; see `PatchProjection`."""
    embed = model.model.visual.patch_embed
    embed.proj = PatchProjection.of(embed.proj)


def apply_kernels(model: Any, *, compile: bool, liger: bool, device: torch.device) -> None:
    """Changes how a backbone computes, in place, as far as this machine can.

    Args:
        model: The backbone.
        compile: Have torch.compile make kernels of what the blocks of decoder and vision tower
            compute in training, but for attention.
        liger: Take the Liger kernels for the norms and MLPs of decoder and vision tower.
        device: Where it will run.
    """
    if liger and has_liger(device):
        import liger_kernel.transformers as kernels  # type: ignore[import-not-found]

        apply = getattr(kernels, f"apply_liger_kernel_to_{model.config.model_type}")
        # The head runs on answer tokens alone, which costs less than Liger's loss over all.
        apply(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
        for block in stacks(model)[1]:
            if hasattr(block.mlp, "gate_proj"):  # Liger leaves the tower's MLPs as they are
                block.mlp.forward = MethodType(kernels.LigerSwiGLUMLP.forward, block.mlp)
    if compile and can_compile(device):
        decoder, tower = stacks(model)
        compile_blocks(decoder)
        # transformers' other attentions of the tower are a call for each window, whose number
        # differs from clip to clip: it would be compiled anew for each.
        if "flash" in model.config.vision_config._attn_implementation:
            compile_blocks(tower)


def leave_casts_to_autocast(model: Any) -> None:
    """Has adapters take their inputs in the precision that these come in, in place.

    peft casts each to the adapter's 32 bits, and autocast casts it back: the same bits, for a pass
    over memory each way. On weights in 4 bits peft heeds autocast by itself; old versions of it
    always cast.

    Args:
        model: The backbone with adapters; it must run under autocast.
    """
    for module in model.modules():
        # As peft.helpers.disable_input_dtype_casting does it for a while.
        if hasattr(module, CASTS) and not hasattr(module.base_layer.weight, "quant_state"):
            setattr(module, CASTS, False)


def choose_attention(*, cudnn: bool) -> None:
    """Says whether torch may take cuDNN's attention, for the whole process.

    Of several kernels torch takes cuDNN's first on the newest GPUs. It plans anew for every length
    that it has not seen, tens to hundreds of milliseconds each, and clips and texts differ in
    length; faults of its backward pass are open. So torch's flash kernels run unless it is asked
    for.

    Args:
        cudnn: Let torch choose cuDNN's kernel.
    """
    torch.backends.cuda.enable_cudnn_sdp(cudnn)


@cache
def has_liger(device: torch.device) -> bool:
    """Whether Liger's kernels run here; says why not."""
    if device.type != "cuda":
        print_rank_zero("model.liger: the Liger kernels need a GPU; going on without.")
        return False
    if find_spec("liger_kernel") is None:
        print_rank_zero(
            "model.liger: liger-kernel is not installed (pip install liger-kernel); going on "
            "without."
        )
        return False
    return True


@cache
def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here, by trying it; says why not."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except (RuntimeError, OSError) as error:  # no compiler, no Triton, ...
        reason = str(error).strip().splitlines()[0].rstrip(".")
        print_rank_zero(
            f"model.compile: torch.compile does not work here ({reason}); going on without."
        )
        return False
    return True
