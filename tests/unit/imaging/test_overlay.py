import numpy as np
import pytest
from PIL import Image

from medplib.errors import InputError
from medplib.imaging.overlay import PALETTE, colour_of, contact_sheet, overlay_masks, write_png

IMAGE = np.full((60, 200, 3), 100, np.uint8)


def square(y, x, side=20):
    mask = np.zeros(IMAGE.shape[:2], np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask


def test_fill_contour_and_untouched_ground():
    mask = square(10, 30)
    drawn = overlay_masks(IMAGE, [("liver", mask)])
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > 60
    assert drawn.shape[1:] == (200, 3)
    np.testing.assert_array_equal(drawn[:60][~mask], 100)
    np.testing.assert_array_equal(drawn[10, 30], colour_of(0))  # contour, opaque
    np.testing.assert_array_equal(drawn[20, 40], np.round(0.6 * 100 + 0.4 * np.array(colour_of(0))))
    assert (IMAGE == 100).all()


def test_contours_stay_crisp_under_later_masks():
    first, second = square(10, 30), square(20, 40)
    drawn = overlay_masks(IMAGE, [("a", first), ("b", second)])
    np.testing.assert_array_equal(drawn[25, 49], colour_of(0))  # inside the second, on the rim of the first
    np.testing.assert_array_equal(drawn[25, 40], colour_of(1))


def test_legend_names_every_mask_and_says_which_are_empty():
    one = overlay_masks(IMAGE, [("liver", square(10, 30))])
    empty = overlay_masks(IMAGE, [("liver", np.zeros((60, 200), np.bool_))])
    np.testing.assert_array_equal(empty[:60], IMAGE)
    assert (one[60:] != empty[60:]).any()  # "(none)"
    many = overlay_masks(IMAGE, [(f"structure {n}", square(10, 30)) for n in range(9)])
    assert many.shape[0] > one.shape[0]
    for n in range(9):
        assert (many[60:] == colour_of(n)).all(axis=2).any()


def test_small_images_stay_in_place_beside_a_readable_legend():
    image = np.full((16, 12, 3), 50, np.uint8)
    drawn = overlay_masks(image, [("a name that is much longer than the picture is wide", np.zeros((16, 12), np.bool_))])
    np.testing.assert_array_equal(drawn[:16, :12], image)
    assert drawn.shape[1] >= 160


def test_no_masks_is_a_copy():
    drawn = overlay_masks(IMAGE, [])
    np.testing.assert_array_equal(drawn, IMAGE)
    assert drawn is not IMAGE


def test_a_mask_touching_the_border_has_no_contour_there():
    mask = np.ones((60, 200), np.bool_)
    drawn = overlay_masks(IMAGE, [("all", mask)])
    assert (drawn[:60] == drawn[30, 100]).all()


def test_colours_are_distinct_for_three_rounds():
    colours = [colour_of(n) for n in range(3 * len(PALETTE))]
    assert len(set(colours)) == len(colours)
    assert colour_of(3 * len(PALETTE)) == colour_of(0)


@pytest.mark.parametrize("mask", [np.zeros((200, 60), np.bool_), np.zeros((60, 200), np.uint8)])
def test_masks_of_another_size_or_type_are_refused(mask):
    with pytest.raises(InputError, match="mask 'liver'"):
        overlay_masks(IMAGE, [("liver", mask)])


@pytest.mark.parametrize(("count", "columns", "grid"), [(1, 3, (1, 1)), (3, 3, (1, 3)), (4, 3, (2, 3)), (5, 2, (3, 2))])
def test_contact_sheet_places_images_row_by_row(count, columns, grid):
    images = [np.full((30, 40, 3), 10 + n, np.uint8) for n in range(count)]
    sheet = contact_sheet(images, [""] * count, columns)
    assert sheet.shape[0] == grid[0] * (30 + 18 + 6) - 6
    assert sheet.shape[1] == grid[1] * (40 + 6) - 6
    for n in range(count):
        y, x = (n // columns) * 54 + 18, (n % columns) * 46
        assert (sheet[y : y + 30, x : x + 40] == 10 + n).all()
    assert sum((sheet == 10 + n).all(axis=2).sum() for n in range(count)) == count * 30 * 40


def test_contact_sheet_writes_titles_and_takes_mixed_sizes():
    images = [np.zeros((20, 80, 3), np.uint8), np.zeros((40, 30, 3), np.uint8)]
    sheet = contact_sheet(images, ["slice 12", ""], 2)
    assert sheet[:18, :80].max() > 128
    assert sheet[:18, 86:].max() == 0
    assert sheet.shape == (58, 166, 3)
    assert contact_sheet(images, ["", ""], 1).shape == (18 + 20 + 6 + 18 + 40, 80, 3)  # each row as high as its own image


@pytest.mark.parametrize(("images", "titles", "columns"), [([], [], 1), ([IMAGE], [], 1), ([IMAGE], ["a"], 0)])
def test_contact_sheet_refuses_nonsense(images, titles, columns):
    with pytest.raises(InputError, match="contact sheet"):
        contact_sheet(images, titles, columns)


@pytest.mark.parametrize("array", [IMAGE, IMAGE[..., 0], IMAGE[::-1, ::2]])
def test_write_png(tmp_path, array):
    write_png(array, tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), array)


@pytest.mark.parametrize(
    ("array", "name"),
    [(IMAGE.astype(float), "a.png"), (IMAGE[..., :2], "a.png"), (IMAGE[:0], "a.png"), (IMAGE, "a.jpg"), (IMAGE, "folder.png")],
)
def test_write_png_refuses(tmp_path, array, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError):
        write_png(array, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]
