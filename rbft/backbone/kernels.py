"""Optional faster kernels; each prints a message and is skipped where it is not available."""

from functools import cache
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rbft.backbone.blocks import compile_blocks, stacks
from rbft.runtime.console import print_rank_zero

CASTS = "cast_input_dtype_enabled"  # attribute of a peft layer: whether it casts its input


class PatchProjection(nn.Conv3d):
    """The patch embedding of the vision tower as a matrix product instead of a convolution.

    The convolution gets single patches, each as large as its kernel. Such convolutions are slow, up
    to seconds in bfloat16 on some GPUs. The weights keep their name and shape.
    """

    @classmethod
    def of(cls, convolution: nn.Conv3d) -> "PatchProjection":
        """A projection with the weights of a convolution."""
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
        """Multiplies each patch with the weights."""
        rows = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return rows[:, :, None, None, None]


def use_linear_patch_embedding(model: Any) -> None:
    """Replaces the patch embedding of a backbone by a `PatchProjection`, in place."""
    embed = model.model.visual.patch_embed
    embed.proj = PatchProjection.of(embed.proj)


def apply_kernels(model: Any, *, compile: bool, liger: bool, device: torch.device) -> None:
    """Applies faster kernels to a backbone in place, if they run on this machine.

    Args:
        model: The backbone.
        compile: Compile the blocks of decoder and vision tower with torch.compile for training,
            except their attention, and blocks of linear attention.
        liger: Use the Liger kernels for the norms and MLPs of decoder and vision tower.
        device: The device that the backbone will run on.
    """
    if liger and has_liger(device):
        import liger_kernel.transformers as kernels  # type: ignore[import-not-found]

        kind = model.config.model_type
        apply = getattr(kernels, f"apply_liger_kernel_to_{kind}", None)
        if apply is None:
            raise ValueError(
                f"model.liger: this version of liger-kernel has no kernels for a {kind}. Set "
                "model.liger to false, or install a newer liger-kernel."
            )
        # The head runs on answer tokens alone, which costs less than Liger's loss over all.
        apply(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
        for block in stacks(model)[1]:
            if hasattr(block.mlp, "gate_proj"):  # Liger does not replace the tower's MLPs
                block.mlp.forward = MethodType(kernels.LigerSwiGLUMLP.forward, block.mlp)
    if compile and can_compile(device):
        decoder, tower = stacks(model)
        # Linear attention is a loop over chunks: each number of them would be compiled again.
        compile_blocks([block for block in decoder if not hasattr(block, "linear_attn")])
        # Other attention in transformers is a call for each window; their number differs between
        # clips, and each number would be compiled again.
        if "flash" in model.config.vision_config._attn_implementation:
            compile_blocks(tower)


def leave_casts_to_autocast(model: Any) -> None:
    """Has adapters not cast their inputs, in place.

    peft casts them to the 32 bits of the adapter, and autocast casts them back: the same bits after
    two passes over memory. With weights in 4 bits, peft leaves the casts to autocast by itself. Old
    versions of peft always cast. DoRA keeps the casts: the dtype of its input is that in which it
    takes the norms of the weights.

    Args:
        model: The backbone with adapters; it must run under autocast.
    """
    for module in model.modules():
        # As peft.helpers.disable_input_dtype_casting does, but not only in a context.
        if not hasattr(module, CASTS) or any(module.use_dora.values()):
            continue
        if not hasattr(module.base_layer.weight, "quant_state"):
            setattr(module, CASTS, False)


def set_cudnn_attention(*, cudnn: bool) -> None:
    """Enables or disables cuDNN's attention for the whole process.

    On the newest GPUs torch prefers cuDNN's kernel. It makes a plan for every new sequence length,
    which takes tens to hundreds of milliseconds, and clips and texts differ in length. Defects of
    its backward pass are known and open. So it is off by default, and torch uses its flash kernels.

    Args:
        cudnn: Whether torch may use cuDNN's kernel.
    """
    torch.backends.cuda.enable_cudnn_sdp(cudnn)


@cache
def has_liger(device: torch.device) -> bool:
    """Whether Liger's kernels run here; prints the reason if not."""
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
    """Whether torch.compile works here, by a trial; prints the reason if not."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except (RuntimeError, OSError) as error:  # no compiler, no Triton, ...
        reason = str(error).strip().splitlines()[0].rstrip(".")
        print_rank_zero(
            f"model.compile: torch.compile does not work here ({reason}); going on without."
        )
        return False
    return True
