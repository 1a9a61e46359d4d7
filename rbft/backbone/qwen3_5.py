"""Qwen3.5: the prompt of Qwen3-VL, and linear attention in three of four decoder blocks.

A block of linear attention (a gated delta rule behind a short convolution) sums up what it has read
in a state of fixed size. That state flows from token to token: clips in one row would enter each
other's, and so would padding that stands between tokens. Its features enter the decoder once,
before the first block. The chat template has the assistant think before it answers, unless it is
told not to.
"""

from rbft.backbone.qwen2_vl import Qwen2VL
from rbft.backbone.qwen3_vl import Qwen3VL

# Set within the template: other software need not be told.
NO_THINKING = "{%- set enable_thinking = false -%}"


class Qwen3_5(Qwen3VL):  # noqa: N801 (the architecture's own name)
    """See `rbft.backbone.family.Family`."""

    model_type = "qwen3_5"
    targets = (
        r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj"
        r"|linear_attn\.(in_proj_(qkv|z|b|a)|out_proj)|mlp\.(gate|up|down)_proj)"
    )
    packs = False

    part = Qwen2VL.part
    mergers = Qwen2VL.mergers
    features = Qwen2VL.features
    feature_states = Qwen2VL.feature_states
    merge = Qwen2VL.merge

    def chat_template(self, template: str) -> str:
        """That of Qwen3-VL, and the answer follows an empty thought, as in rbft's own prompts."""
        made = super().chat_template(template)
        return made if made.startswith(NO_THINKING) else NO_THINKING + made
