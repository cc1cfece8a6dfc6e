"""Surface Dice: the share of two outlines that lies within a tolerance of the other one (NSD, arXiv 1809.04430, counted in pixels).

An outline is what erosion by the cross (4 neighbours in 2-D, 6 in 3-D) takes away; beyond the border of the image there is background.
Distances run between centres of outline pixels and are compared in float32. Both as MONAI's `compute_surface_dice`, value for value; but no
distance is computed: an outline is widened by the ball of the tolerance, and what the other outline has inside it is counted.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, isfinite, prod

import numpy as np

from medplib.errors import InputError

Runs = tuple[tuple[tuple[int, ...], int], ...]
"""A ball as rows along the last axis: offsets along the other axes, and how far the row reaches either way; shortest rows first."""


def surface_dice(
    prediction: np.ndarray, target: np.ndarray, *, tolerance: float, spacing: tuple[float, ...] | None = None, empty: float
) -> float:
    """Outline pixels of both masks that lie within `tolerance` of the other's outline / outline pixels of both masks.

    Memory and time grow with the tolerance in pixels; made for tolerances of a few pixels.

    Args:
        prediction: (H, W) or (X, Y, Z) bool.
        target: bool of the same shape.
        tolerance: in the unit of `spacing`; a distance equal to it is within.
        spacing: distance between neighbours along each axis in mm; None = 1 pixel.
        empty: the value where both masks are empty; it is 0 where one is.

    Returns:
        A fraction of 1.

    Raises:
        InputError: shapes differ, a mask is not bool of two or three axes, or tolerance or spacing is not a finite number that makes sense.
    """
    _check(prediction, target, tolerance, spacing)
    runs = _ball(float(tolerance), spacing or (1.0,) * target.ndim)
    box = _box(prediction, target)
    if box is None:
        return empty
    size = [edge.stop - edge.start for edge in box]
    # A shift by the crop's size or more moves everything out of it.
    runs = tuple((o, min(width, size[-1] - 1)) for o, width in runs if all(abs(step) < n for step, n in zip(o, size, strict=False)))
    # Masks are shifted as flat arrays; what leaves a row lands in the zeros behind it.
    reach = [*(max(o[axis] for o, _ in runs) for axis in range(target.ndim - 1)), runs[-1][1]]
    padded = [n + max(1, r) for n, r in zip(size, reach, strict=True)]
    strides = [prod(padded[axis + 1 :]) for axis in range(target.ndim)]
    first, second = (_outline(mask[box], padded, strides) for mask in (prediction, target))
    total = np.count_nonzero(first) + np.count_nonzero(second)
    within = np.count_nonzero(_widened(first, runs, strides) & second) + np.count_nonzero(_widened(second, runs, strides) & first)
    return within / total


@lru_cache(maxsize=256)  # images of one data set share spacings
def _ball(tolerance: float, spacing: tuple[float, ...]) -> Runs:
    """All offsets whose length in float32 is at most the tolerance in float32."""
    reach = [ceil(tolerance / step) for step in spacing]
    offsets = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"))
    length = np.sqrt(sum(np.square(axis * step) for axis, step in zip(offsets, spacing, strict=True)))
    inside = length.astype(np.float32) <= np.float32(tolerance)
    widths = (inside.sum(axis=-1) - 1) // 2  # rows are symmetric around their middle
    rows = [(tuple(int(i) - r for i, r in zip(at, reach, strict=False)), int(widths[at])) for at in np.ndindex(widths.shape)]
    return tuple(sorted((row for row in rows if row[1] >= 0), key=lambda row: row[1]))


def _box(first: np.ndarray, second: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds both masks; None where both are empty."""
    left, box = first | second, []
    while left.ndim:
        used = np.flatnonzero(left.reshape(len(left), -1).any(axis=1))
        if not used.size:
            return None
        box.append(slice(int(used[0]), int(used[-1]) + 1))
        left = left[box[-1]].any(axis=0)
    return tuple(box)


def _outline(mask: np.ndarray, padded: list[int], strides: list[int]) -> np.ndarray:
    """The outline of a mask as a flat array of shape `padded`, the mask at its start and zeros behind it along every axis."""
    whole = np.zeros(padded, np.bool_)
    whole[tuple(slice(n) for n in mask.shape)] = mask
    flat = whole.reshape(-1)
    inside = flat.copy()
    for step in strides:
        inside[step:] &= flat[:-step]
        inside[:step] = False
        inside[:-step] &= flat[step:]
    return flat ^ inside


def _widened(outline: np.ndarray, runs: Runs, strides: list[int]) -> np.ndarray:
    """Everything within the ball `runs` of a flat outline."""
    out, row, reached = np.zeros_like(outline), outline.copy(), 0
    for offsets, width in runs:
        for step in range(reached + 1, width + 1):
            row[step:] |= outline[:-step]
            row[:-step] |= outline[step:]
        reached = width
        shift = sum(o * stride for o, stride in zip(offsets, strides, strict=False))
        if shift > 0:
            out[shift:] |= row[:-shift]
        elif shift < 0:
            out[:shift] |= row[-shift:]
        else:
            out |= row
    return out


def _check(prediction: np.ndarray, target: np.ndarray, tolerance: float, spacing: tuple[float, ...] | None) -> None:
    where = "surface Dice"
    for mask in (prediction, target):
        if mask.dtype != np.bool_ or mask.ndim not in (2, 3):
            raise InputError(where=where, expected="masks of bool with two or three axes", found=f"{mask.dtype} {mask.shape}")
    if prediction.shape != target.shape:
        raise InputError(where=where, expected=f"a prediction of the target's shape {target.shape}", found=str(prediction.shape))
    if not (isfinite(tolerance) and tolerance >= 0):
        raise InputError(where=where, expected="a finite tolerance of at least 0", found=str(tolerance))
    if spacing is not None and (len(spacing) != target.ndim or not all(isfinite(step) and step > 0 for step in spacing)):
        raise InputError(where=where, expected=f"{target.ndim} finite spacings above 0", found=str(spacing))
