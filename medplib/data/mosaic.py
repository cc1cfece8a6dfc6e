"""Two images side by side, each with its own conversations: the question alone says which half is meant, so text cannot be ignored."""

from __future__ import annotations

import cv2
import numpy as np

from medplib.data.encode import Loaded
from medplib.imaging.grey import from_plane, grey_plane
from medplib.types import Record


def mosaic(left: Loaded, right: Loaded) -> Loaded | None:
    """Join two single-image samples; conversations that the other half would make false are left out.

    Only grounding and region conversations survive (a mosaic has two modalities, so general questions lose their answer). One that
    asks for something is kept when the other half is known not to show it.

    Returns:
        None when nothing is left to ask.
    """
    height = max(left.images[0].shape[0], right.images[0].shape[0])
    sizes = [_scaled(half.images[0].shape[:2], height) for half in (left, right)]
    planes = [grey_plane(half.images[0]) for half in (left, right)]
    both_grey = all(plane is not None for plane in planes)
    halves = zip(planes if both_grey else [half.images[0] for half in (left, right)], sizes, strict=True)
    image = np.concatenate([cv2.resize(np.ascontiguousarray(half), s[::-1], interpolation=cv2.INTER_AREA) for half, s in halves], axis=1)
    records, targets, regions = [], [], []
    for side, (half, other) in enumerate(((left, right), (right, left))):
        for record, masks, own_regions in zip(half.records, half.target_masks, half.region_masks, strict=True):
            if not _stays_true(record, other.records[0]):
                continue
            records.append(record)
            targets.append(tuple(None if m is None else _pasted(m, sizes, side) for m in masks))
            regions.append(tuple(_pasted(m, sizes, side) for m in own_regions))
    return Loaded((from_plane(image) if both_grey else image,), tuple(records), tuple(targets), tuple(regions)) if records else None


def _stays_true(record: Record, other: Record) -> bool:
    if record.meta.task not in ("grounding", "region") or not other.meta.present:
        return False
    return record.meta.task == "region" or not {t.name for t in record.targets} & set(other.meta.present)


def _scaled(size: tuple[int, int], height: int) -> tuple[int, int]:
    return height, max(1, round(size[1] * height / size[0]))


def _pasted(mask: np.ndarray, sizes: list[tuple[int, int]], side: int) -> np.ndarray:
    """The mask of one half on the canvas of both."""
    canvas = np.zeros((sizes[0][0], sizes[0][1] + sizes[1][1]), bool)
    own = cv2.resize(mask.astype(np.uint8), sizes[side][::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    start = 0 if side == 0 else sizes[0][1]
    canvas[:, start : start + sizes[side][1]] = own
    return canvas
