"""A 3-D image with its geometry, and its display slices along any axis with an exact way back.

Display convention (radiological): rows run downwards to posterior in axial slices and to inferior in coronal and sagittal ones;
columns run rightwards to the patient's left in axial and coronal slices and to posterior in sagittal ones. In RAS+ coordinates
(nibabel's) all six directions are decreasing, so one rule serves every plane. Volumes that are oblique use the nearest axes
(nibabel's `io_orientation`); nothing is interpolated, a slice is a plane of voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from medplib.errors import InputError
from medplib.imaging.grey import from_plane
from medplib.imaging.intensity import Window, apply_window, check_window, find_window

logger = logging.getLogger(__name__)

PlaneName = Literal["axial", "coronal", "sagittal"]
Axis = PlaneName | Literal[0, 1, 2]

# by RAS axis that the slice index follows: name, RAS axis of the rows, RAS axis of the columns
_PLANES = (("sagittal", 2, 1), ("coronal", 2, 0), ("axial", 1, 0))
_NAMES = tuple(name for name, _, _ in _PLANES)


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar volume in the axis order of its file.

    Attributes:
        path: the file that was read.
        data: (X, Y, Z) float32, slope and intercept applied, all finite.
        affine: (4, 4) float64 from voxel indices to millimetres, RAS+: the sform where its code is set, else the qform.
        header: header of the file; what `write_mask_nifti` copies geometry from.
    """

    path: Path
    data: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) in voxels."""
        return self.data.shape

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z in mm, from the affine (the header's own zooms may disagree with it)."""
        x, y, z = (float(size) for size in nib.affines.voxel_sizes(self.affine))
        return x, y, z

    @property
    def is_oriented(self) -> bool:
        """Whether the file says how the voxels lie in the patient (a qform or sform code is set)."""
        return int(self.header["qform_code"]) > 0 or int(self.header["sform_code"]) > 0

    @cached_property
    def window(self) -> Window:
        """The default intensity window of the whole volume, so that all slices are comparable (rule in `intensity`)."""
        return find_window(self.data)

    def plane(self, axis: Axis, *, window: Window | None = None) -> Plane:
        """The display slices of the volume along one axis.

        Args:
            axis: `axial`, `coronal` or `sagittal` (the nearest voxel axis is taken), or a voxel axis 0, 1, 2 of the file.
            window: lowest and highest value shown, in the unit of the data; None takes `self.window`.

        Raises:
            InputError: an unknown axis, a bad window, or an anatomical name where the file does not say how it is oriented.
        """
        orientation = nib.io_orientation(self.affine)
        ras_of_voxel_axis = [int(ras) for ras in orientation[:, 0]]
        voxel_axis = self._voxel_axis(axis, ras_of_voxel_axis)
        name, row_ras, column_ras = _PLANES[ras_of_voxel_axis[voxel_axis]]
        rows, columns = ras_of_voxel_axis.index(row_ras), ras_of_voxel_axis.index(column_ras)
        return Plane(
            volume=self,
            name=name,
            axes=(voxel_axis, rows, columns),
            flips=(bool(orientation[rows, 1] > 0), bool(orientation[columns, 1] > 0)),
            window=self.window if window is None else check_window(window, where=f"window of {self.path}"),
        )

    def _voxel_axis(self, axis: Axis, ras_of_voxel_axis: list[int]) -> int:
        if axis in _NAMES:
            if not self.is_oriented:
                remedy = "choose a voxel axis 0, 1 or 2, or set the orientation of the file"
                raise InputError(
                    where=self.path, expected=f"a known orientation for '{axis}'", found="qform and sform codes of 0", remedy=remedy
                )
            return ras_of_voxel_axis.index(_NAMES.index(axis))
        if axis in (0, 1, 2):
            if not self.is_oriented:
                logger.warning("%s: no orientation given; slices are shown as if the first axis ran to the patient's left", self.path)
            return int(axis)
        raise InputError(where=f"axis of {self.path}", expected="axial, coronal, sagittal, 0, 1 or 2", found=repr(axis))


