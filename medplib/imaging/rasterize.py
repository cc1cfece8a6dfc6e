"""Regions that a person points at -> bool masks at image size.

Coordinates: x runs right along the columns, y down along the rows, and pixel centres lie on integers, so pixel (x, y) is
`mask[y, x]` and the image reaches from -0.5 to W - 0.5 and H - 0.5. A pixel belongs to a shape when its centre does. Sizes are (H, W).

The published model marks a point by a square of 41 pixels in an image whose short side was brought to 336. Here it is a disc of the
same extent relative to the image, so that the patches it touches do not depend on the resolution of the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medplib.errors import InputError

Point = tuple[float, float]
POINT_RADIUS = 20 / 336
"""Radius of a point as a fraction of the short side of the image."""

_SMALLEST_RADIUS = math.sqrt(0.5)
"""Half the diagonal of a pixel: the least radius at which a shape always holds the centre of the pixel it lies in."""


def points_mask(points: Sequence[Point], size: tuple[int, int], radius: float | None = None) -> np.ndarray:
    """Discs around points.

    Args:
        points: (x, y) of each point in pixels; at least one.
        size: (H, W) of the image.
        radius: in pixels, at least half a pixel diagonal is used; None takes POINT_RADIUS times the short side.

    Returns:
        (H, W) bool; discs are cut at the border.

    Raises:
        InputError: no point, a point that is not two finite numbers or lies outside the image, or a radius below zero.
    """
    points = _checked_points(points, size, "point", at_least=1)
    radius = POINT_RADIUS * min(size) if radius is None else radius
    mask = np.zeros(size, np.bool_)
    for point in points:
        _stamp(mask, point, point, _checked_radius(radius, "point radius"))
    return mask


def scribble_mask(polyline: Sequence[Point], size: tuple[int, int], width: float | None = None) -> np.ndarray:
    """A stroke: all pixels whose centre is at most half the width away from a line through points.

    Args:
        polyline: (x, y) of each corner in pixels, in drawing order; at least one.
        size: (H, W) of the image.
        width: of the stroke in pixels; None takes POINT_RADIUS times the short side, half as wide as a point.

    Returns:
        (H, W) bool, round at both ends and cut at the border.

    Raises:
        InputError: as `points_mask`.
    """
    points = _checked_points(polyline, size, "scribble point", at_least=1)
    width = POINT_RADIUS * min(size) if width is None else width
    radius = _checked_radius(width / 2, "scribble width")
    mask = np.zeros(size, np.bool_)
    for start, end in zip(points, points[1:] or points, strict=False):
        _stamp(mask, start, end, radius)
    return mask


def box_mask(box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """A filled box, half-open: pixels with x0 <= x < x1 and y0 <= y < y1, so (0, 0, W, H) is the whole image.

    Args:
        box: (x0, y0, x1, y1) in pixels.
        size: (H, W) of the image.

    Returns:
        (H, W) bool.

    Raises:
        InputError: not four finite numbers, corners in the wrong order, a box that leaves the image or holds no pixel centre.
    """
    height, width = _checked_size(size)
    where = f"box {box!r}"
    if len(box) != 4 or not all(_is_finite(value) for value in box):
        raise InputError(where=where, expected="four finite numbers x0, y0, x1, y1", found=repr(box))
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        expected = f"0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}"
        raise InputError(where=where, expected=expected, found=repr(box), remedy="x counts columns and y rows, from the top left")
    mask = np.zeros((height, width), np.bool_)
    mask[math.ceil(y0) : math.ceil(y1), math.ceil(x0) : math.ceil(x1)] = True
    if not mask.any():
        raise InputError(where=where, expected="a box that holds at least one pixel centre", found="a box between pixels")
    return mask


def _stamp(mask: np.ndarray, start: Point, end: Point, radius: float) -> None:
    """Set the pixels of `mask` (H, W) whose centre is within `radius` of the segment, looking only at its surroundings."""
    (height, width), (xa, ya), (xb, yb) = mask.shape, start, end
    left, right = max(0, math.ceil(min(xa, xb) - radius)), min(width - 1, math.floor(max(xa, xb) + radius))
    top, bottom = max(0, math.ceil(min(ya, yb) - radius)), min(height - 1, math.floor(max(ya, yb) + radius))
    y, x = np.mgrid[top : bottom + 1, left : right + 1].astype(np.float64)
    along_x, along_y = xb - xa, yb - ya
    length2 = along_x**2 + along_y**2
    position = np.clip(((x - xa) * along_x + (y - ya) * along_y) / length2, 0.0, 1.0) if length2 else 0.0
    distance2 = (x - xa - position * along_x) ** 2 + (y - ya - position * along_y) ** 2
    mask[top : bottom + 1, left : right + 1] |= distance2 <= radius**2 + 1e-9  # a centre exactly on the rim is in


def _checked_points(points: Sequence[Point], size: tuple[int, int], name: str, *, at_least: int) -> list[Point]:
    height, width = _checked_size(size)
    if len(points) < at_least:
        raise InputError(where=f"{name}s", expected=f"at least {at_least} (x, y)", found="none")
    for point in points:
        if len(point) != 2 or not all(_is_finite(value) for value in point):
            raise InputError(where=name, expected="two finite numbers x, y", found=repr(point))
        if not (-0.5 <= point[0] < width - 0.5 and -0.5 <= point[1] < height - 0.5):
            expected = f"x from 0 to {width - 1} and y from 0 to {height - 1} (image of {width} columns and {height} rows)"
            raise InputError(where=name, expected=expected, found=repr(tuple(point)))
    return [(float(x), float(y)) for x, y in points]


def _checked_radius(radius: float, name: str) -> float:
    if not _is_finite(radius) or radius < 0:
        raise InputError(where=name, expected="a finite number of pixels, not below 0", found=repr(radius))
    return max(float(radius), _SMALLEST_RADIUS)


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise InputError(where="image size", expected="(H, W) of at least one pixel", found=repr(size))
    return int(size[0]), int(size[1])


def _is_finite(value: float) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value)
