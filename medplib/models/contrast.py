"""Image-text heads for pretraining the vision encoder: whole image with caption, and patch with name.

The first is CLIP's symmetric cross-entropy (arXiv 2103.00020); the second scores every patch against names with a sigmoid
(SigLIP's loss, arXiv 2303.15343, at the patches), which makes patch features say what is where. The text tower is the language model.
"""

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
        self.patch = nn.Linear(vision_width, width)
        self.text = nn.Linear(language_width, width)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.patch_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.patch_bias = nn.Parameter(torch.tensor(-3.0))

    def image_text_loss(self, features: torch.Tensor, text: torch.Tensor, duplicate: torch.Tensor) -> torch.Tensor:
        """Features (I, g, g, Dv), text states (I, D), `duplicate` (I, I) bool = same caption (never a negative) -> scalar."""
        image = functional.normalize(self.image(features.mean(dim=(1, 2))), dim=-1)
        words = functional.normalize(self.text(text), dim=-1)
        logits = self.scale.exp().clamp(max=100) * image @ words.T
        off = duplicate & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(off, -1e4)
        target = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2

    def patch_logits(self, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Features (N, g, g, Dv) with one name state each (N, D) -> logits (N, g, g) that the patch shows the named thing."""
        patches = functional.normalize(self.patch(features), dim=-1)
        words = functional.normalize(self.text(text), dim=-1)
        return self.patch_scale.exp().clamp(max=100) * torch.einsum("nxyd,nd->nxy", patches, words) + self.patch_bias
