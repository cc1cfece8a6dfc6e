from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.presence import (
    PresenceCalibration,
    auroc,
    auroc_interval,
    expected_calibration_error,
    fit_presence,
    fit_temperature,
    fit_threshold,
    operating_point,
    reliability,
)

LABELS = np.array([True, True, True, False, False])


@pytest.mark.parametrize(
    ("scores", "want"), [([3, 4, 5, 1, 2], 1.0), ([1, 2, 3, 4, 5], 0.0), ([1, 1, 1, 1, 1], 0.5), ([1, 2, 3, 2, 0], 4.5 / 6)]
)
def test_auroc_by_hand(scores, want):
    assert auroc(np.array(scores, float), LABELS) == pytest.approx(want)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30).filter(lambda r: len({k for _, k in r}) == 2))
def test_auroc_is_the_share_of_ordered_pairs(rows):
    scores, labels = np.array([s for s, _ in rows], float), np.array([k for _, k in rows])
    pairs = scores[labels][:, None] - scores[~labels][None]
    assert auroc(scores, labels) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_auroc_interval_matches_a_plain_loop():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2 == 0
    scores = np.round(rng.normal(labels * 1.0, 1), 1)  # with ties
    clusters = np.arange(60) // 3
    interval = auroc_interval(scores, labels, clusters, Bootstrap(resamples=2000))
    slow = []
    for _ in range(2000):
        cases = np.concatenate([np.flatnonzero(clusters == c) for c in rng.integers(0, 20, 20)])
        slow.append(auroc(scores[cases], labels[cases]))
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(slow, [0.025, 0.975]), atol=0.015)
    assert interval.low < auroc(scores, labels) < interval.high
    assert auroc_interval(scores, labels, ["one"] * 60, Bootstrap()) is None


@pytest.mark.parametrize(
    ("max_fpr", "threshold", "fpr", "recall"),
    [(0.0, 0.65, 0.0, 0.5), (0.3, 0.35, 0.25, 1.0), (0.5, 0.35, 0.25, 1.0), (None, 0.35, 0.25, 1.0)],
)
def test_threshold_by_hand(max_fpr, threshold, fpr, recall):
    probabilities = np.array([0.9, 0.7, 0.5, 0.4, 0.6, 0.3, 0.2, 0.1])
    labels = np.array([True] * 4 + [False] * 4)
    found = fit_threshold(probabilities, labels, max_fpr=max_fpr)
    point = operating_point(probabilities, labels, found)
    assert (point.false_positive_rate, point.recall) == (fpr, recall)
    assert point.balanced_accuracy == pytest.approx((recall + 1 - fpr) / 2)
    assert (point.present, point.absent) == (4, 4)
    assert found == pytest.approx(threshold)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=25).filter(lambda r: len({k for _, k in r}) == 2),
    st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9]),
)
def test_threshold_keeps_its_promise_and_no_lower_one_does(rows, max_fpr):
    probabilities, labels = np.array([p for p, _ in rows]), np.array([k for _, k in rows])
    threshold = fit_threshold(probabilities, labels, max_fpr=max_fpr)
    point = operating_point(probabilities, labels, threshold)
    assert point.false_positive_rate <= max_fpr + 1e-9
    better = [operating_point(probabilities, labels, float(t)) for t in np.append(probabilities, 0.0)]
    assert not any(b.false_positive_rate <= max_fpr and b.recall > point.recall + 1e-9 for b in better)
    best = operating_point(probabilities, labels, fit_threshold(probabilities, labels))
    assert best.balanced_accuracy >= max(b.balanced_accuracy for b in better) - 1e-9


def test_calibration_error_by_hand():
    probabilities, labels = np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True])
    table = reliability(probabilities, labels, bins=10)
    assert [(b.n, b.confidence, b.frequency) for b in table] == [(2, pytest.approx(0.05), 0.5), (2, pytest.approx(0.975), 1.0)]
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx((0.45 + 0.025) / 2)


def test_temperature_is_found():
    rng = np.random.default_rng(0)
    true_logits = rng.normal(0, 2, 20_000)
    labels = rng.random(20_000) < expit(true_logits)
    assert fit_temperature(true_logits * 2.5, labels) == pytest.approx(2.5, rel=0.05)


