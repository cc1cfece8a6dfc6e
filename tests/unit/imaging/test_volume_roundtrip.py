"""Every orientation, every plane: what is segmented in display slices comes back on the voxels it was seen on."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from medplib.errors import InputError
from medplib.imaging.nifti import read_volume, write_mask_nifti
from medplib.imaging.volume import check_same_grid

ORIENTATIONS = ["".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)]
PLANES = ("axial", "coronal", "sagittal", 0, 1, 2)
# RAS landmarks of the phantom: value -> voxel in RAS order (x right, y anterior, z superior)
LANDMARKS = {50: "centre", 100: "right", 150: "anterior", 200: "superior"}


def rotation(degrees):
    a, b, c = np.radians(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


GRIDS = {
    "isotropic": np.eye(3),
    "anisotropic": np.diag([0.7, 1.3, 5.0]),
    "oblique": rotation((12, -20, 17)) @ np.diag([0.9, 1.1, 2.5]),
}


def landmark_phantom():
    data = np.zeros((7, 8, 9), np.int16)
    data[3, 4, 4], data[6, 4, 4], data[3, 7, 4], data[3, 4, 8] = LANDMARKS
    return data


def save_oriented(data_RAS, matrix, code, path):
    """The RAS array reordered to axis code `code`, with the affine that keeps every voxel where it is in the patient."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, (-11.5, 3.25, 40.125)
    image = nib.Nifti1Image(data_RAS, affine)
    change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code))
    image = image.as_reoriented(change)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=2)
    nib.save(image, path)
    return nib.load(path)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("code", ORIENTATIONS)
def test_identity_segmenter_is_voxel_exact(tmp_path, grid, code):
    rng = np.random.default_rng(0)
    source = save_oriented(rng.integers(0, 4, (5, 6, 7)).astype(np.int16), GRIDS[grid], code, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    for plane_name in PLANES:
        plane = volume.plane(plane_name)
        mask = np.zeros(volume.shape, np.bool_)
        for k in range(len(plane)):
            assert plane.values(k).shape == plane.shape
            plane.put(mask, k, plane.values(k) > 1)
        np.testing.assert_array_equal(mask, np.asarray(source.dataobj) > 1)
    write_mask_nifti(mask, volume, tmp_path / "mask.nii")
    written = nib.load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(source.dataobj) > 1)
    assert written.get_data_dtype() == np.uint8
    assert written.affine.tobytes() == source.affine.tobytes()
    np.testing.assert_array_equal(written.get_qform(), source.get_qform())
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (1, 2)
    assert written.header.get_zooms() == source.header.get_zooms()
    assert written.header.get_xyzt_units() == source.header.get_xyzt_units()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("code", ORIENTATIONS)
