"""Points, boxes and strokes on images that are not square, so that a transposed coordinate shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medplib.errors import InputError
from medplib.imaging.rasterize import POINT_RADIUS, box_mask, points_mask, scribble_mask

SIZE = (20, 50)  # height, width
WHOLE = st.tuples(st.integers(0, SIZE[1]), st.integers(0, SIZE[0]))


@settings(deadline=None)
@given(WHOLE, WHOLE)
def test_box_fills_columns_by_x_and_rows_by_y(first, second):
    (x0, x1), (y0, y1) = sorted((first[0], second[0])), sorted((first[1], second[1]))
    if x0 == x1 or y0 == y1:
        return
    mask = box_mask((x0, y0, x1, y1), SIZE)
    y, x = np.nonzero(mask)
    assert mask.shape == SIZE
    assert mask.dtype == np.bool_
    assert mask.sum() == (x1 - x0) * (y1 - y0)
    assert (x.min(), x.max(), y.min(), y.max()) == (x0, x1 - 1, y0, y1 - 1)


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ((0, 0, 50, 20), (0, 49), (0, 19)),
        ((40, 2, 50, 5), (40, 49), (2, 4)),  # transposed it would leave the image
        ((3.2, 0.0, 6.0, 1.0), (4, 5), (0, 0)),
        ((3.0, 0.5, 6.1, 3.9), (3, 6), (1, 3)),
    ],
)
def test_box_by_hand(box, columns, rows):
    y, x = np.nonzero(box_mask(box, SIZE))
    assert (x.min(), x.max()) == columns
    assert (y.min(), y.max()) == rows


@settings(deadline=None)
@given(st.integers(0, SIZE[1] - 1), st.integers(0, SIZE[0] - 1), st.floats(0, 8))
def test_point_is_a_disc_around_column_x_and_row_y(x, y, radius):
    mask = points_mask([(x, y)], SIZE, radius=radius)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(columns - x, rows - y)
    assert mask[y, x]
    effective = max(radius, np.sqrt(0.5))
    np.testing.assert_array_equal(mask[distance < effective - 1e-6], True)
    np.testing.assert_array_equal(mask[distance > effective + 1e-6], False)


@settings(deadline=None)
@given(st.floats(-0.5, SIZE[1] - 0.5, exclude_max=True), st.floats(-0.5, SIZE[0] - 0.5, exclude_max=True))
def test_the_smallest_point_marks_the_pixel_it_lies_in(x, y):
    mask = points_mask([(x, y)], SIZE, radius=0)
    assert mask[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))]
    assert mask.sum() <= 4


@pytest.mark.parametrize("size", [(336, 500), (500, 336), (672, 672)])
def test_default_point_has_the_published_extent_relative_to_the_short_side(size):
    radius = POINT_RADIUS * min(size)
    assert radius == pytest.approx(20 * min(size) / 336)
    mask = points_mask([(size[1] // 2, size[0] // 2)], size)
    assert mask.any(axis=0).sum() == mask.any(axis=1).sum() == 2 * int(radius) + 1
    assert mask.sum() == pytest.approx(np.pi * radius**2, rel=0.02)


def test_several_points_are_a_union():
    both = points_mask([(5, 4), (44, 15)], SIZE, radius=3)
    np.testing.assert_array_equal(both, points_mask([(5, 4)], SIZE, radius=3) | points_mask([(44, 15)], SIZE, radius=3))


@pytest.mark.parametrize(
    ("polyline", "width", "columns", "rows", "count"),
    [
        ([(10, 7), (40, 7)], 1, (10, 40), (7, 7), 31),
        ([(45, 2), (45, 18)], 1, (45, 45), (2, 18), 17),
        ([(10, 7), (40, 7)], 5, (8, 42), (5, 9), None),
        ([(30, 9)], 1, (30, 30), (9, 9), 1),
    ],
)
def test_stroke_by_hand(polyline, width, columns, rows, count):
    mask = scribble_mask(polyline, SIZE, width=width)
    y, x = np.nonzero(mask)
    assert (x.min(), x.max()) == columns
    assert (y.min(), y.max()) == rows
    assert count is None or mask.sum() == count


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, SIZE[1] - 1), st.floats(0, SIZE[0] - 1)), min_size=1, max_size=6), st.floats(0, 6))
def test_stroke_is_every_pixel_near_the_line(polyline, width):
    mask = scribble_mask(polyline, SIZE, width=width)
    ends = polyline[1:] or polyline
    steps = np.concatenate([np.linspace(a, b, 250) for a, b in zip(polyline, ends, strict=False)])
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(columns[..., None] - steps[:, 0], rows[..., None] - steps[:, 1]).min(axis=2)
    radius = max(width / 2, np.sqrt(0.5))
    assert mask[distance < radius - 0.01].all()
    assert not mask[distance > radius + 0.01].any()


NAN = float("nan")
BAD = [
    (lambda: box_mask((2, 40, 5, 50), SIZE), "y0 < y1 <= 20"),  # the transposed box of the case above
    (lambda: box_mask((5, 2, 5, 9), SIZE), "x0 < x1"),
    (lambda: box_mask((9, 2, 5, 9), SIZE), "x0 < x1"),
    (lambda: box_mask((-1, 2, 5, 9), SIZE), "0 <= x0"),
    (lambda: box_mask((1, 2, 51, 9), SIZE), "x1 <= 50"),
    (lambda: box_mask((1, 2, NAN, 9), SIZE), "four finite numbers"),
    (lambda: box_mask((1, 2, 3), SIZE), "four finite numbers"),
    (lambda: box_mask((3.2, 2, 3.8, 9), SIZE), "pixel centre"),
    (lambda: box_mask((0, 0, 1, 1), (0, 5)), "image size"),
    (lambda: points_mask([], SIZE), "at least 1"),
    (lambda: points_mask([(4, 30)], SIZE), "y from 0 to 19"),
    (lambda: points_mask([(50, 3)], SIZE), "x from 0 to 49"),
    (lambda: points_mask([(3, 4), (-1, 3)], SIZE), "(-1, 3)"),
    (lambda: points_mask([(3, NAN)], SIZE), "two finite numbers"),
    (lambda: points_mask([(3, 4, 5)], SIZE), "two finite numbers"),
    (lambda: points_mask([("3", 4)], SIZE), "two finite numbers"),
    (lambda: points_mask([(3, 4)], SIZE, radius=-1), "not below 0"),
    (lambda: scribble_mask([], SIZE), "at least 1"),
    (lambda: scribble_mask([(3, 4), (60, 4)], SIZE), "(60, 4)"),
    (lambda: scribble_mask([(3, 4)], SIZE, width=NAN), "finite"),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_bad_regions_are_refused(index):
    call, words = BAD[index]
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
