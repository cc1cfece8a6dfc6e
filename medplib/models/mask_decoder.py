"""segment-anything's mask decoder for many (image, prompt) pairs at once, with optional high-resolution features.

The library's own forward repeats one image for all prompts of a call. Here each prompt names its image, so one call serves a whole batch;
the weights stay in the library's modules. Letters: I images, N prompts, T prompt tokens, C embedding width, g grid side, s logit side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling import MaskDecoder
from torch import nn
from torch.nn import functional as F

from medplib.models.conv_encoder import ConvBlock
from medplib.models.features import ImageFeatures

EVIDENCE_SHARE = 0.006
"""Share of the mask's cells that make its evidence: about the area of the smallest thing worth asking for."""


def evidence(logits_Nss: torch.Tensor) -> torch.Tensor:
    """Mean of the highest logits of each mask (N,): its gradient raises the best place of a present target, lowers that of others."""
    flat = logits_Nss.flatten(1)
    return flat.topk(max(1, round(EVIDENCE_SHARE * flat.shape[1])), dim=1).values.mean(dim=1)


@dataclass(frozen=True)
class DecodedMasks:
    """K masks for each of N prompts, and the transformer's output tokens that speak of the first mask."""

    logits: torch.Tensor  # (N, K, s, s) float32
    quality: torch.Tensor  # (N, K)
    quality_token: torch.Tensor  # (N, C)
    mask_token: torch.Tensor  # (N, C)


class HighResUpscaling(nn.Module):
    """Upscale prompt-dependent features four times, adding the image's skips at each step.

    The skips are refined by convolutions once per image; what is done per prompt is only two transposed convolutions and sums, because
    several prompts usually share an image. `subpixel` lets the hypernetwork predict four logits per cell instead of one, which equals a
    1x1 convolution and a pixel shuffle before the product, at a fraction of the cost.

    Cells stay in the order in which they arise, see `as_cells`; only logits are brought to rows and columns.

    Args:
        width: C, width of the image embedding.
        fine: c, channels at the finest level, twice as many at the one before.
        skip_widths: channels of the skips, coarse to fine.
        subpixel: double the resolution of the logits.
    """

    def __init__(self, width: int, *, fine: int, skip_widths: tuple[int, int], subpixel: bool) -> None:
        super().__init__()
        middle = 2 * fine
        self.refine = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 1), ConvBlock(c_out, c_out))
            for c_in, c_out in zip(skip_widths, (middle, fine), strict=True)
        )
        self.up1 = Quartering(width, middle, 2, stride=2)
        self.up2 = Quartering(middle, fine, 2, stride=2)
        self.subpixel = nn.Linear(fine, 4 * fine) if subpixel else None
        if self.subpixel is not None:
            # The four logits of a cell start equal: training begins from the coarser map.
            nn.init.zeros_(self.subpixel.bias)
            self.subpixel.weight.data.copy_(torch.eye(fine).repeat(4, 1))

    def refined(self, features: ImageFeatures) -> ImageFeatures:
        """The features with their skips refined; as they are where that was done before."""
        if features.refined:
            return features
        skips = tuple(refine(skip) for refine, skip in zip(self.refine, features.skips, strict=True))
        return ImageFeatures(features.embedding, skips, features.statistics, refined=True)

    def forward(self, source_NPC: torch.Tensor, features: ImageFeatures, image_index: torch.Tensor) -> torch.Tensor:
        """Cells (N, g * g, C), features of I images, (N,) -> cells (N, g * g * 16, c)."""
        middle, fine = (as_cells(skip, 1 + level) for level, skip in enumerate(self.refined(features).skips))
        # No normalisation here and a cheap activation: the transformer's output and the refined skips are already normalised, and
        # everything in these two lines is paid per prompt at high resolution.
        x = F.leaky_relu_(self.up1(source_NPC).add_(middle.index_select(0, image_index)))
        return F.leaky_relu_(self.up2(x).add_(fine.index_select(0, image_index)))

    def product(self, weights_NKc: torch.Tensor, cells_NPc: torch.Tensor) -> torch.Tensor:
        """Hypernetwork weights (N, K, c) times cells (N, g * g * 16, c) -> logits (N, K, 4g, 4g), or (N, K, 8g, 8g) with `subpixel`."""
        if self.subpixel is None:
            return as_maps(torch.bmm(cells_NPc, weights_NKc.mT), 2)
        weights = self.subpixel(weights_NKc).unflatten(2, (4, -1)).flatten(1, 2)
        logits = torch.bmm(cells_NPc, weights.mT).unflatten(2, (-1, 4)).transpose(2, 3)
        return as_maps(logits.flatten(1, 2), 3)


