"""The pixel grounder: images in, prompts in, one mask with presence and quality out per (image, prompt) pair.

It composes an image encoder, segment-anything's prompt encoder and mask decoder; sizes live in `GrounderConfig` and `build_grounder`.
Letters: I images, N prompts, T prompt tokens, S side of the square input, C embedding width, g grid side, s low-resolution side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import nn
from torch.nn import functional as F

from medplib.models.config_grounding import GrounderConfig
from medplib.models.conv_encoder import build_conv_encoder
from medplib.models.features import FeatureStore, ImageFeatures
from medplib.models.geometry import resized, unpad_resize, valid_mask
from medplib.models.mask_decoder import DecodedMasks, HighResUpscaling, PresenceHead, Residual, decode_pairs, evidence
from medplib.models.name_prompt import NamePromptEncoder
from medplib.models.precision import full_precision, lengthened
from medplib.models.sam import build_sam_encoder
from medplib.types import GroundingOutput, Letterbox

__all__ = ["GrounderConfig", "ImageFeatures", "NamePromptEncoder", "PixelGrounder", "build_grounder", "unpad_resize", "valid_mask"]

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
SMALLEST_DEVIATION = 0.01
"""In units of PIXEL_STD, below one grey level: keeps a constant image from being divided by zero."""


class PixelNormaliser(nn.Module):
    """uint8 pixels to what the encoders read; padding becomes exactly zero, the value of the mean colour.

    Args:
        per_image: also standardise each image by one mean and deviation over its valid pixels and channels.
    """

    def __init__(self, *, per_image: bool) -> None:
        super().__init__()
        self.per_image = per_image
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, sam_pixels: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(I, 3, S, S) uint8 and (I, S, S) bool -> float32 pixels (I, 3, S, S) and statistics (I, 6), see ImageFeatures."""
        valid_I1SS = valid[:, None].float()
        pixels = (sam_pixels.float() - self.mean.float()) / self.deviation.float() * valid_I1SS
        count = valid_I1SS.sum(dim=(2, 3)).clamp(min=1)
        mean_I3 = pixels.sum(dim=(2, 3)) / count
        square_I3 = pixels.square().sum(dim=(2, 3)) / count
        deviation_I3 = (square_I3 - mean_I3.square()).clamp(min=0).sqrt()
        if self.per_image:
            centre = mean_I3.mean(dim=1)
            spread = (square_I3.mean(dim=1) - centre.square()).clamp(min=0).sqrt().clamp(min=SMALLEST_DEVIATION)
            pixels = (pixels - centre.view(-1, 1, 1, 1)) / spread.view(-1, 1, 1, 1) * valid_I1SS
        return pixels, torch.cat([mean_I3, deviation_I3], dim=1)


class FullPrecisionPositions(PositionEmbeddingRandom):
    """segment-anything's random Fourier positions, always in float32: their phases span many periods and are lost in bfloat16."""

    def _pe_encoding(self, coords: torch.Tensor) -> torch.Tensor:
        with full_precision(coords.device):
            phase = 2 * torch.pi * ((2 * coords.float() - 1) @ self.positional_encoding_gaussian_matrix.float())
            return torch.cat([phase.sin(), phase.cos()], dim=-1)


