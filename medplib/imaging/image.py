"""Any 2-D image file -> RGB pixels with their geometry, dispatched by suffix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medplib.errors import InputError
from medplib.imaging.files import NIFTI_SUFFIXES, RASTER_SUFFIXES, suffix_of
from medplib.imaging.geometry import ImageGeometry
from medplib.imaging.nifti import read_slice
from medplib.imaging.raster import read_raster


@dataclass(frozen=True, eq=False)
class ImageData:
    """A decoded image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        geometry: source and pixel grid, needed to write a mask back.
    """

    pixels: np.ndarray
    geometry: ImageGeometry


def read_image(path: Path) -> ImageData:
    """Read a picture (PNG, JPEG, TIFF, BMP) or a NIfTI file with one slice.

    Grey of more than 8 bits is windowed by the rule of `intensity`; NIfTI slices are shown in the convention of `volume`.

    Raises:
        InputError: an unknown suffix, a NIfTI file with several slices (the error says how to choose one), and what the readers refuse.
    """
    path = Path(path)
    reader = _READERS.get(suffix_of(path))
    if reader is None:
        expected = "an image file ending in " + ", ".join(_READERS)
        raise InputError(where=path, expected=expected, found=f"the suffix {suffix_of(path)!r}", remedy="convert it first")
    return reader(path)


def _read_raster_image(path: Path) -> ImageData:
    pixels = read_raster(path)
    return ImageData(pixels, ImageGeometry(path=path, shape=pixels.shape[:2], affine=None, kind="raster"))


def _read_nifti_image(path: Path) -> ImageData:
    volume, plane = read_slice(path)
    affine = plane.slice_affine(0) if volume.is_oriented else None
    return ImageData(plane.image(0), ImageGeometry(path=path, shape=plane.shape, affine=affine, kind="nifti"))


_READERS: dict[str, Callable[[Path], ImageData]] = {
    **dict.fromkeys(RASTER_SUFFIXES, _read_raster_image),
    **dict.fromkeys(NIFTI_SUFFIXES, _read_nifti_image),
}
