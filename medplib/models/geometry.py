"""Between the square grounder input and the original image: which pixels are image, and masks back to the original size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

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
        masks.append(_resize(logits_SS[rows, columns], box.original_size))
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
        masks.append(_resize(logits_ss[rows, columns], box.original_size))
    return masks


def _resize(logits_HW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits_HW[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