class PixelGrounder(nn.Module):
    """Prompted segmentation of a batch. `encode` once per image, `decode` once for all prompts of the batch.

    Args:
        image_encoder: (pixels, statistics) -> ImageFeatures.
        prompt_encoder: segment-anything's, for points, boxes, masks and positions.
        mask_decoder: segment-anything's; its own upscaling is used unless `upscaling` is given.
        normaliser: of the pixels.
        upscaling: high-resolution upscaling for encoders with skips.
        presence: presence head, None to give no presence logit.
        residual: the transformer corrects what prompt and embedding say, None = it replaces them.
    """

    def __init__(
        self,
        *,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        normaliser: PixelNormaliser,
        upscaling: HighResUpscaling | None = None,
        presence: PresenceHead | None = None,
        residual: Residual | None = None,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.normaliser = normaliser
        self.upscaling = upscaling
        self.presence = presence
        self.residual = residual
        self.kept: FeatureStore | None = None
        """Where the features of a frozen image encoder are looked up; None encodes every image."""

    @property
    def prompt_width(self) -> int:
        """C, the width of a prompt."""
        return self.prompt_encoder.embed_dim

    def encode(self, sam_pixels: torch.Tensor, letterboxes: Sequence[Letterbox]) -> ImageFeatures:
        """Letterboxed pixels (I, 3, S, S) uint8 and their I letterboxes, which tell image from padding -> features of the I images."""
        if self.kept is not None:
            return self.kept.through(sam_pixels, letterboxes, self._encode)
        return self._encode(sam_pixels, letterboxes)

    def _encode(self, sam_pixels: torch.Tensor, letterboxes: Sequence[Letterbox]) -> ImageFeatures:
        pixels, statistics = self.normaliser(sam_pixels, valid_mask(letterboxes, sam_pixels.device))
        dtype = self.mask_decoder.iou_token.weight.dtype
        return self.image_encoder(pixels.to(dtype), statistics.to(dtype))

    def prepared(self, features: ImageFeatures) -> ImageFeatures:
        """Features for several calls of `decode`: what does not depend on the prompt is computed once."""
        return features if self.upscaling is None else self.upscaling.refined(features)

    def decode(
        self, features: ImageFeatures, image_index: torch.Tensor, prompts: torch.Tensor, dense: torch.Tensor | None = None
    ) -> GroundingOutput:
        """One mask for each of N (image, prompt) pairs.

        Args:
            features: of I images.
            image_index: (N,) int64, the image of each prompt; N may be 0.
            prompts: (N, C) one vector each, or (N, T, C) from `prompt_points` or `prompt_boxes`.
            dense: (N, C, g, g) from `prompt_masks`, None for no mask prompt.
        """
        count, sparse = len(image_index), prompts[:, None] if prompts.dim() == 2 else prompts
        if dense is None or len(dense) == 1:
            image_index, sparse = lengthened(image_index), lengthened(sparse)
        masks = self.decode_tokens(features, image_index, sparse, dense, masks=1)
        low_res = masks.logits[:, 0]
        presence = None
        if self.presence is not None:
            pooled = features.embedding.mean(dim=(2, 3)).index_select(0, image_index)
            presence = self.presence(masks, sparse.mean(dim=1).to(pooled.dtype), pooled).float()
            presence = presence[:count]
        low_res, quality = low_res[:count], masks.quality[:count, 0].float()
        return GroundingOutput(low_res, self._full_size(low_res), quality, presence)

    def decode_directly(self, features: ImageFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> GroundingOutput:
        """The decoder without its transformer: hypernetwork of the prompt times the upscaled features of the image.

        Everything spatial is computed once per image, so many names per image cost little and the encoder learns fast; afterwards the
        whole decoder starts from here (docs/experiments.md). Quality is zero, presence is the evidence of the mask.

        Args:
            features: of I images, from an encoder with skips.
            image_index: (N,) int64.
            prompts: (N, C).
        """
        every = torch.arange(len(features.embedding), device=image_index.device)
        upscaled = self.upscaling(features.embedding.flatten(2).mT, features, every)
        hyper = self.mask_decoder.output_hypernetworks_mlps[0](prompts.to(upscaled.dtype))[:, None]
        low_res = self.upscaling.product(hyper, upscaled.index_select(0, image_index))[:, 0].float()
        presence = None if self.presence is None else self.presence.evidence_weight * evidence(low_res) + self.presence.head[-1].bias
        return GroundingOutput(low_res, self._full_size(low_res), low_res.new_zeros(len(low_res)), presence)

    def direct_weights(self, prompts: torch.Tensor) -> torch.Tensor:
        """What `decode_directly` multiplies the upscaled features with, for prompts (N, C) -> (N, c): the mean logit of a cell's four."""
        hyper = self.mask_decoder.output_hypernetworks_mlps[0](prompts)
        return hyper if self.upscaling.subpixel is None else self.upscaling.subpixel(hyper).unflatten(1, (4, -1)).mean(dim=1)

    def _full_size(self, low_res: torch.Tensor) -> torch.Tensor:
        """(N, s, s) -> (N, S, S), bilinear."""
        size = self.prompt_encoder.input_image_size
        if not len(low_res):  # nothing to enlarge, but still part of the graph
            return low_res[:, :1, :1].expand(0, *size)
        return resized(low_res, size)

    def decode_tokens(
        self, features: ImageFeatures, image_index: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor | None, *, masks: int
    ) -> DecodedMasks:
        """The first `masks` mask tokens of each pair at low resolution; token 0 is the single answer, the others are SAM's alternatives."""
        dtype = features.embedding.dtype
        if dense is None:
            dense = self.prompt_encoder.no_mask_embed(image_index.new_zeros(1)).view(1, -1, 1, 1)
        return decode_pairs(
            self.mask_decoder,
            self.upscaling,
            features=features,
            image_index=image_index,
            image_pe=self.prompt_encoder.get_dense_pe().to(dtype),
            sparse=sparse.to(dtype),
            dense=dense.to(dtype),
            masks=masks,
            residual=self.residual,
        )

    def prompt_points(self, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Points (N, T, 2) as x, y in pixels of the S x S input, labels (N, T) 1 inside, 0 outside, -1 unused -> (N, T + 1, C)."""
        return self.prompt_encoder(points=(points.float(), labels), boxes=None, masks=None)[0]

    def prompt_boxes(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (N, 4) as x0, y0, x1, y1 in pixels of the S x S input -> (N, 2, C)."""
        return self.prompt_encoder(points=None, boxes=boxes.float(), masks=None)[0]

    def prompt_masks(self, low_res_logits: torch.Tensor) -> torch.Tensor:
        """Logits of an earlier answer (N, s, s) -> dense prompt (N, C, g, g). Sizes other than SAM's 4g are averaged to it."""
        size = self.prompt_encoder.mask_input_size
        resized = low_res_logits[:, None] if low_res_logits.shape[-2:] == size else F.adaptive_avg_pool2d(low_res_logits[:, None], size)
        return self.prompt_encoder(points=None, boxes=None, masks=resized.to(self.prompt_encoder.no_mask_embed.weight.dtype))[1]


def build_grounder(config: GrounderConfig) -> PixelGrounder:
    """A PixelGrounder of the configured sizes, randomly initialised."""
    decoder = config.decoder
    mask_decoder = MaskDecoder(
        transformer_dim=config.embed_dim,
        transformer=TwoWayTransformer(decoder.depth, config.embed_dim, decoder.heads, decoder.mlp_dim),
        num_multimask_outputs=decoder.multimask_outputs,
        iou_head_hidden_dim=config.embed_dim,
    )
    upscaling = None
    if decoder.high_resolution:
        skip_widths = (config.conv.widths[1], config.conv.widths[0])
        fine = decoder.upscaled_width or config.embed_dim // 8
        upscaling = HighResUpscaling(config.embed_dim, fine=fine, skip_widths=skip_widths, subpixel=decoder.subpixel)
        mask_decoder.output_upscaling = nn.Identity()  # replaced: weights that never run would stall distributed training
        mask_decoder.output_hypernetworks_mlps = nn.ModuleList(
            MLP(config.embed_dim, config.embed_dim, fine, 3) for _ in range(mask_decoder.num_mask_tokens)
        )
    return PixelGrounder(
        image_encoder=build_sam_encoder(config) if config.kind == "sam" else build_conv_encoder(config),
        prompt_encoder=_build_prompt_encoder(config),
        mask_decoder=mask_decoder,
        normaliser=PixelNormaliser(per_image=config.normalisation == "image"),
        upscaling=upscaling,
        presence=PresenceHead(config.embed_dim, detached=decoder.presence_detached) if decoder.presence_head else None,
        residual=Residual(config.embed_dim) if decoder.residual else None,
    )


def _build_prompt_encoder(config: GrounderConfig) -> PromptEncoder:
    size, grid = (config.image_size, config.image_size), (config.grid, config.grid)
    encoder = PromptEncoder(embed_dim=config.embed_dim, image_embedding_size=grid, input_image_size=size, mask_in_chans=16)
    encoder.pe_layer = FullPrecisionPositions(config.embed_dim // 2)
    return encoder