class Quartering(nn.ConvTranspose2d):
    """A transposed convolution of side and stride two: every cell becomes four. As a matrix product, which is what it is."""

    def forward(self, cells_NPC: torch.Tensor) -> torch.Tensor:
        """Cells (N, P, C) -> (N, 4 P, c), the four of a cell behind each other, row by row."""
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        return F.linear(cells_NPC, weight, self.bias.repeat(4)).unflatten(2, (4, -1)).flatten(1, 2)


class _LaidOut(torch.autograd.Function):
    """Contiguous in memory, the gradient, too: it would arrive in the order of cells and be copied number by number further on."""

    @staticmethod
    def forward(_, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous()

    @staticmethod
    def backward(_, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.contiguous()


def as_cells(maps_Ncss: torch.Tensor, levels: int) -> torch.Tensor:
    """Maps (N, c, s, s) -> cells (N, s * s, c): by cell of a grid 2**levels times as coarse, in it by quarter, in that by quarter."""
    sides = (maps_Ncss.shape[-1] >> levels, *[2] * levels)
    order = [axis for row in range(1, 2 + levels) for axis in (row, row + 1 + levels)]
    pixels_Nssc = _LaidOut.apply(maps_Ncss.permute(0, 2, 3, 1))
    return pixels_Nssc.unflatten(2, sides).unflatten(1, sides).permute(0, *order, -1).flatten(1, -2)


def as_maps(cells_NPc: torch.Tensor, levels: int) -> torch.Tensor:
    """The inverse of `as_cells`; channels stay last in memory."""
    grid = round(cells_NPc.shape[1] ** 0.5) >> levels
    rows = [1, *range(3, 3 + 2 * levels, 2)]
    pixels = cells_NPc.unflatten(1, (grid, grid, *[2] * (2 * levels))).permute(0, *rows, *(row + 1 for row in rows), -1)
    return pixels.flatten(2 + levels, -2).flatten(1, 1 + levels).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """Per channel, how much of the transformer's output is added to the prompt and to the image embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.full((width,), 0.1))
        self.image = nn.Parameter(torch.full((width,), 0.1))

    def forward(
        self, prompts: list[torch.Tensor], tokens: list[torch.Tensor], embedding: torch.Tensor, source: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Prompts and output tokens K x (N, C), embedding and source (N, g * g, C) -> corrected prompts, corrected embedding."""
        asked = [prompt + self.tokens * token for prompt, token in zip(prompts, tokens, strict=True)]
        return asked, embedding + self.image * source


class PresenceHead(nn.Module):
    """Is the prompted thing in the image? The strongest mask logits, and an MLP on the decoder's tokens and prompt x pooled image.

    The mean of the highest logits is the evidence of multiple-instance learning, which teaches the mask itself to stay empty where the
    target is absent (docs/experiments.md). The product is there because matching what was asked with what is shown is an interaction that
    an MLP on sums learns slowly.

    Args:
        width: C.
        detached: do not send gradients into tokens, prompts and image.
    """

    def __init__(self, width: int, *, detached: bool) -> None:
        super().__init__()
        self.detached = detached
        self.asked = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.shown = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.head = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 1))
        self.evidence_weight = nn.Parameter(torch.full((1,), 0.5))  # DeepSpeed takes no scalars

    def forward(self, masks: DecodedMasks, prompt_NC: torch.Tensor, pooled_NC: torch.Tensor) -> torch.Tensor:
        """Output tokens, mean prompt token (N, C), mean image embedding (N, C) -> logit (N,)."""
        logits = masks.logits[:, 0]
        inputs = (masks.quality_token, masks.mask_token, prompt_NC, pooled_NC, logits)
        quality, mask, prompt, pooled, logits = (x.detach() for x in inputs) if self.detached else inputs
        learnt = self.head(torch.cat([quality, mask, self.asked(prompt) * self.shown(pooled)], dim=1)).squeeze(1)
        return learnt + self.evidence_weight * evidence(logits).to(learnt.dtype)


