"""Where the pixels of a picture come from: kept beside every image, so that a mask can be written back onto its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np


@dataclass(frozen=True, eq=False)
class ImageGeometry:
    """Source file and pixel grid of a 2-D image.

    Attributes:
        path: the file that was read.
        shape: (H, W) in pixels, as displayed (after EXIF rotation or the flips of a NIfTI slice).
        affine: (4, 4) float64 from (column, row, 0, 1) of the displayed image to millimetres, RAS+ (x to the patient's right,
            y to anterior, z to superior); None when the file says nothing about position.
        kind: `raster` (PNG, JPEG, TIFF, BMP) or `nifti` (a NIfTI file with one slice).
    """

    path: Path
    shape: tuple[int, int]
    affine: np.ndarray | None
    kind: Literal["raster", "nifti"]

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Distance between rows and between columns in mm; None when the file says nothing about position."""
        if self.affine is None:
            return None
        columns, rows = np.linalg.norm(self.affine[:3, :2], axis=0)
        return float(rows), float(columns)
