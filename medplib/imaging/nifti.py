"""NIfTI files -> `Volume`, and masks back onto the grid of their source (nibabel does the format).

Values: slope and intercept are applied. NaN and minus infinity become the lowest finite value, plus infinity the highest; how many is
logged. A fourth dimension of one is dropped; more than one volume, RGB and complex data are refused.
"""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medplib.errors import InputError
from medplib.imaging.files import NIFTI_SUFFIXES, check_input_file, check_output_file, suffix_of
from medplib.imaging.geometry import ImageGeometry
from medplib.imaging.volume import Plane, Volume
from medplib.paths import atomic_path

logger = logging.getLogger(__name__)

EXPECTED = "a NIfTI file (.nii or .nii.gz) with one scalar volume"
MAX_VOXELS = 2**31
"""Refuse headers that promise more: 8 GiB as float32, far above any scan, and what a damaged header easily claims."""

_READING_ERRORS = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
_GEOMETRY_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def read_volume(path: Path) -> Volume:
    """Read a volume (or a single slice, as a volume of one) in the axis order of the file.

    Args:
        path: .nii or .nii.gz, NIfTI-1 or NIfTI-2.

    Raises:
        InputError: missing, truncated, corrupt or empty file, another format, more than one volume, RGB or complex data, no finite
            value, or an affine that is singular or not finite.
    """
    path = Path(path)
    check_input_file(path, EXPECTED)
    if suffix_of(path) not in NIFTI_SUFFIXES:
        raise InputError(where=path, expected=EXPECTED, found=f"the suffix {suffix_of(path)!r}")
    try:
        image = nib.load(path)
        _check_header(image, path)
        data = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except _READING_ERRORS as error:
        found = f"a truncated or corrupt file, or another format ({error or type(error).__name__})"
        raise InputError(where=path, expected=EXPECTED, found=found, remedy="copy or convert it again") from error
    shape = (*image.shape, 1, 1)[:3]
    return Volume(path=path, data=_finite(data.reshape(shape), path), affine=np.asarray(image.affine, np.float64), header=image.header)


def read_slice(path: Path) -> tuple[Volume, Plane]:
    """Read a NIfTI file that holds one 2-D image.

    Returns:
        The volume, and the plane along its only axis of length one: `plane.image(0)` is the picture.

    Raises:
        InputError: as `read_volume`; also a volume of several slices, or one that is a single row of voxels.
    """
    volume = read_volume(path)
    single = [axis for axis in (0, 1, 2) if volume.shape[axis] == 1]
    if len(single) != 1:
        remedy = "read it as a volume and choose an axis (axial, coronal, sagittal, 0, 1 or 2) and a slice"
        found = f"a volume of {' x '.join(str(n) for n in volume.shape)} voxels"
        raise InputError(where=path, expected="one 2-D image (exactly one axis of length 1)", found=found, remedy=remedy)
    return volume, volume.plane(single[0])


def write_mask_nifti(mask: np.ndarray, like: Volume, path: Path) -> None:
    """Write a mask onto the grid of its source: uint8 0 and 1, shape, affine, both transform codes, zooms and units as in the source.

    Nothing else of the source's header is copied: its free-text fields and extensions may name the patient.

    Args:
        mask: (X, Y, Z) bool.
        like: the volume that was segmented.
        path: .nii or .nii.gz; appears whole or not at all.
    """
    if mask.shape != like.shape or mask.dtype != np.bool_:
        found = f"{mask.dtype} of shape {mask.shape}"
        raise InputError(where=path, expected=f"a bool mask of shape {like.shape}, as {like.path.name}", found=found)
    header = type(like.header)()
    for field in _GEOMETRY_FIELDS:
        header[field] = like.header[field]
    _save(mask.reshape(like.header.get_data_shape()), like.affine, header, path)


def write_mask_nifti_2d(mask: np.ndarray, geometry: ImageGeometry, path: Path) -> None:
    """Write the mask of a 2-D image as NIfTI.

    A mask of a NIfTI source goes back onto the grid of that file. A picture has no position: its mask has i = column, j = row and one
    slice, unit voxels, and x and y of the affine negated. That is the identity of the LPS coordinates of DICOM and ITK, so viewers in
    radiological convention show the mask as the picture is shown, and reading it back here gives (H, W) as it was. The header's
    description says that the source holds no geometry; units are left unknown, transform codes are 2 (aligned to another file).

    Args:
        mask: (H, W) bool.
        geometry: of the image that was segmented.
        path: .nii or .nii.gz; appears whole or not at all.
    """
    if mask.shape != geometry.shape or mask.dtype != np.bool_:
        found = f"{mask.dtype} of shape {mask.shape}"
        raise InputError(where=path, expected=f"a bool mask of shape {geometry.shape}, as {geometry.path.name}", found=found)
    if geometry.kind == "nifti":
        volume, plane = read_slice(geometry.path)
        mask_XYZ = np.zeros(volume.shape, np.bool_)
        plane.put(mask_XYZ, 0, mask)
        write_mask_nifti(mask_XYZ, volume, path)
        return
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    header = nib.Nifti1Header()
    header.set_data_shape((mask.shape[1], mask.shape[0], 1))
    header.set_qform(affine, code=2)
    header.set_sform(affine, code=2)
    header["descrip"] = "no geometry in source; i = column, j = row"
    _save(mask.T[..., None], affine, header, path)


def _save(mask: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header, path: Path) -> None:
    check_output_file(path, NIFTI_SUFFIXES)
    header.set_data_dtype(np.uint8)
    header["cal_min"], header["cal_max"] = 0, 1
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # passing the affine the header already holds makes nibabel leave both transforms as they are
    image = image_class(mask.astype(np.uint8), affine, header)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _check_header(image: nib.spatialimages.SpatialImage, path: Path) -> None:
    """Refuse what cannot become one scalar volume, before any voxel is read."""
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(where=path, expected=EXPECTED, found=f"another format ({type(image).__name__})")
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) < 2 or 0 in shape or int(np.prod(shape, dtype=object)) > MAX_VOXELS:
        raise InputError(where=path, expected=f"2 or 3 dimensions and 1 to {MAX_VOXELS} voxels", found=f"shape {shape}")
    if any(length > 1 for length in shape[3:]):
        remedy = "split it into one file per volume"
        raise InputError(where=path, expected="one volume (3 dimensions)", found=f"{len(shape)} dimensions, shape {shape}", remedy=remedy)
    if dtype.names is not None or dtype.kind not in "iuf":
        found = "RGB colour" if dtype.names is not None else f"{dtype} numbers"
        raise InputError(where=path, expected="real scalar voxels", found=found, remedy="convert it to a scalar volume")
    affine = image.affine
    sizes = nib.affines.voxel_sizes(affine)
    if not np.isfinite(affine).all() or sizes.min() <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * sizes.prod():
        found = "one that is singular or not finite"
        raise InputError(where=path, expected="an invertible affine", found=found, remedy="repair the qform or sform of the file")


def _finite(data: np.ndarray, path: Path) -> np.ndarray:
    """The data with NaN and infinities replaced as the module text says; the input itself when there are none."""
    finite = np.isfinite(data)
    count = int(data.size - finite.sum())
    if not count:
        return data
    if count == data.size:
        raise InputError(where=path, expected="finite voxel values", found="only NaN or infinite ones")
    low, high = float(data[finite].min()), float(data[finite].max())
    logger.warning("%s: replaced %d NaN or infinite voxels of %d by the range %g..%g of the others", path, count, data.size, low, high)
    return np.nan_to_num(data, nan=low, neginf=low, posinf=high)