def test_display_is_radiological_whatever_the_axis_order(tmp_path, grid, code):
    save_oriented(landmark_phantom(), GRIDS[grid], code, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")

    def slice_through(plane_name, value):
        plane = volume.plane(plane_name)
        return next(plane.values(k) for k in range(len(plane)) if (plane.values(k) == 50).any() and (plane.values(k) == value).any())

    def step(plane_name, value):  # from the centre to the landmark, as (rows down, columns right)
        seen = slice_through(plane_name, value)
        return tuple(int(n) for n in np.argwhere(seen == value)[0] - np.argwhere(seen == 50)[0])

    assert step("axial", 100) == (0, -3)  # the patient's right is on the left of the picture
    assert step("axial", 150) == (-3, 0)  # anterior is up
    assert step("coronal", 100) == (0, -3)
    assert step("coronal", 200) == (-4, 0)  # superior is up
    assert step("sagittal", 150) == (0, -3)  # anterior is on the left
    assert step("sagittal", 200) == (-4, 0)


@pytest.mark.parametrize("code", ["RAS", "PSR", "LIP", "ASL"])
def test_plane_affine_and_spacing_tell_where_a_pixel_lies(tmp_path, code):
    save_oriented(landmark_phantom(), GRIDS["oblique"], code, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    for plane_name in PLANES:
        plane = volume.plane(plane_name)
        for value in LANDMARKS:
            voxel = np.argwhere(volume.data == value)[0]
            k = int(voxel[plane.axes[0]])
            row, column = np.argwhere(plane.values(k) == value)[0]
            world = volume.affine @ (*voxel, 1)
            np.testing.assert_allclose(plane.affine() @ (column, row, k, 1), world, atol=1e-9)
            np.testing.assert_allclose(plane.slice_affine(k) @ (column, row, 0, 1), world, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(plane.affine()[:3, :3], axis=0), (*plane.spacing[::-1], plane.slice_spacing))


def test_spacing_belongs_to_the_axis_shown(tmp_path):
    save_oriented(landmark_phantom(), np.diag([0.5, 1.5, 7.5]), "RAS", tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    expected = {"axial": (1.5, 0.5, 7.5), "coronal": (7.5, 0.5, 1.5), "sagittal": (7.5, 1.5, 0.5)}
    for name, (rows, columns, slices) in expected.items():
        plane = volume.plane(name)
        assert (*plane.spacing, plane.slice_spacing) == pytest.approx((rows, columns, slices), rel=1e-6)


@pytest.mark.parametrize(("axis", "name"), [(0, "coronal"), (1, "axial"), (2, "sagittal")])
def test_a_voxel_axis_is_named_by_the_nearest_anatomical_plane(tmp_path, axis, name):
    save_oriented(landmark_phantom(), GRIDS["oblique"], "PSR", tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.plane(axis).name == name
    assert volume.plane(name).axes[0] == axis


def test_all_slices_share_one_window(tmp_path):
    data = np.zeros((4, 4, 3), np.float32)
    data[..., 1], data[..., 2] = 100, 200
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii.gz")
    plane = read_volume(tmp_path / "scan.nii.gz").plane("axial")
    assert [image.mean() for image in plane] == [0, 128, 255]
    explicit = read_volume(tmp_path / "scan.nii.gz").plane("axial", window=(100, 150))
    assert [image.mean() for image in explicit] == [0, 0, 255]
    assert explicit.image(0).shape == (4, 4, 3)
    assert explicit.image(0).dtype == np.uint8


def test_wrong_questions_are_one_line(tmp_path):
    save_oriented(landmark_phantom(), np.eye(3), "RAS", tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    plane = volume.plane("axial")
    wrong = [
        (lambda: volume.plane("transversal"), "axial, coronal, sagittal, 0, 1 or 2"),
        (lambda: volume.plane(3), "axial, coronal, sagittal, 0, 1 or 2"),
        (lambda: volume.plane("axial", window=(40, 40)), "lowest first"),
        (lambda: volume.plane("axial", window=(float("nan"), 40)), "lowest first"),
        (lambda: plane.image(9), "slice from 0 to 8"),
        (lambda: plane.image(-1), "slice from 0 to 8"),
        (lambda: plane.put(np.zeros(volume.shape, bool), 0, np.zeros((7, 8), bool)), "(8, 7)"),
        (lambda: plane.put(np.zeros((7, 8, 8), bool), 0, np.zeros((8, 7), bool)), "(7, 8, 9)"),
    ]
    for call, words in wrong:
        with pytest.raises(InputError) as caught:
            call()
        assert words in str(caught.value)
        assert "scan.nii" in str(caught.value)


def test_without_orientation_only_voxel_axes_are_offered(tmp_path, caplog):
    header = nib.Nifti1Header()
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), None, header)
    nib.save(image, tmp_path / "bare.nii")
    volume = read_volume(tmp_path / "bare.nii")
    with pytest.raises(InputError, match="voxel axis 0, 1 or 2"):
        volume.plane("axial")
    plane = volume.plane(2)
    assert "no orientation" in caplog.text
    mask = np.zeros(volume.shape, np.bool_)
    for k in range(len(plane)):
        plane.put(mask, k, plane.values(k) > 11)
    write_mask_nifti(mask, volume, tmp_path / "mask.nii")
    written = nib.load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(np.asarray(written.dataobj), volume.data > 11)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (0, 0)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "bare.nii").affine)


@pytest.mark.parametrize(
    ("shift", "shape", "words"),
    [
        ((0, 0, 0), (7, 8, 9), None),
        ((0.005, 0, 0), (7, 8, 9), None),
        ((0.2, 0, 0), (7, 8, 9), "0.2 mm away"),
        ((0, 0, 0), (7, 8, 8), "shape"),
    ],
)
def test_same_grid(tmp_path, shift, shape, words):
    affine = np.eye(4)
    nib.save(nib.Nifti1Image(np.zeros((7, 8, 9), np.uint8), affine), tmp_path / "scan.nii")
    affine = affine.copy()
    affine[:3, 3] = shift
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), tmp_path / "labels.nii")
    scan, labels = read_volume(tmp_path / "scan.nii"), read_volume(tmp_path / "labels.nii")
    if words is None:
        check_same_grid(scan, labels)
    else:
        with pytest.raises(InputError, match=words) as caught:
            check_same_grid(scan, labels)
        assert "labels.nii" in str(caught.value)
