"""Between the square grounder input and the original image: which pixels are image, and masks back to the original size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F

from medplib.models.precision import full_precision
from medplib.types import Letterbox


def valid_mask(letterboxes: Sequence[Letterbox], device: torch.device | str = "cpu") -> torch.Tensor:
    """(I, S, S) bool, true where the letterboxed square holds image and not padding. All letterboxes have the same size S."""
    size = letterboxes[0].size if letterboxes else 0
    bounds = [(box.pad[0], box.pad[0] + box.resized_size[0], box.pad[1], box.pad[1] + box.resized_size[1]) for box in letterboxes]
    top, bottom, left, right = torch.tensor(bounds, device=device).reshape(-1, 4, 1).unbind(1)
    cells = torch.arange(size, device=device)
    rows, columns = (cells >= top) & (cells < bottom), (cells >= left) & (cells < right)
    return rows[:, :, None] & columns[:, None, :]


def unpad_resize(mask_logits: torch.Tensor, letterboxes: Sequence[Letterbox], image_index: torch.Tensor) -> list[torch.Tensor]:
    """Bring masks from the square grounder input to the original size of their images.

    The order matters: `mask_logits` are already at the S x S scale in which the letterbox is expressed; only then can the padding be cut,
    and only what is left may be resized. Cutting a lower-resolution map with these numbers distorts every image that is not square.

    Args:
        mask_logits: (N, S, S).
        letterboxes: of the I images.
        image_index: (N,) index into `letterboxes`.

    Returns:
        N tensors (H, W), bilinear without corner alignment.
    """
    masks = []
    for logits_SS, image in zip(mask_logits, image_index.tolist(), strict=True):
        box = letterboxes[image]
        rows, columns = box.window
        masks.append(resized(logits_SS[None, rows, columns], box.original_size)[0])
    return masks


def published_unpad_resize(low_res_logits: torch.Tensor, letterboxes: Sequence[Letterbox], image_index: torch.Tensor) -> list[torch.Tensor]:
    """What the published code makes of low-resolution masks (bug B1), to reproduce its figures; only right for square images.

    It cuts a window of the size that the image has in the S x S square out of the s x s map: starts are negative then and count from the
    end, or reach beyond it and cut nothing.

    Args:
        low_res_logits: (N, s, s).
        letterboxes: of the I images.
        image_index: (N,) index into `letterboxes`.

    Returns:
        N tensors (H, W).
    """
    masks = []
    for logits_ss, image in zip(low_res_logits, image_index.tolist(), strict=True):
        box = letterboxes[image]
        rows, columns = (slice(start, start + n) for n in box.resized_size for start in ((logits_ss.shape[-1] - n) // 2,))
        masks.append(resized(logits_ss[None, rows, columns], box.original_size)[0])
    return masks


def resized(maps_Nhw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps (N, h, w) at another size (N, H, W), bilinear without corner alignment, as torch's `interpolate` gives them.

    With gradients on a CPU the rows and columns are weighted by two matrix products, whose way back takes a tenth of the time.
    """
    if maps_Nhw.device.type != "cpu" or not maps_Nhw.requires_grad or maps_Nhw.shape[-2:] == size:
        return F.interpolate(maps_Nhw[None], size=size, mode="bilinear", align_corners=False)[0]
    rows_Hh, columns_Ww = (_weights(n, m) for n, m in zip(maps_Nhw.shape[-2:], size, strict=True))
    with full_precision(maps_Nhw.device):
        wide = maps_Nhw.float().flatten(0, 1) @ columns_Ww.T
        return (rows_Hh @ wide.unflatten(0, maps_Nhw.shape[:2])).to(maps_Nhw.dtype)


@lru_cache(maxsize=16)
def _weights(source: int, target: int) -> torch.Tensor:
    """(target, source) float32: what every source cell adds to each target cell."""
    return F.interpolate(torch.eye(source, device="cpu")[None], size=target, mode="linear", align_corners=False)[0].T.contiguous()
