"""The region encoder: a region pointed at by the person -> one token (arXiv 2412.09278, region prompts of every shape become a mask)."""

from __future__ import annotations

import torch
from torch import nn


class RegionEncoder(nn.Module):
    """One linear layer over vision features, averaged over the cells that the region covers, weighted by how much it covers.

    The published encoder averages up to 512 sampled points; the weighted mean is its expectation without the noise. Its points are the
    corners of the cells on a grid whose ends are the centres of the outermost cells, a little beside the cells: `legacy` reproduces that.
    """

    def __init__(self, *, vision_width: int, language_width: int, legacy: bool = False) -> None:
        super().__init__()
        self.adapter = nn.Linear(vision_width, language_width)
        self.legacy = legacy

    def forward(self, features: torch.Tensor, region_masks: torch.Tensor, region_image: torch.Tensor) -> torch.Tensor:
        """Features (I, g, g, Dv), coverage (R, g, g), image index (R,) -> tokens (R, D)."""
        weights = region_masks.to(features.dtype)
        if self.legacy:
            shifted = _corner_interpolation(weights.shape[-1]).to(weights)
            weights = shifted.T @ weights @ shifted
        weights = weights.flatten(1)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
        pooled = torch.einsum("rp,rpd->rd", weights, features[region_image].flatten(1, 2))
        return self.adapter(pooled)


def _corner_interpolation(grid: int) -> torch.Tensor:
    """(g, g): row i says how the value at i (g - 1) / g is mixed from the cells."""
    at = torch.arange(grid, dtype=torch.float64) * (grid - 1) / grid
    return (1 - (at[:, None] - torch.arange(grid)).abs()).clamp(min=0)
