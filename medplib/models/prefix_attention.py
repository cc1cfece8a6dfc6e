"""Attention over sequences that begin with a shared prefix: the prefix is plainly causal, only what stands behind it needs a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "medplib_prefix"
"""Under which transformers knows `prefix_attention`."""

SHORTEST = 64
"""Prefixes below are left to the mask: two calls and putting them together cost what is saved there (docs/experiments.md, 2026-11-26)."""


def prefix_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    prefix: int = 0,
    **others: Any,  # what transformers hands to every attention function, and some models besides
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention, the first `prefix` queries without a mask: half of the arithmetic there, and the kernels for it are
    faster than those that read a mask.

    Args:
        module: the attention layer.
        query: (B, H, L, C).
        key: (B, Hk, K, C).
        value: (B, Hk, K, C).
        attention_mask: (B, 1, L, K) bool. In its first `prefix` rows every row of the batch sees what is not behind it, nothing else.
        prefix: queries that need no mask; 0 for all that are not that simple (padding on the left, cached keys).
        others: see `transformers.integrations.sdpa_attention`.

    Returns:
        (B, L, H, C), and None for the weights.
    """
    if prefix < SHORTEST:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    before, _ = sdpa_attention_forward(module, query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], None, **others)
    if prefix == query.shape[2]:
        return before, None
    behind, _ = sdpa_attention_forward(module, query[:, :, prefix:], key, value, attention_mask[:, :, prefix:], **others)
    return torch.cat([before, behind], dim=1), None


AttentionInterface.register(NAME, prefix_attention)
