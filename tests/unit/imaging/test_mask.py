import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medplib.errors import InputError
from medplib.imaging.mask import read_mask, write_mask_png

GREY = np.array([[0, 1, 127, 128, 255]], np.uint8)
EXPECTED = {
    "gt0": [False, True, True, True, True],
    "gt127": [False, False, False, True, True],
    "lt128": [True, True, True, False, False],
}


@pytest.mark.parametrize("rule", EXPECTED)
def test_rules(tmp_path, rule):
    Image.fromarray(GREY).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", size=(1, 5), rule=rule)
    assert mask.dtype == np.bool_
    assert mask[0].tolist() == EXPECTED[rule]


def coloured(*colours):
    return Image.fromarray(np.array([colours], np.uint8))


def palette():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([0, 0, 0, 0, 0, 128])
    return image


CASES = {  # two pixels each: background, foreground
    "1-bit": (Image.fromarray(np.array([[False, True]])), "gt127"),
    "faint blue": (coloured((0, 0, 0), (0, 0, 1)), "gt0"),  # vanishes in a luminance
    "red": (coloured((0, 0, 0), (255, 0, 0)), "gt127"),
    "palette": (palette(), "gt0"),
    "opaque RGBA": (coloured((0, 0, 0, 255), (255, 255, 255, 255)), "gt127"),
    "transparent is background": (coloured((255, 255, 255, 0), (255, 255, 255, 255)), "gt0"),
    "labels of 16 bit": (Image.fromarray(np.array([[0, 300]], np.uint16)), "gt0"),
    "float": (Image.fromarray(np.array([[0, 0.25]], np.float32)), "gt0"),
    "dark foreground": (coloured((255, 255, 255, 255), (10, 10, 10, 255)), "lt128"),
}


@pytest.mark.parametrize("name", CASES)
def test_any_picture_can_be_a_mask(tmp_path, name):
    image, rule = CASES[name]
    image.save(tmp_path / "m.tif")
    assert read_mask(tmp_path / "m.tif", size=(1, 2), rule=rule).tolist() == [[False, True]]


def test_jpeg_noise_is_cut_by_gt127(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[13:45, 9:41] = 255  # off the 8-pixel blocks of the format, so that its edges ring
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=60)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg", size=(64, 64), rule="gt127"), mask > 0)
    assert (read_mask(tmp_path / "m.jpg", size=(64, 64), rule="gt0") != (mask > 0)).any()


def test_exif_turns_a_mask_as_it_turns_an_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "m.png", exif=exif)
    assert read_mask(tmp_path / "m.png", size=(5, 1))[:, 0].tolist() == EXPECTED["gt0"]


def transparent(path):
    coloured((0, 0, 0, 0), (255, 255, 255, 255)).save(path)


BAD = {
    "other_size.png": (lambda p: Image.fromarray(GREY).save(p), "gt0", "2 x 5"),
    "rule.png": (lambda p: Image.fromarray(GREY).save(p), "gt1", "'gt1'"),
    "missing.png": (lambda p: None, "gt0", "no such file"),
    "folder.png": (lambda p: p.mkdir(), "gt0", "a folder"),
    "empty.png": (lambda p: p.write_bytes(b""), "gt0", "empty"),
    "suffix.webp": (lambda p: p.write_bytes(b"x"), "gt0", "'.webp'"),
    "alpha.png": (transparent, "lt128", "transparent"),
    "volume.nii": (lambda p: nib.save(nib.Nifti1Image(np.zeros((2, 5, 3), np.uint8), np.eye(4)), p), "gt0", "2 x 5 x 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_masks_are_refused_in_one_line(tmp_path, name):
    make, rule, words = BAD[name]
    make(tmp_path / name)
    with pytest.raises(InputError) as caught:
        read_mask(tmp_path / name, size=(2, 5), rule=rule)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert words in str(caught.value)


def test_size_none_takes_any_size(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", size=None).shape == (1, 5)


def test_write_and_read_back(tmp_path):
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    write_mask_png(mask, tmp_path / "new" / "m.png")
    for rule in ("gt0", "gt127"):
        np.testing.assert_array_equal(read_mask(tmp_path / "new" / "m.png", size=(7, 5), rule=rule), mask)
    assert Image.open(tmp_path / "new" / "m.png").mode == "L"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.png"]


@pytest.mark.parametrize("mask", [np.zeros((3, 4), np.uint8), np.zeros((3, 4, 1), np.bool_), np.zeros((0, 4), np.bool_)])
def test_only_bool_masks_are_written(tmp_path, mask):
    with pytest.raises(InputError, match="bool mask"):
        write_mask_png(mask, tmp_path / "m.png")


def test_only_png_is_written(tmp_path):
    with pytest.raises(InputError, match=r"\.png"):
        write_mask_png(np.ones((2, 2), np.bool_), tmp_path / "m.jpg")
