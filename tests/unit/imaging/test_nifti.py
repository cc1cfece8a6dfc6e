"""NIfTI values and headers, 2-D files, masks of pictures, and a table of files that must be refused in one line."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medplib.errors import InputError
from medplib.imaging.image import read_image
from medplib.imaging.mask import read_mask
from medplib.imaging.nifti import read_volume, write_mask_nifti, write_mask_nifti_2d

AFFINE = np.array([[-0.8, 0.1, 0, 9], [0.1, 0.9, 0, -7], [0, 0, 2, 3], [0, 0, 0, 1.0]])


def save(path, data, affine=AFFINE, image_class=nib.Nifti1Image):
    nib.save(image_class(data, affine), path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_values_in_file_order_with_slope_and_intercept(tmp_path, name):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(2, -1024)
    nib.save(image, tmp_path / name.lower())
    (tmp_path / name.lower()).rename(tmp_path / name)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.data, stored * 2.0 - 1024)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.affine, nib.load(tmp_path / name).affine)
    assert volume.zooms == pytest.approx((np.hypot(0.8, 0.1), np.hypot(0.9, 0.1), 2), rel=1e-6)


@pytest.mark.parametrize(("shape", "seen"), [((4, 5), (4, 5, 1)), ((4, 5, 6, 1), (4, 5, 6)), ((4, 5, 6, 1, 1), (4, 5, 6))])
def test_trailing_dimensions_of_one(tmp_path, shape, seen):
    save(tmp_path / "a.nii", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    volume = read_volume(tmp_path / "a.nii")
    assert volume.shape == seen
    write_mask_nifti(volume.data > 7, volume, tmp_path / "mask.nii")
    written = nib.load(tmp_path / "mask.nii")
    assert written.shape == shape
    np.testing.assert_array_equal(np.asarray(written.dataobj).reshape(seen), volume.data > 7)


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", "<>")
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 2), (3, 4)])
def test_mask_keeps_both_transforms(tmp_path, image_class, endianness, codes):
    header = image_class.header_class(endianness=endianness)
    image = image_class(np.arange(24, dtype=np.int16).reshape(2, 3, 4), None, header)
    tilted = AFFINE.copy()
    tilted[:3, 3] += 5  # the two transforms of a file may disagree; both must survive
    image.header.set_qform(tilted, code=codes[0])
    image.header.set_sform(AFFINE, code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = "JOHN DOE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"JOHN DOE"))
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    write_mask_nifti(volume.data > 5, volume, tmp_path / "mask.nii.gz")
    source, written = nib.load(tmp_path / "a.nii"), nib.load(tmp_path / "mask.nii.gz")
    assert type(written) is type(source)
    assert written.affine.tobytes() == source.affine.tobytes()
    for field in ("qform_code", "sform_code", "xyzt_units", "qoffset_x", "quatern_b", "srow_x", "srow_z", "pixdim"):
        np.testing.assert_array_equal(written.header[field], source.header[field], err_msg=field)
    np.testing.assert_array_equal(np.asarray(written.dataobj), volume.data > 5)
    assert (written.header["cal_min"], written.header["cal_max"]) == (0, 1)
    assert b"DOE" not in gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())


def test_not_finite_voxels_are_replaced_and_counted(tmp_path, caplog):
    save(tmp_path / "a.nii", np.array([[[np.nan, -np.inf, np.inf, -3, 8]]], np.float32))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").data, [[[-3, -3, 8, -3, 8]]])
    assert "replaced 3 NaN or infinite voxels of 5" in caplog.text


@pytest.mark.parametrize("shape", [(5, 7, 1), (5, 1, 7), (1, 5, 7), (5, 7)])
def test_a_single_slice_is_an_image_and_its_mask_goes_back(tmp_path, shape):
    data = np.random.default_rng(1).integers(0, 900, shape).astype(np.int16)
    save(tmp_path / "a.nii.gz", data)
    image = read_image(tmp_path / "a.nii.gz")
    assert image.pixels.shape == (*image.geometry.shape, 3)
    assert image.geometry.kind == "nifti"
    mask = read_volume(tmp_path / "a.nii.gz")
    plane = mask.plane(mask.shape.index(1))
    write_mask_nifti_2d(plane.values(0) > 400, image.geometry, tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), data > 400)
    assert written.affine.tobytes() == nib.load(tmp_path / "a.nii.gz").affine.tobytes()
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz", size=image.geometry.shape), plane.values(0) > 400)
    row, column = np.argwhere(plane.values(0) == plane.values(0).max())[0]
    voxel = np.argwhere(mask.data == mask.data.max())[0]
    np.testing.assert_allclose(image.geometry.affine @ (column, row, 0, 1), mask.affine @ (*voxel, 1), atol=1e-6)


def test_mask_of_a_picture_has_documented_axes(tmp_path):
    Image.new("RGB", (5, 3)).save(tmp_path / "a.png")
    mask = np.zeros((3, 5), np.bool_)
    mask[1, 4] = True  # row 1, column 4
    write_mask_nifti_2d(mask, read_image(tmp_path / "a.png").geometry, tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    assert written.shape == (5, 3, 1)
    assert np.argwhere(np.asarray(written.dataobj)).tolist() == [[4, 1, 0]]
    assert b"no geometry in source" in written.header["descrip"].item()
    np.testing.assert_array_equal(written.affine, np.diag([-1, -1, 1, 1]))
    np.testing.assert_array_equal(written.get_qform(), written.affine)
    assert written.header.get_xyzt_units() == ("unknown", "unknown")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz", size=(3, 5)), mask)


def test_written_bytes_do_not_depend_on_the_time(tmp_path):
    save(tmp_path / "a.nii", np.ones((3, 4, 5), np.int16))
    volume = read_volume(tmp_path / "a.nii")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_mask_nifti(volume.data > 0, volume, tmp_path / name / "mask.nii.gz")
    assert (tmp_path / "one/mask.nii.gz").read_bytes() == (tmp_path / "two/mask.nii.gz").read_bytes()


NOISE = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 16)).astype(np.int16)


def truncated(path, keep):
    save(path, NOISE)
    path.write_bytes(path.read_bytes()[:keep])


def header_with(path, **fields):
    save(path, NOISE)
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for field, value in fields.items():
        header[field] = value
    content[:348] = header.binaryblock
    path.write_bytes(bytes(content))


def rgb(path):
    save(path, np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))


NO_AFFINE = {f"srow_{axis}": (0, 0, 0, 0) for axis in "xyz"}
BAD = {
    "missing.nii.gz": (lambda p: None, "no such file"),
    "folder.nii": (lambda p: p.mkdir(), "a folder"),
    "empty.nii": (lambda p: p.write_bytes(b""), "empty file"),
    "text.nii": (lambda p: p.write_text("hello " * 200), "another format"),
    "text.nii.gz": (lambda p: p.write_text("hello " * 200), "another format"),
    "png.nii": (lambda p: Image.fromarray(np.zeros((64, 64), np.uint8)).save(p, "PNG"), "another format"),
    "short.nii": (lambda p: truncated(p, 5000), "truncated or corrupt"),
    "short.nii.gz": (lambda p: truncated(p, 3000), "truncated or corrupt"),
    "no_header.nii": (lambda p: truncated(p, 100), "truncated or corrupt"),
    "no_header.nii.gz": (lambda p: truncated(p, 12), "truncated or corrupt"),
    "zipped_once_too_often.nii": (lambda p: p.write_bytes(gzip.compress(NOISE.tobytes())), "another format"),
    "four.nii": (lambda p: save(p, np.zeros((4, 4, 4, 2), np.int16)), "4 dimensions"),
    "vector.nii": (lambda p: save(p, np.zeros((4, 4, 4, 1, 3), np.float32)), "5 dimensions"),
    "line.nii": (lambda p: save(p, np.zeros(4, np.int16)), "shape (4,)"),
    "none.nii": (lambda p: save(p, np.zeros((4, 0, 4), np.int16)), "shape (4, 0, 4)"),
    "huge.nii": (lambda p: header_with(p, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "shape (30000, 30000, 30000)"),
    "huge.nii.gz": (lambda p: p.write_bytes(huge_gz(p)), "shape (30000, 30000, 30000)"),
    "rgb.nii": (rgb, "RGB colour"),
    "complex.nii": (lambda p: save(p, np.zeros((4, 4, 4), np.complex64)), "complex64"),
    "nan.nii": (lambda p: save(p, np.full((2, 2, 2), np.nan, np.float32)), "only NaN"),
    "singular.nii": (lambda p: header_with(p, **NO_AFFINE), "singular"),
    "flat.nii": (lambda p: header_with(p, srow_y=(-0.8, 0.1, 0, 9)), "singular"),
    "nan_affine.nii": (lambda p: header_with(p, srow_x=(np.nan, 0, 0, 0)), "singular or not finite"),
    "intercept.nii": (lambda p: header_with(p, scl_slope=1, scl_inter=np.inf), "corrupt"),
    "datatype.nii": (lambda p: header_with(p, datatype=9999), "corrupt"),
}


def huge_gz(path):
    plain = path.with_suffix("")
    header_with(plain, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    return gzip.compress(plain.read_bytes())


@pytest.mark.parametrize("name", BAD)
def test_bad_volumes_are_refused_in_one_line(tmp_path, name):
    make, words = BAD[name]
    make(tmp_path / name)
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert words in message
    assert "\n" not in message


def test_other_suffix_is_refused(tmp_path):
    save(tmp_path / "a.nii", NOISE)
    (tmp_path / "a.nii").rename(tmp_path / "a.img")
    with pytest.raises(InputError, match=r"the suffix '\.img'"):
        read_volume(tmp_path / "a.img")


@pytest.mark.parametrize(("shape", "words"), [((4, 5, 6), "4 x 5 x 6"), ((1, 1, 6), "1 x 1 x 6")])
def test_read_image_refuses_volumes_and_says_how_to_choose(tmp_path, shape, words):
    save(tmp_path / "a.nii", np.zeros(shape, np.int16))
    with pytest.raises(InputError, match="choose an axis") as caught:
        read_image(tmp_path / "a.nii")
    assert words in str(caught.value)


def test_nothing_half_written(tmp_path, monkeypatch):
    save(tmp_path / "a.nii", NOISE)
    volume = read_volume(tmp_path / "a.nii")

    def fail(image, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mask_nifti(volume.data > 0, volume, tmp_path / "out" / "mask.nii.gz")
    assert list((tmp_path / "out").iterdir()) == []


def test_wrong_masks_and_names_are_refused(tmp_path):
    save(tmp_path / "a.nii", NOISE)
    save(tmp_path / "flat.nii", NOISE[:, :9, :1])
    volume, geometry = read_volume(tmp_path / "a.nii"), read_image(tmp_path / "flat.nii").geometry
    right, flat = volume.data > 0, np.zeros(geometry.shape, np.bool_)
    wrong = [
        (lambda: write_mask_nifti(right[1:], volume, tmp_path / "m.nii"), "(16, 16, 16)"),
        (lambda: write_mask_nifti(right.astype(np.uint8), volume, tmp_path / "m.nii"), "uint8"),
        (lambda: write_mask_nifti(right, volume, tmp_path / "m.nrrd"), ".nii or .nii.gz"),
        (lambda: write_mask_nifti_2d(flat.T, geometry, tmp_path / "m.nii"), "flat.nii"),
    ]
    for call, words in wrong:
        with pytest.raises(InputError) as caught:
            call()
        assert words in str(caught.value)
    assert not list(tmp_path.glob("m.*"))
