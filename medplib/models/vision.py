"""The vision encoder: pixels -> a square grid of features. CLIP from transformers, any timm model by name, or a copy of the grounder's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from medplib.errors import InputError
from medplib.models.config_grounding import GrounderConfig
from medplib.models.conv_encoder import STATISTICS
from medplib.models.grounding import build_grounder, valid_mask
from medplib.models.mask_decoder import as_maps
from medplib.models.precision import full_precision
from medplib.models.pretrained import load_pretrained, load_timm, pretrained_config
from medplib.types import Letterbox

CLIP_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
"""Tensors of a whole CLIP model that its vision tower leaves alone."""
EVIDENCE_SCALE = 4.0
"""Mask logits are divided by it before tanh: most stay where the curve is nearly straight, none can drown the others."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """Which encoder.

    Args:
        kind: "clip" = a CLIP vision tower of transformers (hidden state before the last layer, class token dropped, as the published
            model); "timm" = a timm model: a transformer gives its patch tokens, a convolutional one the maps of `levels` on one grid;
            "grounder" = the convolutional encoder of `grounder` with its upscaling, so that weights learnt by drawing masks can be
            copied: where no pretrained encoder can be had, a few minutes of dense supervision see more than image-text pairs do.
        name: timm model name, or for CLIP a local folder or hub id to take the sizes from (weights too when `pretrained`).
        image_size: side of the square input in pixels.
        grid: cells per side of the feature grid.
        levels: convolutional timm models only: which feature maps are fused (resized to `grid`, concatenated, one 1x1 convolution).
        width: channels after that fusion.
        pretrained: load published weights (needs them on disk or a network).
        hf_config: CLIP configuration (JSON), written into checkpoints so that they load without `name`.
        grounder: sizes of that encoder, for kind "grounder".
        names: things that encoder has learnt to draw, for kind "grounder". For each, the evidence that a cell shows it is one more channel
            behind the fused ones; the projector makes one more token of it, and words that name the thing carry it.
        name_ids: token ids of the names, written out by the stage that starts the encoder.
        pixel_mean, pixel_std: of red, green and blue between 0 and 1, as the encoder was trained with; CLIP's when left out.
    """

    kind: Literal["clip", "timm", "grounder"] = "timm"
    name: str = "resnet10t"
    image_size: int = 96
    grid: int = 12
    levels: tuple[int, ...] = (2, 3, 4)
    width: int = 128
    pretrained: bool = False
    hf_config: dict[str, Any] | None = None
    grounder: GrounderConfig | None = None
    names: tuple[str, ...] = ()
    name_ids: tuple[tuple[int, ...], ...] = ()
    pixel_mean: tuple[float, float, float] = CLIP_MEAN
    pixel_std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.names and self.kind != "grounder":
            raise InputError(where="model.vision.names", expected="names only with kind 'grounder'", found=f"kind '{self.kind}'")
        if self.grounder is not None and (self.kind != "grounder" or self.grounder.image_size != self.image_size):
            raise InputError(
                where="model.vision.grounder",
                expected=f"only with kind 'grounder', and of image_size {self.image_size}",
                found=f"kind '{self.kind}', image_size {self.grounder.image_size}",
            )


class VisionEncoder(nn.Module):
    """Letterboxed pixels (I, 3, Sv, Sv) uint8 -> features (I, g, g, Dv), row-major from the top left. `width` is Dv."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid, self.image_size = config.grid, config.image_size
        self.backbone = {"clip": _Clip, "timm": _timm, "grounder": _Grounder}[config.kind](config)
        self.width, self.names = self.backbone.width, config.names
        self.register_buffer("mean", torch.tensor(config.pixel_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.pixel_std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor, letterboxes: Sequence[Letterbox]) -> torch.Tensor:
        """See the class; normalisation happens here, on the device.

        Only kind "grounder" tells padding from image, by the original sizes in the I letterboxes (of whatever square).
        """
        if isinstance(self.backbone, _Grounder):
            return self.backbone(pixels, [Letterbox.fit(box.original_size, self.image_size) for box in letterboxes])
        return self.backbone((pixels.to(self.mean.dtype) / 255 - self.mean) / self.std)

    def hf_config(self) -> dict[str, Any] | None:
        """The configuration of a CLIP tower as JSON; None for timm models, which a name describes."""
        return self.backbone.model.config.to_diff_dict() if isinstance(self.backbone, _Clip) else None


class _Clip(nn.Module):
    """CLIP tower: the hidden state of the last but one layer, without the class token."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        if config.pretrained:
            model = load_pretrained(CLIPVisionModel, config.name, beside=CLIP_TEXT)
        elif config.hf_config is not None:
            model = CLIPVisionModel(CLIPVisionConfig(**config.hf_config))
        else:
            found = pretrained_config(config.name)
            model = CLIPVisionModel(CLIPVisionConfig(**found.get("vision_config", found)))
        self.model = getattr(model, "vision_model", model)  # some versions of transformers wrap it once more
        found = self.model.config.image_size // self.model.config.patch_size
        if (found, self.model.config.image_size) != (config.grid, config.image_size):
            raise InputError(
                where="model.vision",
                expected=f"image_size {self.model.config.image_size} and grid {found} for {config.name}",
                found=f"{config.image_size} and {config.grid}",
                remedy="set both to the encoder's own sizes",
            )
        self.width = self.model.config.hidden_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        states = self.model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        grid = int(states.shape[1] ** 0.5)
        return states.unflatten(1, (grid, grid))


class _Grounder(nn.Module):
    """The grounder's convolutional encoder and upscaling; embedding, fine features and raw intensities are fused per cell.

    Behind the fused channels stands, for each of `config.names`, what the grounder would draw for it: the mask logit without the decoder's
    transformer, averaged per cell and bounded, tanh(logit / 4).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.grounder is None or config.grounder.kind != "conv" or not config.grounder.decoder.high_resolution:
            raise InputError(
                where="model.vision.grounder",
                expected="a grounder of kind 'conv' with decoder.high_resolution, for model.vision.kind 'grounder'",
                found="none" if config.grounder is None else f"kind '{config.grounder.kind}'",
            )
        whole = build_grounder(config.grounder)
        self.normaliser, self.image_encoder, self.upscaling = whole.normaliser, whole.image_encoder, whole.upscaling
        self.grid, self.width = config.grid, config.width + len(config.names)
        fine = config.grounder.decoder.upscaled_width or config.grounder.embed_dim // 8
        self.fuse = nn.Sequential(nn.Linear(config.grounder.embed_dim + fine + STATISTICS, config.width), nn.GELU())
        self.evidence = nn.Linear(fine, len(config.names), bias=False) if config.names else None

    def forward(self, pixels: torch.Tensor, letterboxes: Sequence[Letterbox]) -> torch.Tensor:
        normal, statistics = self.normaliser(pixels, valid_mask(letterboxes, pixels.device))
        features = self.image_encoder(normal.to(self.fuse[0].weight.dtype), statistics.to(self.fuse[0].weight.dtype))
        every = torch.arange(len(pixels), device=pixels.device)
        fine = as_maps(self.upscaling(features.embedding.flatten(2).mT, features, every), 2)
        size = (self.grid, self.grid)
        coarse = functional.interpolate(features.embedding, size, mode="bilinear", align_corners=False)
        cells = torch.cat([coarse, functional.adaptive_avg_pool2d(fine, size)], dim=1).permute(0, 2, 3, 1)
        raw = features.statistics[:, None, None].expand(*cells.shape[:3], -1)
        fused = self.fuse(torch.cat([cells, raw], dim=-1))
        if self.evidence is None:
            return fused
        with full_precision(pixels.device):  # sizes are told from how far a map stays below one
            shown = cells[..., -fine.shape[1] :].to(self.evidence.weight.dtype)  # the mean of a linear map is the map of the mean
            return torch.cat([fused, torch.tanh(self.evidence(shown) / EVIDENCE_SCALE)], dim=-1)


def _timm(config: VisionConfig) -> nn.Module:
    import timm

    if not timm.is_model(config.name):
        raise InputError(where="model.vision.name", expected="a timm model name", found=repr(config.name), remedy="see timm.list_models()")
    probe = timm.create_model(config.name, pretrained=False)
    return _Tokens(config) if hasattr(probe, "num_prefix_tokens") else _Maps(config)


class _Tokens(nn.Module):
    """A timm vision transformer: its patch tokens after the final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.model = load_timm(config.name, pretrained=config.pretrained, img_size=config.image_size, num_classes=0)
        self.width = self.model.num_features

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        states = self.model.forward_features(pixels)[:, self.model.num_prefix_tokens :]
        grid = int(states.shape[1] ** 0.5)
        return states.unflatten(1, (grid, grid))


class _Maps(nn.Module):
    """A timm convolutional network: feature maps of several depths on one grid, so that detail and context reach every cell."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid, self.width = config.grid, config.width
        self.model = load_timm(config.name, pretrained=config.pretrained, features_only=True, out_indices=config.levels)
        self.fuse = nn.Sequential(nn.Conv2d(sum(self.model.feature_info.channels()), config.width, 1), nn.GELU())
        self.out = nn.Conv2d(config.width, config.width, 3, padding=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        size = (self.grid, self.grid)
        maps = [functional.interpolate(m, size, mode="bilinear") if m.shape[-1] < self.grid else functional.adaptive_avg_pool2d(m, size)
                for m in self.model(pixels)]  # fmt: skip
        fused = self.fuse(torch.cat(maps, dim=1))
        return (fused + self.out(fused)).permute(0, 2, 3, 1)
