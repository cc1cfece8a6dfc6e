"""Image-text heads for pretraining the vision side: CLIP's symmetric cross-entropy (arXiv 2103.00020), the language model as text tower."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class ContrastHead(nn.Module):
    """Projects both modalities into one space of `width` dimensions."""

    def __init__(self, *, vision_width: int, language_width: int, width: int) -> None:
        super().__init__()
        self.image = nn.Linear(vision_width, width)
        self.text = nn.Linear(language_width, width)
        self.scale = nn.Parameter(torch.full((1,), math.log(10.0)))  # DeepSpeed takes no scalars

    def forward(self, features: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (I, g, g, Dv), text states (I, D) -> images as long as the scale says and texts of length one, both (I, width)."""
        image = functional.normalize(self.image(features.mean(dim=(1, 2))), dim=-1)
        return self.scale.exp().clamp(max=100) * image, functional.normalize(self.text(text), dim=-1)


def image_text_loss(image: torch.Tensor, words: torch.Tensor, duplicate: torch.Tensor) -> torch.Tensor:
    """Images and texts (I, width) of a ContrastHead, `duplicate` (I, I) bool = same caption (never a negative) -> scalar."""
    logits = image @ words.T
    off = duplicate & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(off, -1e4)
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
