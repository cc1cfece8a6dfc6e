"""A small convolutional image encoder for training from scratch on modest hardware.

Four levels of two-convolution residual blocks with instance normalisation behind a pixel-unshuffle stem; self-attention with coordinates at
the coarsest level, so that place (left, right, inside what) is known; the two coarsest levels are summed to the image embedding, the two
finest are handed to the decoder. The idea of fine skips for a prompted decoder follows SAM 2 (arXiv 2408.00714).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from medplib.models.config_grounding import GrounderConfig
from medplib.models.features import ImageFeatures

STATISTICS = 6


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with instance normalisation and leaky ReLU, and a residual path; the first may halve the resolution."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(width, width)
        self.act = nn.LeakyReLU(0.01, inplace=True)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, a=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, H, W) -> (B, c, H / stride, W / stride)."""
        # The residual starts after the first convolution: no projection is then needed where width or stride change.
        inner = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(inner)) + inner)


class GlobalContext(nn.Module):
    """Self-attention over all cells, told where they are and what the image's raw intensities were.

    Instance normalisation removes brightness and colour; the statistics give them back (they say much about the modality).
    """

    def __init__(self, width: int, *, layers: int, heads: int) -> None:
        super().__init__()
        self.place = nn.Conv2d(2, width, 1)
        self.intensity = nn.Linear(STATISTICS, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )

    def forward(self, x_BCHW: torch.Tensor, statistics_B6: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), (B, 6) -> (B, C, H, W)."""
        height, width = x_BCHW.shape[-2:]
        rows = torch.linspace(-1, 1, height, device=x_BCHW.device, dtype=x_BCHW.dtype)
        columns = torch.linspace(-1, 1, width, device=x_BCHW.device, dtype=x_BCHW.dtype)
        grid_2HW = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        x_BCHW = x_BCHW + self.place(grid_2HW[None]) + self.intensity(statistics_B6)[:, :, None, None]
        tokens = x_BCHW.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class ConvImageEncoder(nn.Module):
    """Image encoder with high-resolution skips.

    Args:
        widths: channels at strides stem_stride x (1, 2, 4, 8).
        stem_stride: 2 or 4, input pixels per cell of the finest level.
        out_channels: width of the image embedding.
        context: module (features at the coarsest level, statistics) -> features of the same shape.
    """

    def __init__(self, *, widths: tuple[int, int, int, int], stem_stride: int, out_channels: int, context: nn.Module) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.stem_stride = stem_stride
        self.level0 = ConvBlock(3 * stem_stride**2, first)
        self.level1 = ConvBlock(first, second, stride=2)
        self.level2 = ConvBlock(second, third, stride=2)
        self.level3 = ConvBlock(third, fourth, stride=2)
        self.context = context
        self.lateral2 = nn.Conv2d(third, out_channels, 1)
        self.lateral3 = nn.Conv2d(fourth, out_channels, 1)
        self.norm = nn.GroupNorm(1, out_channels)

    def forward(self, pixels: torch.Tensor, statistics: torch.Tensor) -> ImageFeatures:
        """Normalised pixels (I, 3, S, S), statistics (I, 6) -> embedding at 4 x stem_stride, skips at 2 x and 1 x stem_stride."""
        fine = self.level0(F.pixel_unshuffle(pixels, self.stem_stride))
        middle = self.level1(fine)
        coarse = self.level2(middle)
        context = self.context(self.level3(coarse), statistics)
        up = F.interpolate(self.lateral3(context), scale_factor=2, mode="bilinear", align_corners=False)
        return ImageFeatures(self.norm(self.lateral2(coarse) + up), (middle, fine), statistics)


def build_conv_encoder(config: GrounderConfig) -> ConvImageEncoder:
    """The image encoder of a configuration of kind "conv", randomly initialised."""
    sizes = config.conv
    return ConvImageEncoder(
        widths=sizes.widths,
        stem_stride=sizes.stem_stride,
        out_channels=config.embed_dim,
        context=GlobalContext(sizes.widths[3], layers=sizes.context_layers, heads=sizes.context_heads),
    )
