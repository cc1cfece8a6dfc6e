"""Grey images as one plane: three equal channels need not be stored, changed or resized three times."""

from __future__ import annotations

import numpy as np


def grey_plane(pixels: np.ndarray) -> np.ndarray | None:
    """One plane (H, W) of an image (H, W, 3) whose channels are equal; None when they differ.

    Views of `from_plane` are told at once, most colour images by a few rows.
    """
    if pixels.strides[2] and not all(_channels_equal(rows) for rows in (pixels[::64], pixels)):
        return None
    return np.ascontiguousarray(pixels[..., 0])


def from_plane(plane: np.ndarray) -> np.ndarray:
    """A grey image (H, W, 3), a view of its plane (H, W) that cannot be written to."""
    return np.broadcast_to(plane[..., None], (*plane.shape, 3))


def _channels_equal(pixels: np.ndarray) -> bool:
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())