def simulate(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, [1.5, 3.0], (n, 2))
    return logits, rng.random(n) < expit(logits @ [1.2, 0.4] - 0.7)


def test_fit_recovers_the_generating_weights_and_calibrates():
    logits, labels = simulate(20_000, 0)
    fitted = fit_presence(logits, labels, ("language", "head"))
    np.testing.assert_allclose([*fitted.weights, fitted.bias], [1.2, 0.4, -0.7], atol=0.08)
    fresh, truth = simulate(20_000, 1)
    assert expected_calibration_error(fitted.probability(fresh), truth) < 0.015
    assert expected_calibration_error(expit(fresh[:, 0]), truth) > 0.05
    assert auroc(fitted.probability(fresh), truth) > max(auroc(fresh[:, k], truth) for k in (0, 1))
    assert (fitted.present, fitted.absent) == (labels.sum(), (~labels).sum())


def test_threshold_rule_is_kept_and_said():
    logits, labels = simulate(2000, 2)
    fitted = fit_presence(logits, labels, ("language", "head"), max_fpr=0.05)
    point = operating_point(fitted.probability(logits), labels, fitted.threshold)
    assert 0.03 < point.false_positive_rate <= 0.05
    assert "0.05" in fitted.rule


def test_weights_are_never_negative_and_separable_data_stay_finite():
    labels = np.arange(40) < 20
    logits = np.stack([np.where(labels, 5.0, -5.0), np.where(labels, -3.0, 3.0)], axis=1)
    fitted = fit_presence(logits, labels, ("good", "reversed"))
    assert fitted.weights[1] == 0.0
    assert 0 < fitted.weights[0] < 5
    assert fitted.probability(logits)[labels].mean() == pytest.approx(21 / 22, abs=1e-3)  # the smoothed target


def test_saved_and_loaded(tmp_path):
    logits, labels = simulate(200, 3)
    fitted = fit_presence(logits, labels, ("language", "head"))
    fitted.save(tmp_path / "presence.json")
    assert PresenceCalibration.load(tmp_path / "presence.json", weights_sha256="") == fitted


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [1.0]},
        {"weights": [1.0, -0.5]},
        {"bias": "x"},
        {"bias": float("nan")},
        {"extra": 1},
        {"names": [], "weights": []},
        {"weights_sha256": "y"},
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change):
    stored = {
        "names": ["a", "b"],
        "weights": [1.0, 0.5],
        "bias": 0.1,
        "threshold": 0.5,
        "rule": "",
        "present": 2,
        "absent": 3,
        "weights_sha256": "x",
    }
    path = tmp_path / "presence.json"
    path.write_text(json.dumps(stored))
    assert PresenceCalibration.load(path, weights_sha256="x").weights == (1.0, 0.5)
    path.write_text(json.dumps(stored | change))
    with pytest.raises(InputError, match=r"presence\.json"):
        PresenceCalibration.load(path, weights_sha256="x")
    path.write_text("{")
    with pytest.raises(InputError, match=r"presence\.json"):
        PresenceCalibration.load(path, weights_sha256="x")
    with pytest.raises(InputError, match="missing"):
        PresenceCalibration.load(tmp_path / "missing.json", weights_sha256="x")


def test_one_kind_of_case_is_refused():
    for labels in (np.ones(3, bool), np.zeros(3, bool)):
        with pytest.raises(InputError, match="present and absent"):
            auroc(np.arange(3.0), labels)
        with pytest.raises(InputError, match="present and absent"):
            fit_presence(logit(np.array([[0.2], [0.5], [0.6]])), labels, ("a",))
    with pytest.raises(InputError):
        fit_presence(np.array([[np.inf], [0.0]]), np.array([True, False]), ("a",))
    with pytest.raises(InputError):
        fit_threshold(np.array([0.1, 0.2]), np.array([True, False]), max_fpr=1.0)
    with pytest.raises(InputError):
        expected_calibration_error(np.array([1.2]), np.array([True]))
