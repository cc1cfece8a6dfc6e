"""Vision features -> image tokens of the language model (LLaVA-1.5 projector), optionally pooled to fewer tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class ProjectorConfig:
    """`kind`: "linear", or "mlp" = Linear, GELU, Linear. `pool`: average every pool x pool cells of the grid into one token first."""

    kind: Literal["linear", "mlp"] = "mlp"
    pool: int = 1


class Projector(nn.Module):
    """Features (I, g, g, Dv) -> tokens (I, P, D) with P = (g / pool)^2."""

    def __init__(self, *, config: ProjectorConfig, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.pool = config.pool
        self.layers = (
            nn.Linear(vision_width, language_width)
            if config.kind == "linear"
            else nn.Sequential(nn.Linear(vision_width, language_width), nn.GELU(), nn.Linear(language_width, language_width))
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if self.pool > 1:
            features = functional.avg_pool2d(features.permute(0, 3, 1, 2), self.pool).permute(0, 2, 3, 1)
        return self.layers(features.flatten(1, 2))