@dataclass(frozen=True, eq=False)
class Plane:
    """All slices of a volume along one axis, seen in the display convention of this module; index k counts in file order.

    Attributes:
        volume: where the slices come from.
        name: the anatomical plane nearest to the slices.
        axes: voxel axes of (slice index, display rows, display columns).
        flips: whether the rows and the columns run against the voxel index.
        window: intensity window of every slice.
    """

    volume: Volume
    name: PlaneName
    axes: tuple[int, int, int]
    flips: tuple[bool, bool]
    window: Window

    def __len__(self) -> int:
        return self.volume.shape[self.axes[0]]

    def __iter__(self) -> Iterator[np.ndarray]:
        """`image(k)` of every slice, k ascending."""
        return (self.image(k) for k in range(len(self)))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of a slice in pixels."""
        return self.volume.shape[self.axes[1]], self.volume.shape[self.axes[2]]

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance between rows and between columns in mm."""
        return self.volume.zooms[self.axes[1]], self.volume.zooms[self.axes[2]]

    @property
    def square_shape(self) -> tuple[int, int]:
        """(H, W) of a slice in square pixels of the finer of its two spacings; equal to `shape` where both are the same."""
        finest = min(self.spacing)
        return round(self.shape[0] * self.spacing[0] / finest), round(self.shape[1] * self.spacing[1] / finest)

    @property
    def slice_spacing(self) -> float:
        """Distance between neighbouring slices in mm."""
        return self.volume.zooms[self.axes[0]]

    def view(self, array: np.ndarray, k: int) -> np.ndarray:
        """The display slice k (H, W) of any (X, Y, Z) array, as a view: assigning to it changes `array`, which is the exact inverse.

        Raises:
            InputError: no such slice, or an array of another shape.
        """
        if array.shape != self.volume.shape:
            raise InputError(where=self.volume.path, expected=f"an array of shape {self.volume.shape}", found=f"shape {array.shape}")
        if not 0 <= k < len(self):
            found = f"slice {k}"
            raise InputError(where=self.volume.path, expected=f"a {self.name} slice from 0 to {len(self) - 1}", found=found)
        rows, columns = (slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return np.transpose(array, self.axes)[k, rows, columns]

    def values(self, k: int) -> np.ndarray:
        """Slice k in the unit of the data, (H, W) float32."""
        return np.ascontiguousarray(self.view(self.volume.data, k))

    def image(self, k: int) -> np.ndarray:
        """Slice k as a grey picture, (H, W, 3) uint8, windowed."""
        return from_plane(apply_window(self.view(self.volume.data, k), self.window))

    def put(self, mask_XYZ: np.ndarray, k: int, mask_HW: np.ndarray) -> None:
        """Write the display mask (H, W) of slice k into `mask_XYZ` (X, Y, Z), in place."""
        if mask_HW.shape != self.shape:
            raise InputError(where=self.volume.path, expected=f"a slice mask of shape {self.shape}", found=f"shape {mask_HW.shape}")
        self.view(mask_XYZ, k)[...] = mask_HW

    def affine(self) -> np.ndarray:
        """(4, 4) float64 from (column, row, k, 1) of the display slices to millimetres, RAS+."""
        voxel_of_display = np.zeros((4, 4))
        voxel_of_display[3, 3] = 1.0
        voxel_of_display[self.axes[0], 2] = 1.0
        for display_axis, voxel_axis, flip in ((1, self.axes[1], self.flips[0]), (0, self.axes[2], self.flips[1])):
            voxel_of_display[voxel_axis, display_axis] = -1.0 if flip else 1.0
            voxel_of_display[voxel_axis, 3] = self.volume.shape[voxel_axis] - 1 if flip else 0.0
        return self.volume.affine @ voxel_of_display

    def slice_affine(self, k: int) -> np.ndarray:
        """(4, 4) float64 from (column, row, 0, 1) of display slice k to millimetres, RAS+."""
        affine = self.affine()
        affine[:, 3] += k * affine[:, 2]
        return affine


def check_same_grid(volume: Volume, other: Volume) -> None:
    """Raise an InputError unless both volumes have the same shape and (to a hundredth of a voxel at every corner) the same affine.

    Args:
        volume: the reference, for example the scan.
        other: what must lie on the same voxels, for example its label volume; named in the error.
    """
    if other.shape != volume.shape:
        expected = f"the shape {volume.shape} of {volume.path.name}"
        raise InputError(where=other.path, expected=expected, found=f"shape {other.shape}", remedy="resample one onto the other")
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * np.append(np.subtract(volume.shape, 1), 1)
    distance = np.linalg.norm((corners @ (other.affine - volume.affine).T)[:, :3], axis=1).max()
    if distance > 0.01 * min(volume.zooms):
        found = f"corners up to {distance:.3g} mm away"
        raise InputError(where=other.path, expected=f"the affine of {volume.path.name}", found=found, remedy="resample one onto the other")
