"""Attention that reads a mask only where one is needed: the first tokens of a sequence see all that is before them, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from medplib.models.precision import full_precision

NAME = "medplib"
"""Under which transformers knows `attention`."""

SHORTEST = 128
"""Fewer tokens without a mask are left to the mask: two calls and putting them together cost what is saved (docs/experiments.md,
2026-11-26)."""


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    unmasked: int = 0,
    **others: Any,  # what transformers hands to every attention function, and some models besides
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention, the first `unmasked` queries plainly causal.

    That is half of the arithmetic there, by kernels that are faster than those that read a mask.

    Args:
        module: the attention layer.
        query: (B, H, L, C).
        key: (B, Hk, K, C).
        value: (B, Hk, K, C).
        attention_mask: (B, 1, L, K) bool; for the first `unmasked` queries it says what causality says.
        unmasked: 0 where nothing is that simple (padding on the left, cached keys).
        others: see `transformers.integrations.sdpa_attention`.

    Returns:
        (B, L, H, C), and None for the weights.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        with full_precision(query.device):  # the way back takes torch three times as long in bfloat16 on a CPU as in float32
            out, _ = attention(module, query.float(), key.float(), value.float(), attention_mask, unmasked, **others)
        return out.to(query.dtype), None
    if unmasked < SHORTEST:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    if unmasked == query.shape[2]:
        return sdpa_attention_forward(module, query, key, value, None, **others)
    return _in_two(module, query, key, value, attention_mask, unmasked, **others), None


@torch.compiler.disable  # compiled, torch 2.13 takes the length of the first cut for that of all (tests/unit/models/test_attention.py)
def _in_two(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, unmasked: int, **others: Any
) -> torch.Tensor:
    before, _ = sdpa_attention_forward(module, query[:, :, :unmasked], key[:, :, :unmasked], value[:, :, :unmasked], None, **others)
    behind, _ = sdpa_attention_forward(module, query[:, :, unmasked:], key, value, mask[:, :, unmasked:], **others)
    return torch.cat([before, behind], dim=1)


AttentionInterface.register(NAME, attention)
