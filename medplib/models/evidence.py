"""What the grounder sees, told to a language model from scratch: as one token per known name, and at the words that name something.

A language model of a few million weights does not learn in minutes to look up in image tokens what a question names; it does when the word
itself carries the evidence (docs/experiments.md). Pretrained encoders and language models need none of this and leave it out. Evidence maps
are bounded mask logits t = tanh(logit / 4), see `medplib.models.vision`.

Letters: I images, B rows, L tokens, K names, g grid side, V vision channels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from medplib.models.precision import full_precision

GRID = 8
STRONGEST = 6
"""Cells: about the area of the smallest thing worth asking for on a grid of 16 x 16."""
FACTS = GRID**2 + 5
SMALLEST_AREA = 0.002
"""Share of the image; added before the logarithm."""


def map_facts(maps_IKgg: torch.Tensor) -> torch.Tensor:
    """Evidence maps (I, K, g, g) -> (I, K, FACTS): covered share on a coarse grid, certainty, size and place.

    Size is a logarithm, because what is said about sizes compares ratios; place is the centre of mass in -1..1.
    """
    side = maps_IKgg.shape[-1]
    up, down = (1 + maps_IKgg).square(), (1 - maps_IKgg).square()
    covered = up / (up + down)  # sigmoid(logit), recovered from tanh(logit / 4)
    strongest = maps_IKgg.flatten(2).topk(min(STRONGEST, side**2), dim=2).values
    area = covered.mean(dim=(2, 3))
    axis = torch.linspace(-1, 1, side, device=maps_IKgg.device, dtype=maps_IKgg.dtype)
    mass = covered.sum(dim=(2, 3)).clamp(min=1e-3)
    down_IK = (covered.sum(dim=3) * axis).sum(dim=2) / mass
    right_IK = (covered.sum(dim=2) * axis).sum(dim=2) / mass
    size = ((area + SMALLEST_AREA).log() + 4) / 2
    scalars = torch.stack([strongest[..., 0], strongest.mean(dim=2), size, down_IK, right_IK], dim=2)
    return torch.cat([functional.adaptive_avg_pool2d(covered, GRID).flatten(2), scalars], dim=2)


def _reader(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FACTS, width), nn.GELU(), nn.Linear(width, width))


def _read(layers: nn.Sequential, maps_IKgg: torch.Tensor) -> torch.Tensor:
    """What the layers of a reader make of the facts of maps (I, K, g, g), (I, K, D); not in halves, whose rounding blurs what is larger."""
    with full_precision(maps_IKgg.device):
        return layers(map_facts(maps_IKgg.to(layers[0].weight.dtype)))


class MapTokens(nn.Module):
    """One token per map: which one it is, where it is strong and how strong."""

    def __init__(self, *, maps: int, width: int) -> None:
        super().__init__()
        self.which = nn.Parameter(torch.randn(maps, width) / 2)
        self.layers = _reader(width)

    def forward(self, maps_IKgg: torch.Tensor) -> torch.Tensor:
        """(I, K, g, g) -> (I, K, D)."""
        return self.which + _read(self.layers, maps_IKgg)


class GroundedWords(nn.Module):
    """Every word carries an overview of its images, and the word that ends a known name also what they show for it.

    Of names that end at one word the longest counts.

    Args:
        name_ids: token ids of the K names, as they stand inside a sentence.
        vision_width: channels of the features, the K evidence maps last.
        width: D.
    """

    LOUDNESS = 4.0
    """Start of the reader's last layer, relative to the usual: words must not drown what they carry."""

    def __init__(self, *, name_ids: Sequence[Sequence[int]], vision_width: int, width: int) -> None:
        super().__init__()
        self.name_ids = tuple(tuple(ids) for ids in name_ids)
        self.overview = nn.Sequential(nn.LayerNorm(vision_width), nn.Linear(vision_width, width))
        self.layers = _reader(width)
        with torch.no_grad():
            for parameter in self.layers[2].parameters():
                parameter.mul_(self.LOUDNESS)

    @property
    def longest(self) -> int:
        """Tokens of the longest name."""
        return max(map(len, self.name_ids))

    def shown(self, features_IggV: torch.Tensor, image_row: torch.Tensor, rows: int) -> torch.Tensor:
        """What the words of each row carry (B, K + 1, D): one entry per name and, last, that of all other words.

        The mean where a row has several images; `image_row` (I,) names their rows.
        """
        overview_ID = self.overview(features_IggV.mean(dim=(1, 2)))
        named_IKD = _read(self.layers, features_IggV[..., -len(self.name_ids) :].permute(0, 3, 1, 2))
        carried = torch.cat([named_IKD, torch.zeros_like(overview_ID)[:, None]], dim=1) + overview_ID[:, None]
        count = torch.bincount(image_row, minlength=rows).clamp(min=1).to(carried.dtype)
        return carried.new_zeros(rows, *carried.shape[1:]).index_add(0, image_row, carried) / count[:, None, None]

    def forward(self, embeds_BLD: torch.Tensor, ids_BL: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """Word embeddings with what they carry added; `shown` (B, K + 1, D) from the method of that name."""
        which = torch.full_like(ids_BL, len(self.name_ids))
        for index, name in sorted(enumerate(self.name_ids), key=lambda item: len(item[1])):
            which[_ends(ids_BL, name)] = index
        return embeds_BLD + shown.gather(1, which[..., None].expand(*which.shape, shown.shape[-1])).to(embeds_BLD.dtype)


def _ends(ids_BL: torch.Tensor, name: tuple[int, ...]) -> torch.Tensor:
    """(B, L) bool: the last tokens up to here are `name`."""
    found = ids_BL == name[-1]
    for back in range(1, len(name)):
        found = found & functional.pad(ids_BL[:, :-back] == name[-1 - back], (back, 0))
    return found
