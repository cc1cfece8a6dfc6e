"""Grey values of any range -> 8 bit. One rule for volumes, 16-bit and float pictures, so that nothing is guessed from the values.

The window runs from the 0.5th to the 99.5th percentile of all values. Where these two coincide (a few bright spots on an even ground)
it runs from minimum to maximum; a constant input becomes all zeros. No unit is inferred: a window in Hounsfield units is asked for
explicitly.
"""

from __future__ import annotations

import math

import numpy as np

from medplib.errors import InputError

PERCENTILES = (0.5, 99.5)

Window = tuple[float, float]
"""Lowest and highest value shown, in the unit of the data; `lo` becomes 0 and `hi` 255."""


def find_window(values: np.ndarray) -> Window:
    """The default window of `values` (any shape, finite numbers); see the module text for the rule."""
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def check_window(window: Window, *, where: str) -> Window:
    """The same window as floats; an InputError unless both ends are finite and the first is below the second."""
    if len(window) != 2 or not all(math.isfinite(end) for end in window) or not window[0] < window[1]:
        raise InputError(where=where, expected="a window of two finite numbers, lowest first", found=repr(tuple(window)))
    return float(window[0]), float(window[1])


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Map `values` (any shape) linearly to uint8: `lo` and below to 0, `hi` and above to 255, rounded to nearest."""
    low, high = window
    if not low < high:  # constant input
        return np.zeros(values.shape, np.uint8)
    # float64: float32 would lose the low bits of 32-bit integers before the offset is subtracted
    fraction = (np.asarray(values, np.float64) - low) / (high - low)
    return (np.clip(fraction, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
