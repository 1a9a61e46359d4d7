"""The base model in training: the library's own modules, run so that one core learns in minutes."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tools.miniature_base.base_model import new_model, token_id
from tools.miniature_base.eye import CELL_CLASSES, FRAME_HEADS, PAIR_HEADS, Eye
from tools.miniature_base.lessons import GRID, IGNORED, Turns


class Student(nn.Module):
    """The model in training, with the linear heads of the eye's lessons, dropped afterwards."""

    def __init__(self, seed: int):
        super().__init__()
        self.model: Any = new_model(seed)
        self.heads = nn.Linear(self.model.config.text_config.hidden_size, CELL_CLASSES)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    def see(self, patches: Float[Tensor, "pairs 36 1176"]) -> Float[Tensor, "pairs 9 hidden"]:
        """The vision tower's tokens; equal to the library's, all frame pairs at one go."""
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
        from transformers.vision_utils import get_vision_position_ids

        tower = self.model.model.visual
        # A convolution whose stride is its kernel is a matrix product.
        states = patches @ tower.patch_embed.proj.weight.flatten(1).T
        axes = get_vision_position_ids(torch.tensor([[1, *GRID[1:]]]), 2)
        cos, sin = tower.rotary_pos_emb(states, axes)
        for block in tower.blocks:
            attention = block.attn
            mixed = attention.qkv(block.norm1(states)).unflatten(-1, (3, attention.num_heads, -1))
            query, key, value = mixed.unbind(2)
            query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
            seen = nn.functional.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            )
            states = states + attention.proj(seen.transpose(1, 2).flatten(2))
            states = states + block.mlp(block.norm2(states))
        return tower.merger(states).unflatten(0, (len(patches), -1))

    def eye_loss(self, tokens: Float[Tensor, "pairs 9 hidden"], eye: Eye) -> Float[Tensor, ""]:
        """Mean cross-entropy of the linear heads; sprites stand in the lowest row of cells only."""
        scores = self.heads(tokens)
        split = (*FRAME_HEADS * 2, *PAIR_HEADS)
        per_head = scores.split(split, dim=-1)
        frames = len(FRAME_HEADS)
        losses = []
        for index, head in enumerate(per_head):
            if index < 2 * frames:
                head, labels = head[:, 6:], eye.cells[:, index // frames, :, index % frames]
            else:
                labels = eye.pair[:, index - 2 * frames, None].expand(-1, 9)
            losses.append(nn.functional.cross_entropy(head.flatten(0, 1), labels.flatten()))
        return torch.stack(losses).mean()

    def talk_loss(self, tokens: Float[Tensor, "pairs 9 hidden"], turns: Turns) -> Float[Tensor, ""]:
        """Cross-entropy per answer token."""
        embeddings = self.model.get_input_embeddings()(turns.input_ids)
        is_video = turns.input_ids == token_id("<|video_pad|>")
        embeddings = embeddings.masked_scatter(is_video[..., None], tokens)
        states = self.model.model.language_model(
            inputs_embeds=embeddings, attention_mask=turns.mask, position_ids=turns.positions
        ).last_hidden_state
        targets = turns.labels[:, 1:]
        answers = targets != IGNORED
        logits = self.model.lm_head(states[:, :-1][answers])
        return nn.functional.cross_entropy(logits, targets[answers])
