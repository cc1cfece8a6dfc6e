from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import binary_erosion

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.grounding import summarise_grounding
from medplib.evaluation.protocols import STRICT, UPSTREAM
from medplib.evaluation.segmentation import GroundingCase, score_case
from medplib.evaluation.surface import surface_dice


def square(top: int, left: int, side: int, shape: tuple[int, int] = (20, 20)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


NOTHING, POINT = np.zeros((20, 20), bool), square(10, 10, 1)
ROD = np.zeros((9, 9, 9), bool)
ROD[4, 4, 2:7] = True


@pytest.mark.parametrize(
    ("prediction", "target", "tolerance", "spacing", "expected"),
    [
        (square(5, 5, 6), square(5, 5, 6), 0.0, None, 1.0),
        (square(5, 5, 6), square(5, 8, 6), 3.0, None, 1.0),
        (POINT, square(10, 12, 1), 2.0, None, 1.0),  # a distance equal to the tolerance is within
        (POINT, square(10, 12, 1), 1.99, None, 0.0),
        (POINT, square(10, 12, 1), 2.0, (1.0, 1.1), 0.0),  # 2.2 mm
        (POINT, square(12, 10, 1), 2.0, (1.0, 1.1), 1.0),  # rows are closer together than columns
        (POINT, square(10, 9, 3), 1.0, None, 4 / 9),  # 1 of 1, and 3 of the 8 around the inside
        (square(0, 0, 20), square(0, 0, 20), 0.0, None, 1.0),  # the border of the image is an outline
        (NOTHING, POINT, 5.0, None, 0.0),
        (POINT, NOTHING, 5.0, None, 0.0),
        (NOTHING, NOTHING, 5.0, None, 0.25),
        (square(19, 0, 1), square(0, 19, 1), 2.0, None, 0.0),  # ends of neighbouring rows are not neighbours
        (square(0, 19, 1), square(1, 0, 1), 3.0, None, 0.0),
        (ROD, np.roll(ROD, 1, axis=2), 1.0, None, 1.0),
        (ROD, np.roll(ROD, 1, axis=2), 1.0, (1.0, 1.0, 3.0), 8 / 10),
    ],
)
def test_values_by_hand(prediction, target, tolerance, spacing, expected):
    for pair in ((prediction, target), (target, prediction)):
        assert surface_dice(*pair, tolerance=tolerance, spacing=spacing, empty=0.25) == expected


def _by_all_pairs(a: np.ndarray, b: np.ndarray, tolerance: float, spacing: tuple[float, ...] | None) -> float:
    """Every outline pixel against every other."""
    points = [np.argwhere(m & ~binary_erosion(m)) for m in (a, b)]
    if not len(points[0]) or not len(points[1]):
        return 0.25 if not (len(points[0]) or len(points[1])) else 0.0
    steps = (points[0][:, None] - points[1][None]) * np.array(spacing or [1.0] * a.ndim)
    near = np.sqrt((steps**2).sum(-1)).astype(np.float32) <= np.float32(tolerance)
    return (near.any(0).sum() + near.any(1).sum()) / sum(near.shape)


@given(
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8).flatmap(
        lambda shape: st.tuples(
            hnp.arrays(bool, shape),
            hnp.arrays(bool, shape),
            st.sampled_from([0.0, 0.5, 1.0, 1.4, 2.0, 3.7, 30.0]),
            st.none() | st.tuples(*[st.sampled_from([0.35, 0.7, 1.0, 2.5])] * len(shape)),
        )
    )
)
@settings(max_examples=120, deadline=None)
def test_equals_all_pairs_of_outline_pixels(drawn):
    a, b, tolerance, spacing = drawn
    found = surface_dice(a, b, tolerance=tolerance, spacing=spacing, empty=0.25)
    assert found == _by_all_pairs(a, b, tolerance, spacing)


@pytest.mark.parametrize(
    ("prediction", "target", "options", "match"),
    [
        (POINT, POINT[:5], {}, "shape"),
        (POINT.astype(np.uint8), POINT, {}, "bool"),
        (POINT[0], POINT[0], {}, "axes"),
        (POINT, POINT, {"tolerance": -1.0}, "tolerance"),
        (POINT, POINT, {"tolerance": float("nan")}, "tolerance"),
        (POINT, POINT, {"spacing": (1.0,)}, "spacings"),
        (POINT, POINT, {"spacing": (1.0, 0.0)}, "spacings"),
    ],
)
def test_refuses(prediction, target, options, match):
    with pytest.raises(InputError, match=match):
        surface_dice(prediction, target, **({"tolerance": 1.0, "empty": 0.0} | options))


def test_strict_protocol_scores_it_in_mm_where_the_spacing_is_known():
    away = square(10, 14, 1).astype(np.float32)  # four pixels from the target
    case = GroundingCase("c", "r", "s", "p", "ct", "liver", 0, POINT, away)
    cases = [case, replace(case, id="fine", spacing=(0.5, 0.5)), replace(case, id="refused", mask_probability=None)]
    cases += [replace(case, id="absent", target=None)]
    scores = [score_case(c, STRICT) for c in cases]
    assert [(s.surface_dice, s.in_mm) for s in scores] == [(0.0, False), (1.0, True), (0.0, False), (None, False)]
    summary = summarise_grounding(scores, STRICT, Bootstrap(resamples=200))
    assert (summary.mnsd.value, summary.mnsd.n, summary.counts.in_mm) == (pytest.approx(1 / 3), 3, 1)
    assert summary.macro_mnsd.n == 1
    assert "2 mm" in summary.mnsd.policy
    assert {"g.mnsd", "g.macro_mnsd"} <= {figure.name for figure in summary.figures("g")}
    assert score_case(case, UPSTREAM).surface_dice is None
