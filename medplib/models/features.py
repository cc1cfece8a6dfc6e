"""What an image encoder hands to the mask decoder, the same for every encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from medplib.types import Letterbox


@dataclass(frozen=True)
class ImageFeatures:
    """Features of I images. Letters: C embedding width, g side of the embedding grid.

    `skips` go from coarse to fine, at twice and four times the grid; empty when the encoder has none. `refined`: they are what the
    decoder's upscaling makes of them, computed once for several calls of the decoder.
    """

    embedding: torch.Tensor  # (I, C, g, g)
    skips: tuple[torch.Tensor, ...]  # () or ((I, c1, 2g, 2g), (I, c0, 4g, 4g))
    statistics: torch.Tensor  # (I, 6) float32: channel means, then deviations, over valid pixels in units of SAM's normalisation
    refined: bool = False


class FeatureStore(Protocol):
    """Somewhere image features are kept."""

    def through(
        self,
        sam_pixels: torch.Tensor,
        letterboxes: Sequence[Letterbox],
        encode: Callable[[torch.Tensor, Sequence[Letterbox]], ImageFeatures],
    ) -> ImageFeatures:
        """The features of I images (I, 3, S, S) uint8 with their letterboxes; `encode` is asked for those that are not kept."""


def weights_hash(*parts: nn.Module) -> str:
    """SHA-256 of the weights and buffers of some modules, with their names and types: what features depend on besides the image."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(type(part).__name__.encode())
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
