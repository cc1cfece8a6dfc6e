"""Masks of 2-D images: files <-> bool arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from medplib.errors import InputError
from medplib.imaging.files import NIFTI_SUFFIXES, RASTER_SUFFIXES, check_output_file, suffix_of
from medplib.imaging.nifti import read_slice
from medplib.imaging.png import read_plain_png
from medplib.imaging.raster import grey_of, is_transparent, largest_channel, open_raster
from medplib.paths import atomic_path

MaskRule = Literal["gt0", "gt127", "lt128"]
"""Which stored grey values are foreground: above 0, above 127 (masks with soft or lossy edges), below 128 (dark foreground)."""

_FOREGROUND: dict[MaskRule, Callable[[np.ndarray], np.ndarray]] = {
    "gt0": lambda values: values > 0,
    "gt127": lambda values: values > 127,
    "lt128": lambda values: values < 128,
}


def read_mask(path: Path, *, size: tuple[int, int] | None, rule: MaskRule = "gt0") -> np.ndarray:
    """Read a mask.

    The rule applies to the stored value: of colours to the largest channel, so that a mask of any colour counts; 1-bit pictures hold 0
    and 255; transparent pixels are 0 and refused with `lt128`, which would turn them into foreground.

    Args:
        path: PNG, JPEG, TIFF, BMP, or NIfTI with one slice.
        size: (H, W) of the image it belongs to; None when the mask is a patch or its image is not known.
        rule: which values are foreground.

    Returns:
        (H, W) bool.

    Raises:
        InputError: what the readers refuse, an unknown rule, or a mask of another size than `size`.
    """
    if rule not in _FOREGROUND:
        raise InputError(where=path, expected="a mask rule gt0, gt127 or lt128", found=repr(rule))
    values = _stored_values(path, rule)
    if size is not None and values.shape != tuple(size):
        expected, found = f"a mask of {size[0]} x {size[1]} (height x width), as its image", f"{values.shape[0]} x {values.shape[1]}"
        raise InputError(where=path, expected=expected, found=found, remedy="check that the mask belongs to the image")
    return _FOREGROUND[rule](values)


def write_mask_png(mask: np.ndarray, path: Path) -> None:
    """Write a mask as 8-bit grey PNG, 0 and 255: visible in any viewer, and read alike by every rule but `lt128`.

    Args:
        mask: (H, W) bool.
        path: .png; appears whole or not at all.
    """
    check_output_file(path, (".png",))
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        raise InputError(where=path, expected="a bool mask (H, W)", found=f"{mask.dtype} of shape {mask.shape}")
    with atomic_path(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")


def _stored_values(path: Path, rule: MaskRule) -> np.ndarray:
    suffix = suffix_of(path)
    if suffix in NIFTI_SUFFIXES:
        return read_slice(path)[1].values(0)
    if suffix not in RASTER_SUFFIXES:
        expected = "a mask file ending in " + ", ".join(RASTER_SUFFIXES + NIFTI_SUFFIXES)
        raise InputError(where=path, expected=expected, found=f"the suffix {suffix!r}")
    plain = read_plain_png(path)
    if plain is not None:
        return plain if plain.ndim == 2 else largest_channel(plain)
    image = open_raster(path)
    if rule == "lt128" and is_transparent(image):
        remedy = "save it without the alpha channel"
        raise InputError(where=path, expected="an opaque mask for the rule lt128", found="transparent pixels", remedy=remedy)
    return grey_of(image, path)
