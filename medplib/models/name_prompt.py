"""Prompts from names: a table of words that compose, for training the grounder before a language model prompts it.

A prompted decoder does not become selective when it is trained through a language model from the start; it does when names prompt it first,
and the language model's prompts can then be fitted to these.
"""

from __future__ import annotations

import torch
from torch import nn


class NamePromptEncoder(nn.Module):
    """Scaled sum of a name's word embeddings, a residual MLP, layer normalisation.

    Args:
        vocab_size: number of token ids.
        width: C, width of a prompt.
    """

    def __init__(self, *, vocab_size: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, name_ids: torch.Tensor) -> torch.Tensor:
        """(N, Ln) int64 token ids, right-padded with -1 -> (N, C). A name without words gives the same prompt as any other such name."""
        known = name_ids >= 0
        words = self.words(name_ids.clamp(min=0)) * known[..., None]
        # The root keeps the variance of the sum equal to that of one word, whatever the number of words.
        name = words.sum(dim=1) / known.sum(dim=1, keepdim=True).clamp(min=1).sqrt().to(words.dtype)
        return self.norm(name + self.mlp(name))
