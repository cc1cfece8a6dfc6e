"""Vision features -> image tokens of the language model (LLaVA-1.5 projector), optionally pooled to fewer tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from medplib.models.evidence import MapTokens


@dataclass(frozen=True)
class ProjectorConfig:
    """`kind`: "linear", or "mlp" = Linear, GELU, Linear. `pool`: average every pool x pool cells of the grid into one token first."""

    kind: Literal["linear", "mlp"] = "mlp"
    pool: int = 1


class Projector(nn.Module):
    """Features (I, g, g, Dv) -> tokens (I, P, D): (g / pool)^2 of the grid, then one for each of the `maps` last channels."""

    def __init__(self, *, config: ProjectorConfig, vision_width: int, language_width: int, maps: int = 0) -> None:
        super().__init__()
        self.pool = config.pool
        self.maps = MapTokens(maps=maps, width=language_width) if maps else None
        self.layers = (
            nn.Linear(vision_width, language_width)
            if config.kind == "linear"
            else nn.Sequential(nn.Linear(vision_width, language_width), nn.GELU(), nn.Linear(language_width, language_width))
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        channels_first = features.permute(0, 3, 1, 2)
        pooled = functional.avg_pool2d(channels_first, self.pool) if self.pool > 1 else channels_first
        tokens = self.layers(pooled.flatten(2).transpose(1, 2))
        if self.maps is None:
            return tokens
        return torch.cat([tokens, self.maps(channels_first[:, -len(self.maps.which) :])], dim=1)
