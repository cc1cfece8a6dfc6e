"""The way into the square and back.

Exact means here: the window is where the arithmetic says; at unchanged or whole-number scale every mask comes back bit for bit; at any
scale the edges of a rectangle move by at most half a pixel of the coarser grid per step.
"""

import cv2
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from medplib.imaging.letterbox import grid_coverage, letterbox_image, letterbox_mask_area, letterbox_planes, unletterbox_mask
from medplib.types import Letterbox

FILL = (122, 116, 104)
SIZES = st.sampled_from([64, 96, 256, 336])


@st.composite
def image_sizes(draw, longest=700):
    """(H, W) with an aspect ratio from 1:8 to 8:1."""
    long = draw(st.integers(8, longest))
    short = draw(st.integers(-(-long // 8), long))
    return (short, long) if draw(st.booleans()) else (long, short)


@st.composite
def rectangles(draw):
    """A square size, an image size, and a rectangle (y0, x0, y1, x1) at least two pixels of the square and two of the image wide."""
    size, (height, width) = draw(SIZES), draw(image_sizes())
    least = int(np.ceil(max(2, 2 * max(height, width) / size)))
    assume(least <= min(height, width))
    y0, x0 = draw(st.integers(0, height - least)), draw(st.integers(0, width - least))
    return size, (height, width), (y0, x0, draw(st.integers(y0 + least, height)), draw(st.integers(x0 + least, width)))


def edges(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


@settings(deadline=None, max_examples=30)
@given(SIZES, image_sizes())
def test_window_arithmetic(size, shape):
    box = Letterbox.fit(shape, size)
    image = np.full((*shape, 3), 200, np.uint8)
    square = letterbox_image(image, size, FILL)
    assert square.shape == (size, size, 3)
    inside = np.zeros((size, size), np.bool_)
    inside[box.window] = True
    assert (square[inside] == 200).all()
    assert (square[~inside] == FILL).all()
    assert max(box.resized_size) == size
    top, left = box.pad
    assert 0 <= (size - box.resized_size[0]) - 2 * top <= 1  # centred, the odd pixel below and right
    assert 0 <= (size - box.resized_size[1]) - 2 * left <= 1
    full = np.ones(shape, np.bool_)
    np.testing.assert_array_equal(letterbox_mask_area(full, size), inside * 255)
    assert unletterbox_mask(inside, box).all()


def covered(size: int, start: float, end: float) -> np.ndarray:
    """(size,) how much of every cell of a side lies between two places."""
    cells = np.arange(size)
    return (np.minimum(cells + 1, end) - np.maximum(cells, start)).clip(min=0)


@settings(deadline=None, max_examples=80)
@example((64, (280, 396), (0, 0, 28, 65)))
@given(rectangles())
def test_rectangle_edges_survive_the_round_trip(case):
    size, shape, (y0, x0, y1, x1) = case
    box = Letterbox.fit(shape, size)
    mask = np.zeros(shape, np.bool_)
    mask[y0:y1, x0:x1] = True
    square = letterbox_mask_area(mask, size) >= 128
    scale = np.tile(np.divide(box.resized_size, shape), 2)
    expected = np.array([y0, x0, y1, x1]) * scale + np.tile(box.pad, 2)
    assert np.abs(edges(square) - expected).max() <= 0.5 + 1e-3  # pixels of the square
    back = unletterbox_mask(square, box)
    error = np.abs(edges(back) - [y0, x0, y1, x1])
    assert (error <= 0.5 / scale + 0.5 + 1e-3).all()  # pixels of the image
    rows, columns = (covered(size, expected[axis], expected[axis + 2]) for axis in (0, 1))
    cover = np.outer(rows, columns)  # of every cell of the square; a row that is covered by half may go either way, cell by cell
    assert square[cover > 0.5 + 1 / 255].all()
    assert not square[cover < 0.5 - 1 / 255].any()


@settings(deadline=None, max_examples=30)
@given(image_sizes(longest=60), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_whole_number_enlargement_is_bit_exact(shape, factor, seed):
    mask = np.random.default_rng(seed).random(shape) > 0.5
    size = max(shape) * factor
    area = letterbox_mask_area(mask, size)
    assert set(np.unique(area)) <= {0, 255}
    np.testing.assert_array_equal(unletterbox_mask(area == 255, Letterbox.fit(shape, size)), mask)


@settings(deadline=None, max_examples=30)
@given(image_sizes(longest=80), st.integers(0, 2**32 - 1))
def test_image_of_the_size_of_the_square_is_untouched(shape, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    box = Letterbox.fit(shape, max(shape))
    np.testing.assert_array_equal(letterbox_image(image, max(shape), FILL)[box.window], image)


@settings(deadline=None, max_examples=30)
@given(image_sizes(), SIZES, st.integers(1, 24), st.integers(0, 2**32 - 1))
def test_area_is_kept(shape, size, grid, seed):
    mask = np.random.default_rng(seed).random(shape) > 0.7
    box = Letterbox.fit(shape, size)
    expected = mask.mean() * np.prod(box.resized_size) / size**2  # fraction of the square
    assert grid_coverage(mask, size, grid).mean() == pytest.approx(expected, abs=1e-5)
    assert letterbox_mask_area(mask, size).mean() / 255 == pytest.approx(expected, abs=0.5 / 255)


@pytest.mark.parametrize("shape", [(512, 512), (512, 384), (300, 700), (257, 511)])
def test_shrinking_is_box_averaging(shape):
    mask = np.random.default_rng(0).random(shape) > 0.5
    box = Letterbox.fit(shape, 128)
    reference = cv2.resize(mask.astype(np.float32), box.resized_size[::-1], interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(letterbox_mask_area(mask, 128)[box.window] / 255.0, reference, atol=0.51 / 255)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("published", "levels"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("shape", [(200, 100), (64, 32), (37, 90), (512, 448), (20, 11)])
def test_image_resize_is_pillow_bilinear(shape, published, levels, channels):
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8).repeat(3 // channels, axis=2)
    box = Letterbox.fit(shape, 64)
    expected = np.asarray(Image.fromarray(image).resize(box.resized_size[::-1], Image.Resampling.BILINEAR)).astype(int)
    square = letterbox_planes(image, 64, (FILL,), published=published)[0].transpose(1, 2, 0)
    off = np.abs(square[box.window] - expected)
    assert off.max() <= levels
    assert (off > 0).mean() <= 0.01


def test_image_and_mask_agree_on_the_geometry():
    image = np.zeros((90, 150, 3), np.uint8)
    image[31:77, 13:97] = 255
    square = letterbox_image(image, 64, (0, 0, 0))[..., 0].astype(float)
    area = letterbox_mask_area(image[..., 0] > 0, 64).astype(float)
    y, x = np.mgrid[:64, :64]
    for axis in (y, x):  # the two filters differ, their centres of mass do not
        assert (square * axis).sum() / square.sum() == pytest.approx((area * axis).sum() / area.sum(), abs=0.05)


@pytest.mark.parametrize(
    ("box", "shape", "expected"),
    [
        ((0, 0, 4, 4), (4, 4), [[1, 1], [1, 1]]),
        ((0, 0, 2, 2), (4, 4), [[1, 0], [0, 0]]),
        ((0, 0, 1, 4), (4, 4), [[0.5, 0.5], [0, 0]]),
        ((0, 0, 2, 4), (2, 4), [[0.5, 0.5], [0.5, 0.5]]),  # the padding above and below is not covered
        ((0, 2, 2, 4), (2, 4), [[0, 0.5], [0, 0.5]]),
    ],
)
def test_grid_coverage_by_hand(box, shape, expected):
    mask = np.zeros(shape, np.bool_)
    mask[box[0] : box[2], box[1] : box[3]] = True
    coverage = grid_coverage(mask, 8, 2)
    assert coverage.dtype == np.float32
    np.testing.assert_allclose(coverage, expected, atol=1e-6)


def test_grid_coverage_is_the_mean_of_the_square():
    mask = np.random.default_rng(0).random((123, 200)) > 0.6
    area = letterbox_mask_area(mask, 336).reshape(24, 14, 24, 14).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(grid_coverage(mask, 336, 24), area, atol=0.51 / 255)


def test_a_lost_pixel_still_covers_its_patch():
    mask = np.zeros((2000, 3000), np.bool_)
    mask[1234, 567] = True
    assert grid_coverage(mask, 336, 24).max() > 0
    assert grid_coverage(np.zeros((20, 30), np.bool_), 336, 24).max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 3000)])
def test_extreme_shapes(shape):
    box = Letterbox.fit(shape, 64)
    mask = np.ones(shape, np.bool_)
    assert letterbox_image(np.zeros((*shape, 3), np.uint8), 64, FILL).shape == (64, 64, 3)
    area = letterbox_mask_area(mask, 64)
    assert (area[box.window] == 255).all()
    assert unletterbox_mask(area > 127, box).shape == shape
    assert unletterbox_mask(area > 127, box).all()


@pytest.mark.parametrize("colour_at", [None, (0, 0), (63, 11)])  # nowhere, in a row that is looked at first, in one that is not
def test_grey_pictures_and_several_paddings_are_resized_once_with_the_same_result(colour_at):
    image = np.repeat(np.random.default_rng(0).integers(0, 255, (70, 90, 1), dtype=np.uint8), 3, axis=2)
    if colour_at is not None:
        image[colour_at] = 10, 20, 30
    planes = letterbox_planes(image, 32, (FILL, (0, 0, 0)), published=True)
    for square, fill in zip(planes, (FILL, (0, 0, 0)), strict=True):
        expected = np.empty((32, 32, 3), np.uint8)
        expected[...] = fill
        box = Letterbox.fit(image.shape[:2], 32)
        small = Image.fromarray(image).resize(box.resized_size[::-1], Image.Resampling.BILINEAR)
        expected[box.window] = np.asarray(small)
        np.testing.assert_array_equal(square, expected.transpose(2, 0, 1))
