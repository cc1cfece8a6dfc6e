"""A contact sheet of masks for TensorBoard: what a stage draws beside what is true, on the first validation batch."""

from __future__ import annotations

import numpy as np

from medplib.imaging.overlay import contact_sheet, overlay_masks
from medplib.types import Batch, GroundingOutput

_COLUMNS = 3
_TILE = 192
"""Smallest side of a tile in pixels."""


def mask_previews(batch: Batch, grounding: GroundingOutput, count: int = 6) -> np.ndarray | None:
    """The first targets of a batch, present and absent, drawn over their images.

    Args:
        batch: with grounder pixels.
        grounding: logits of its N targets; a mask is where they are positive.
        count: most targets shown.

    Returns:
        (height, width, 3) uint8, or None where the batch has no target or no grounder pixels.
    """
    if batch.sam_pixels is None or not batch.names:
        return None
    tiles: list[np.ndarray] = []
    titles: list[str] = []
    for n in range(min(count, len(batch.names))):
        index = int(batch.target_image[n])
        image = batch.sam_pixels[index].permute(1, 2, 0).cpu().numpy()
        truth = (batch.target_masks[n] >= 128).cpu().numpy()
        drawn = np.zeros_like(truth)
        window = batch.letterboxes[index].window  # what lies in the padding is never part of an answer
        drawn[window] = (grounding.mask_logits[n] > 0).cpu().numpy()[window]
        factor = max(1, -(-_TILE // image.shape[0]))
        image, truth, drawn = (a.repeat(factor, axis=0).repeat(factor, axis=1) for a in (image, truth, drawn))
        tiles.append(overlay_masks(image, [("true", truth), ("predicted", drawn)]))
        titles.append(f"{batch.names[n]} ({'present' if bool(batch.target_present[n]) else 'absent'})")
    return contact_sheet(tiles, titles, _COLUMNS)
