"""Real volumes and masks; skipped where the folder of shared data is not at hand."""

import csv
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medplib.errors import InputError
from medplib.imaging.image import read_image
from medplib.imaging.mask import read_mask
from medplib.imaging.nifti import read_volume, write_mask_nifti
from medplib.imaging.volume import check_same_grid

SHARED = Path(os.environ.get("MEDPLIB_SHARED", Path(__file__).resolve().parents[3].parent / "shared")) / "data"
FOLDERS = ("nibabel", "niivue_images", "dicom2nifti", "sct_testing_data")
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data (set MEDPLIB_SHARED)")


def volumes():
    files = sorted(path for folder in FOLDERS for path in (SHARED / folder).rglob("*.nii*"))
    return [pytest.param(path, id=str(path.relative_to(SHARED))) for path in files]


@pytest.mark.parametrize("path", volumes())
def test_threshold_by_slices_equals_threshold_by_voxels(path, tmp_path):
    source = nib.load(path)
    if any(length > 1 for length in source.shape[3:]):
        with pytest.raises(InputError, match="4 dimensions"):
            read_volume(path)
        return
    volume = read_volume(path)
    threshold = np.median(volume.data) if volume.data.min() < np.median(volume.data) else 0.5
    for name in ("axial", "coronal", "sagittal"):
        plane = volume.plane(name)
        mask = np.zeros(volume.shape, np.bool_)
        for k in range(len(plane)):
            plane.put(mask, k, plane.values(k) > threshold)
        np.testing.assert_array_equal(mask, volume.data > threshold)
    write_mask_nifti(mask, volume, tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    assert written.affine.tobytes() == source.affine.tobytes()
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.header["pixdim"][:4], source.header["pixdim"][:4])
    for field in ("qform_code", "sform_code", "xyzt_units", "quatern_b", "qoffset_x", "srow_x"):
        np.testing.assert_array_equal(written.header[field], source.header[field])
    np.testing.assert_array_equal(np.asarray(written.dataobj).reshape(mask.shape), mask)


def rows(name, one_per):
    if not (SHARED / name).is_file():
        return []
    with open(SHARED / name, newline="") as file:
        found = {row[one_per]: row for row in csv.DictReader(file)}
    return [pytest.param(row, id=key) for key, row in found.items()]


@pytest.mark.parametrize("row", rows("manifest_2d.csv", "source"))
def test_pictures_and_masks_of_every_source(row):
    image = read_image(SHARED / row["image"])
    assert image.geometry.shape == (int(row["height"]), int(row["width"]))
    size = None if row["offset_left_top"] else image.geometry.shape
    mask = read_mask(SHARED / row["mask"], size=size, rule=row["mask_rule"])
    if size is not None and "instance" not in row["label"]:
        assert mask.mean() == pytest.approx(float(row["fg_fraction"]), abs=0.01)


@pytest.mark.parametrize("row", rows("manifest_3d.csv", "image"))
def test_label_volumes_lie_on_their_scans(row):
    check_same_grid(read_volume(SHARED / row["image"]), read_volume(SHARED / row["label_volume"]))
