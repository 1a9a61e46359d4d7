"""Stands for the package flash-attn, which needs a GPU: the same functions, one clip at a time."""

from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

from rbft.backbone.attention import FLASH
from rbft.module import RBFTModule
from tests.examples import module


def flash(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, softmax_scale: float
) -> Tensor:
    """`flash_attn_func`: rows of equal length, causal from the end."""
    new, seen = query.shape[1], key.shape[1]
    mask = torch.ones(new, seen, dtype=torch.bool, device=query.device)
    return nn.functional.scaled_dot_product_attention(
        *(heads.transpose(1, 2) for heads in (query, key, value)),
        attn_mask=mask.tril(seen - new) if causal else mask,
        scale=softmax_scale,
        enable_gqa=True,
    ).transpose(1, 2)


class Varlen:
    """`flash_attn_varlen_func`.

    Args:
        reads: Whether to read the bounds, as the kernel does on the device; otherwise results have
            the right shapes and inputs, but are wrong.
    """

    def __init__(self, *, reads: bool) -> None:
        self.reads, self.calls = reads, 0

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        *,
        causal: bool,
        softmax_scale: float,
    ) -> Tensor:
        self.calls += 1
        assert isinstance(max_seqlen_q, int)
        assert type(cu_seqlens_q) is type(cu_seqlens_k) is Tensor  # no stand-in for the host's
        assert cu_seqlens_q.device == query.device
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        if not self.reads:
            return query + key.sum() + value.sum()
        assert max_seqlen_q == int(cu_seqlens_q.diff().max())
        assert max_seqlen_k == int(cu_seqlens_k.diff().max())
        lengths = [bounds.diff().tolist() for bounds in (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)]
        parts = (rows.split(own) for rows, own in zip((query, key, value), lengths, strict=True))
        return torch.cat(
            [
                flash(*(p[None] for p in one), causal=causal, softmax_scale=softmax_scale)[0]
                for one in zip(*parts, strict=True)
            ]
        )


def with_flash_attention(
    folder: Any, monkeypatch: pytest.MonkeyPatch, *, reads: bool = True, **settings: Any
) -> tuple[RBFTModule, Varlen]:
    """A module whose text model and tower call the two above through transformers' own code."""
    import transformers
    from transformers import modeling_flash_attention_utils as utils

    if Version(transformers.__version__) < Version("5.23"):
        pytest.skip(
            "older transformers import the package in another way, which is not stood in for"
        )
    varlen = Varlen(reads=reads)
    made = module(folder, attention="eager", **settings)
    for part in (made.backbone.config.text_config, made.backbone.config.vision_config):
        part._attn_implementation = FLASH
    process: Any = utils._lazy_define_process_function(varlen.__call__)
    found = ((flash, varlen, None, utils._pad_input, utils._unpad_input), (process, dict))
    monkeypatch.setattr(utils, "lazy_import_flash_attention", lambda *_, **__: found)
    return made, varlen
