"""Sizes of the pixel grounder in one place; every contradiction between them is found here, before a module is built.

Stride means input pixels per cell. The image embedding has `embedding_stride`; the decoder upsamples it four times, as segment-anything
does, and optionally twice more with a sub-pixel head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medplib.errors import InputError


@dataclass(frozen=True)
class VitConfig:
    """segment-anything's ImageEncoderViT; the defaults are those of SAM-Med2D (ViT-B with an adapter in each block)."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch_size: int = 16
    window_size: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    adapter: bool = True


@dataclass(frozen=True)
class ConvConfig:
    """Small convolutional encoder for training from scratch. `widths` are the channels at strides stem_stride x (1, 2, 4, 8)."""

    stem_stride: Literal[2, 4] = 2
    widths: tuple[int, int, int, int] = (32, 64, 128, 128)
    context_layers: int = 1
    context_heads: int = 4


@dataclass(frozen=True)
class DecoderConfig:
    """segment-anything's two-way transformer and mask decoder; the defaults are the published ones.

    `multimask_outputs` extra mask tokens exist in published weights and are not used by text prompts: 0 when training from scratch.
    `high_resolution` adds the encoder's skips while upscaling (needs a conv encoder). `subpixel` doubles the resolution of the logits.
    `upscaled_width` channels at the finest level, twice as many at the one before; 0 = C/8 and C/4 as published. `residual` adds what
    the transformer makes of tokens and image to the prompt and the embedding themselves, by learnt factors that start at a tenth: training
    begins from what `PixelGrounder.decode_directly` draws.
    `presence_head` scores whether the prompted thing is there; with `presence_detached` its loss does not reach the rest.
    """

    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    multimask_outputs: int = 3
    high_resolution: bool = False
    subpixel: bool = False
    upscaled_width: int = 0
    residual: bool = False
    presence_head: bool = False
    presence_detached: bool = True


@dataclass(frozen=True)
class GrounderConfig:
    """Everything needed to build a PixelGrounder. Only the encoder section named by `kind` is read.

    `normalisation`: "sam" uses segment-anything's mean and deviation; "image" also standardises each image over its valid pixels (one
    mean and deviation for all channels, so relative colour stays), which suits modalities of unknown intensity scale.
    """

    kind: Literal["sam", "conv"] = "sam"
    image_size: int = 256
    embed_dim: int = 256
    normalisation: Literal["sam", "image"] = "sam"
    vit: VitConfig = field(default_factory=VitConfig)
    conv: ConvConfig = field(default_factory=ConvConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        self._check_values()
        self._check_encoder()
        self._check_decoder()

    @property
    def embedding_stride(self) -> int:
        """Input pixels per cell of the image embedding."""
        return self.vit.patch_size if self.kind == "sam" else 4 * self.conv.stem_stride

    @property
    def grid(self) -> int:
        """Side of the image embedding in cells."""
        return self.image_size // self.embedding_stride

    @property
    def output_stride(self) -> int:
        """Input pixels per low-resolution logit."""
        return self.embedding_stride // (8 if self.decoder.subpixel else 4)

    def _check_values(self) -> None:
        if self.kind not in ("sam", "conv"):
            raise _error("kind", "'sam' or 'conv'", repr(self.kind))
        if self.normalisation not in ("sam", "image"):
            raise _error("normalisation", "'sam' or 'image'", repr(self.normalisation))
        if self.conv.stem_stride not in (2, 4):
            raise _error("conv.stem_stride", "2 or 4", str(self.conv.stem_stride))
        if len(self.conv.widths) != 4:
            raise _error("conv.widths", "four widths, one per level", str(len(self.conv.widths)))

    def _check_encoder(self) -> None:
        if self.kind == "conv":
            step = 8 * self.conv.stem_stride
            if self.image_size % step or self.image_size < 2 * step:
                raise _error("image_size", f"a multiple of {step} (the coarsest stride), at least {2 * step}", str(self.image_size))
            if self.conv.widths[3] % self.conv.context_heads:
                raise _error("conv.widths", f"a last width that {self.conv.context_heads} heads divide", str(self.conv.widths[3]))
            return
        if self.image_size % self.vit.patch_size:
            raise _error("image_size", f"a multiple of the patch size {self.vit.patch_size}", str(self.image_size))
        if self.vit.adapter and self.grid % 2:
            raise _error(
                "image_size", "an even grid of patches", f"{self.image_size} px = {self.grid} patches", "the adapter halves and doubles it"
            )
        if self.vit.width % self.vit.heads:
            raise _error("vit.width", f"a width that {self.vit.heads} heads divide", str(self.vit.width))
        if self.vit.patch_size % 4:
            raise _error("vit.patch_size", "a multiple of 4, because the decoder upsamples four times", str(self.vit.patch_size))

    def _check_decoder(self) -> None:
        decoder = self.decoder
        if self.embed_dim % 8 or (self.embed_dim // 2) % decoder.heads:
            raise _error("embed_dim", f"a multiple of 8 whose half {decoder.heads} heads divide", str(self.embed_dim))
        if decoder.high_resolution and self.kind == "sam":
            raise _error("decoder.high_resolution", "false with kind 'sam'", "true", "only the conv encoder has fine features")
        for option in ("subpixel", "upscaled_width", "residual"):
            if getattr(decoder, option) and not decoder.high_resolution:
                raise _error(f"decoder.{option}", "high_resolution as well", "high_resolution false", "set decoder.high_resolution to true")


def _error(option: str, expected: str, found: str, remedy: str = "") -> InputError:
    return InputError(where=f"grounder.{option}", expected=expected, found=found, remedy=remedy)
