from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medplib.errors import InputError
from medplib.evaluation.protocols import STRICT, UPSTREAM, upstream_modality
from medplib.evaluation.segmentation import GroundingCase, Overlap, binarise, dice, iou, lisa_scores, overlap, score_case

MASKS = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def case(target, probability, **changes) -> GroundingCase:
    base = GroundingCase("c", "r", "s", "p", "ct", "liver", 0, target, probability)
    return replace(base, **changes)


@given(MASKS)
@settings(max_examples=60, deadline=None)
def test_overlap_matches_sets_of_pixels(masks):
    a, b = masks
    counts = overlap(a, b)
    pixels_a, pixels_b = set(np.flatnonzero(a)), set(np.flatnonzero(b))
    assert counts == Overlap(len(pixels_a & pixels_b), len(pixels_a | pixels_b), len(pixels_a), len(pixels_b))
    assert overlap((a * 255).astype(np.uint8), b.astype(np.int64)) == counts
    assert dice(counts, empty=0.0) == pytest.approx(2 * iou(counts, empty=0.0) / (1 + iou(counts, empty=0.0)))
    assert overlap(b, a).intersection == counts.intersection


@pytest.mark.parametrize("empty", [0.0, 1.0])
def test_empty_against_empty_is_the_stated_value(empty):
    counts = overlap(np.zeros((3, 3), bool), np.zeros((3, 3), bool))
    assert (dice(counts, empty=empty), iou(counts, empty=empty)) == (empty, empty)


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        (np.zeros((3, 4), bool), np.zeros((4, 3), bool)),
        (np.zeros((3, 4), np.float32), np.zeros((3, 4), bool)),
        (np.zeros((0, 4), bool), np.zeros((0, 4), bool)),
        (np.zeros((1, 3, 4), bool), np.zeros((1, 3, 4), bool)),
    ],
)
def test_overlap_refuses(prediction, target):
    with pytest.raises(InputError):
        overlap(prediction, target)


def test_threshold_is_strict_and_in_float32():
    at_threshold = np.array([[0.1, np.nextafter(np.float32(0.1), np.float32(1))]], np.float32)
    assert binarise(at_threshold, 0.1, where="x").tolist() == [[False, True]]
    # Above the threshold in float64, on it in float32.
    assert binarise(np.array([[0.100000002]]), 0.1, where="x").tolist() == [[False]]


@pytest.mark.parametrize(
    "probability",
    [np.array([[0.2, np.nan]]), np.array([[-3.0, 4.0]]), np.array([[0, 1]]), np.array([0.5]), np.zeros((0, 2)), np.array([[1.5, 0.2]])],
)
def test_probabilities_are_checked(probability):
    with pytest.raises(InputError, match="bad-case"):
        binarise(probability, 0.5, where="bad-case")


SQUARE = np.zeros((4, 4), bool)
SQUARE[:2, :2] = True
FAINT = np.where(SQUARE, 0.3, 0.05).astype(np.float32)
EMPTY = np.zeros((4, 4), bool)

# target, probability, other fields -> per protocol: status, dice, segmented
TABLE = [
    ("faint mask", SQUARE, FAINT, {}, ("present", 1.0, True), ("present", 0.0, True)),
    ("no <SEG>", SQUARE, None, {}, ("present", 0.0, False), ("present", 0.0, False)),
    ("no <SEG>, fallback", SQUARE, None, {"fallback_probability": FAINT}, ("present", 1.0, False), ("present", 0.0, False)),
    ("second target", SQUARE, FAINT, {"index": 1}, ("not_first", 1.0, True), ("present", 0.0, True)),
    ("absent, refused", None, None, {}, ("absent_left_out", 0.0, False), ("absent", 0.0, False)),
    ("absent, claimed", None, FAINT, {}, ("absent_left_out", 0.0, True), ("absent", 0.0, True)),
    ("empty target", EMPTY, FAINT, {}, ("present", 0.0, True), ("absent", 0.0, True)),
    ("empty both", EMPTY, FAINT * 0, {}, ("present", 0.0, True), ("absent", 0.0, True)),
]


@pytest.mark.parametrize(("_name", "target", "probability", "fields", "upstream", "strict"), TABLE, ids=[row[0] for row in TABLE])
def test_protocols(_name, target, probability, fields, upstream, strict):
    for protocol, want in ((UPSTREAM, upstream), (STRICT, strict)):
        score = score_case(case(target, probability, **fields), protocol)
        assert (score.status, score.dice, score.segmented) == want
        assert score.protocol == protocol.name
        assert score.fallback == (protocol is UPSTREAM and "fallback_probability" in fields)
        assert score.union == score.pred_pixels + score.target_pixels - score.intersection


def test_score_counts_by_hand():
    probability = np.zeros((4, 4), np.float32)
    probability[1:3, 1:3] = 0.9
    score = score_case(case(SQUARE, probability, presence=0.7, quality=0.25), STRICT)
    assert (score.intersection, score.union, score.pred_pixels, score.target_pixels, score.image_pixels) == (1, 7, 4, 4, 16)
    assert (score.iou, score.dice, score.presence, score.quality) == (1 / 7, 0.25, 0.7, 0.25)


@pytest.mark.parametrize(
    ("target", "probability", "fields"),
    [
        (SQUARE, np.zeros((4, 5), np.float32), {}),
        (SQUARE, FAINT, {"presence": 1.2}),
        (SQUARE, FAINT, {"quality": float("nan")}),
        (SQUARE.astype(np.float32), FAINT, {}),
    ],
)
def test_bad_cases_are_named(target, probability, fields):
    with pytest.raises(InputError, match="scan-7"):
        score_case(case(target, probability, id="scan-7", **fields), STRICT)


def test_cluster_is_the_patient_of_a_source_or_the_record():
    known = {score_case(case(SQUARE, FAINT, source=s, record=r), STRICT).cluster for s in "ab" for r in "xy"}
    assert len(known) == 2
    unknown = {score_case(case(SQUARE, FAINT, patient="", record=r), STRICT).cluster for r in "xyz"}
    assert len(unknown) == 3


def test_lisa_scores_by_hand():
    scores = lisa_scores([Overlap(2, 4, 3, 3), Overlap(0, 0, 0, 0), Overlap(90, 100, 95, 95)])
    assert scores.ciou == pytest.approx(92 / 104)
    assert scores.giou == pytest.approx((0.5 + 1 + 0.9) / 3, abs=1e-5)
    assert lisa_scores([]).n == 0


def test_upstream_modality():
    assert [upstream_modality(n) for n in ("images/x_ray--set--1_000.png", "ct_00--a.png", "plain.png")] == ["x", "ct", "plain.png"]


def test_scoring_is_fast():
    rng = np.random.default_rng(0)
    probability, target = rng.random((512, 512), np.float32), rng.random((512, 512)) > 0.5
    one = case(target, probability)
    start = time.process_time()
    for _ in range(100):
        score_case(one, STRICT)
    # About 0.3 ms each on one slow core; a per-pixel detour would take more than ten times that.
    assert (time.process_time() - start) / 100 < 0.004
