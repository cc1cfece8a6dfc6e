"""segment-anything's image encoder, unforked, with SAM-Med2D's adapters as a wrapper around each block's MLP.

The adapter follows SAM-Med2D (arXiv 2308.16184): a channel gate and a strided convolution pair beside the MLP. Names of its weights are
mapped to the published ones and back by `sam_med2d_keys` and `official_sam_key`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from medplib.models.config_grounding import GrounderConfig
from medplib.models.features import ImageFeatures

ADAPTER_RATIO = 0.25


class Adapter(nn.Module):
    """SAM-Med2D's adapter: gate channels by their global mean, refine at half resolution, add, normalise. No biases.

    Args:
        width: channels of the encoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * ADAPTER_RATIO)
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid())
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) with even H and W -> (B, H, W, C)."""
        gate_BC = self.channel(x_BHWC.mean(dim=(1, 2)))
        gated_BCHW = (x_BHWC * gate_BC[:, None, None]).permute(0, 3, 1, 2)
        return self.norm(x_BHWC + self.spatial(gated_BCHW).permute(0, 2, 3, 1))


class AdapterMLP(nn.Module):
    """Stands where a block's MLP stood; the block then computes x + mlp(n) + adapter(n) with n = LayerNorm2(x)."""

    def __init__(self, mlp: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.mlp, self.adapter = mlp, adapter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.mlp(x) + self.adapter(x)


class SamImageEncoder(nn.Module):
    """A ViT image encoder behind the interface shared by all image encoders.

    Args:
        vit: segment-anything's ImageEncoderViT, possibly with AdapterMLPs in its blocks.
    """

    def __init__(self, vit: ImageEncoderViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, pixels: torch.Tensor, statistics: torch.Tensor) -> ImageFeatures:
        """Normalised pixels (I, 3, S, S), statistics (I, 6; passed through) -> features without skips."""
        return ImageFeatures(self.vit(pixels), (), statistics)


def build_sam_encoder(config: GrounderConfig) -> SamImageEncoder:
    """The image encoder of a configuration of kind "sam", randomly initialised."""
    sizes = config.vit
    vit = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=sizes.patch_size,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        out_chans=config.embed_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=sizes.window_size,
        global_attn_indexes=sizes.global_blocks,
    )
    if sizes.adapter:
        for block in vit.blocks:
            block.mlp = AdapterMLP(block.mlp, Adapter(sizes.width))
    # segment-anything leaves the positions at zero because it only ever loads them; from scratch they need to differ.
    nn.init.trunc_normal_(vit.pos_embed, std=0.02)
    return SamImageEncoder(vit)


_BLOCK = r"image_encoder\.blocks\.(\d+)\."
_OUR_BLOCK = r"image_encoder\.vit\.blocks\.(\d+)\."


def sam_med2d_keys(official: Iterable[str]) -> dict[str, str]:
    """Map the weight names of a SAM or SAM-Med2D checkpoint to those of PixelGrounder.

    Args:
        official: all names of the checkpoint, without a common prefix. Adapters are recognised by their presence among them.

    Returns:
        official name -> our name, one entry per given name, in the given order.
    """
    names = list(official)
    adapted = {found.group(1) for name in names if (found := re.match(_BLOCK + r"Adapter\.", name))}
    return {name: _our_key(name, adapted) for name in names}


def _our_key(name: str, adapted: set[str]) -> str:
    if not (found := re.match(_BLOCK, name)):
        return re.sub(r"^image_encoder\.", "image_encoder.vit.", name)
    block, rest = found.group(1), name[found.end() :]
    if block in adapted:
        rest = re.sub(r"^mlp\.", "mlp.mlp.", rest)
        rest = re.sub(r"^Adapter\.", "mlp.adapter.", rest)
    return f"image_encoder.vit.blocks.{block}.{rest}"


def official_sam_key(ours: str) -> str:
    """The inverse of `sam_med2d_keys` for one weight name of PixelGrounder."""
    if not (found := re.match(_OUR_BLOCK, ours)):
        return re.sub(r"^image_encoder\.vit\.", "image_encoder.", ours)
    rest = ours[found.end() :]
    rest = re.sub(r"^mlp\.mlp\.", "mlp.", rest)
    rest = re.sub(r"^mlp\.adapter\.", "Adapter.", rest)
    return f"image_encoder.blocks.{found.group(1)}.{rest}"