def weighted_sum(weights_NKc: torch.Tensor, features_Ncss: torch.Tensor) -> torch.Tensor:
    """The hypernetwork product: (N, K, c), (N, c, h, w) -> (N, K, h, w)."""
    return torch.bmm(weights_NKc, features_Ncss.flatten(2)).unflatten(2, features_Ncss.shape[2:])


def decode_pairs(
    decoder: MaskDecoder,
    upscaling: HighResUpscaling | None,
    *,
    features: ImageFeatures,
    image_index: torch.Tensor,
    image_pe: torch.Tensor,
    sparse: torch.Tensor,
    dense: torch.Tensor,
    masks: int = 1,
    residual: Residual | None = None,
) -> DecodedMasks:
    """Run the decoder on N (image, prompt) pairs; equal to the library's forward called pair by pair.

    Args:
        decoder: segment-anything's mask decoder, whose weights are used.
        upscaling: high-resolution upscaling in place of the decoder's own, None for the latter.
        features: of I images.
        image_index: (N,) int64, the image of each prompt.
        image_pe: (1, C, g, g) positions.
        sparse: (N, T, C) prompt tokens.
        dense: (N, C, g, g) or anything that broadcasts to it, added to the image embedding.
        masks: K, how many mask tokens to decode; token 0 is the single-mask answer.
        residual: what the transformer makes is a correction of prompt and embedding, None = it replaces them (as published).
    """
    count = image_index.shape[0]
    # Tables are called, not read: weights that are split among ranks are whole inside a call only.
    output_tokens = torch.cat([table(_rows_of(table)) for table in (decoder.iou_token, decoder.mask_tokens)])
    tokens = torch.cat([output_tokens.expand(count, -1, -1), sparse], dim=1)
    size = features.embedding.shape[2:]
    # Channels last, as the transformer takes them: flattened to tokens without a copy, and read without one by its projections
    embedding_NPC = features.embedding.flatten(2).mT.contiguous().index_select(0, image_index)
    states, source_NPC = decoder.transformer(embedding_NPC.mT.unflatten(2, size) + dense, image_pe, tokens)
    asked = [states[:, 1 + k] for k in range(masks)]
    if residual is not None:
        asked, source_NPC = residual([sparse.mean(dim=1)] * len(asked), asked, embedding_NPC, source_NPC)
    hyper = torch.stack([decoder.output_hypernetworks_mlps[k](token) for k, token in enumerate(asked)], dim=1)
    if upscaling is None:
        logits = weighted_sum(hyper, decoder.output_upscaling(source_NPC.mT.unflatten(2, size)))
    else:
        logits = upscaling.product(hyper, upscaling(source_NPC, features, image_index))
    quality = decoder.iou_prediction_head(states[:, 0])[:, :masks]
    return DecodedMasks(logits.float(), quality, states[:, 0], states[:, 1])


def _rows_of(table: nn.Embedding) -> torch.Tensor:
    return torch.arange(table.num_embeddings, device=table.weight.device)
