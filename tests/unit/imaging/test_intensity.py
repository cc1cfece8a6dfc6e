import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medplib.errors import InputError
from medplib.imaging.intensity import apply_window, check_window, find_window


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(1001), (5, 995)),
        (np.array([3, 3, 3]), (3, 3)),
        (np.r_[np.zeros(1000), 7], (0, 7)),  # too few bright values for the percentile: minimum to maximum
        (np.r_[np.arange(1001), 1e6], (5.005, 995.995)),  # one hot pixel does not darken the rest
    ],
)
def test_default_window(values, expected):
    assert find_window(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "window", "expected"),
    [
        (-2000, (-160, 240), 0),
        (-160, (-160, 240), 0),
        (40, (-160, 240), 128),
        (240, (-160, 240), 255),
        (9000, (-160, 240), 255),
        (7, (7, 7), 0),
    ],
)
def test_apply_window(value, window, expected):
    assert apply_window(np.array([value], np.int16), window)[0] == expected


def test_large_integers_keep_their_low_bits():
    values = np.array([2**31 - 256, 2**31 - 129, 2**31 - 1], np.int64)
    assert apply_window(values, (2**31 - 256, 2**31 - 1)).tolist() == [0, 127, 255]


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32)))
def test_order_is_kept(values):
    shown = apply_window(np.sort(values), find_window(values))
    assert shown.dtype == np.uint8
    assert (np.diff(shown.astype(int)) >= 0).all()


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (float("nan"), 1), (0, float("inf")), (1,)])
def test_bad_windows(window):
    with pytest.raises(InputError, match="lowest first"):
        check_window(window, where="window")
