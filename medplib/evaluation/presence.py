"""Is the thing there at all? Ranking quality, calibration and threshold of the presence score, fitted on validation cases only.

Logits may come from several places (the language model's odds of `<SEG>`, a presence head); a non-negative logistic combination makes one
probability of them. Arrays: scores and probabilities (N,), labels (N,) bool with True = present, logits (N, K).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap, Interval, cluster_codes
from medplib.inference.calibration import PresenceCalibration


def auroc(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Probability that a present case scores above an absent one, ties one half (Mann-Whitney U / (P A)).

    Raises:
        InputError: the cases are all present or all absent, or a score is NaN.
    """
    scores, labels = _checked(scores_N, labels_N)
    positives = int(labels.sum())
    negatives = labels.size - positives
    _, place, cases = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(cases) - (cases - 1) / 2  # tied scores share their mean rank
    rank_sum = ranks[place][labels].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def auroc_interval(scores_N: np.ndarray, labels_N: np.ndarray, clusters_N: Sequence[object], bootstrap: Bootstrap) -> Interval | None:
    """Patient-clustered percentile interval of the AUROC; None with fewer than two clusters. Resamples of one kind only are dropped."""
    scores, labels = _checked(scores_N, labels_N)
    codes_N, count = cluster_codes(clusters_N)
    if count < 2:
        return None
    values, place_N = np.unique(scores, return_inverse=True)
    # Cases are sorted once; a resample only changes their weights (V distinct scores).
    order = np.argsort(place_N, kind="stable")
    starts = np.searchsorted(place_N[order], np.arange(values.size))
    draws = []
    for weights_bC in bootstrap.weights(count, width=scores.size):
        weights_bN = weights_bC[:, codes_N[order]]
        present_bV = np.add.reduceat(weights_bN * labels[order], starts, axis=1)
        absent_bV = np.add.reduceat(weights_bN * ~labels[order], starts, axis=1)
        below_bV = np.cumsum(absent_bV, axis=1) - 0.5 * absent_bV
        pairs_b = present_bV.sum(1) * absent_bV.sum(1)
        kept = pairs_b > 0
        draws.append((present_bV * below_bV).sum(1)[kept] / pairs_b[kept])
    return bootstrap.percentile(np.concatenate(draws), count)


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does: a case counts as present when its probability is at least `threshold`."""

    threshold: float
    false_positive_rate: float
    recall: float
    balanced_accuracy: float
    present: int
    absent: int


def operating_point(probabilities_N: np.ndarray, labels_N: np.ndarray, threshold: float) -> OperatingPoint:
    """False-positive rate and recall at `threshold`; both kinds of case are needed."""
    probabilities, labels = _checked(probabilities_N, labels_N)
    said = probabilities >= threshold
    fpr, recall = float(said[~labels].mean()), float(said[labels].mean())
    return OperatingPoint(float(threshold), fpr, recall, (recall + 1 - fpr) / 2, int(labels.sum()), int((~labels).sum()))


def fit_threshold(probabilities_N: np.ndarray, labels_N: np.ndarray, *, max_fpr: float | None = None) -> float:
    """The threshold that a validation set asks for.

    With `max_fpr`: the highest recall that keeps the false-positive rate at most that, and of the thresholds with this recall the one of
    fewest false positives. Without: the one of highest balanced accuracy, the middle one of equally good ones. Thresholds lie halfway
    between neighbouring probabilities, or beyond the last, so that a value seen in validation never sits on the edge.

    Raises:
        InputError: only one kind of case, or `max_fpr` outside [0, 1).
    """
    probabilities, labels = _checked(probabilities_N, labels_N)
    if max_fpr is not None and not 0 <= max_fpr < 1:
        raise InputError(where="presence threshold", expected="max_fpr in [0, 1)", found=str(max_fpr))
    values = np.unique(probabilities)
    candidates = np.concatenate([[values[0] / 2], (values[:-1] + values[1:]) / 2, [(values[-1] + 1) / 2]])
    fpr = 1 - np.searchsorted(np.sort(probabilities[~labels]), candidates, "left") / (~labels).sum()
    recall = 1 - np.searchsorted(np.sort(probabilities[labels]), candidates, "left") / labels.sum()
    if values[-1] >= 1:  # nothing lies above a probability of 1; the strictest rule is then to refuse everything
        candidates[-1], fpr[-1], recall[-1] = np.nextafter(1.0, 2.0), 0.0, 0.0
    if max_fpr is not None:
        allowed = fpr <= max_fpr + 1e-12
        equally_good = np.flatnonzero(allowed & np.isclose(recall, recall[allowed].max(), rtol=0, atol=1e-12))
        return float(candidates[equally_good[-1]])  # the false-positive rate falls as the threshold rises
    best = np.flatnonzero(np.isclose(recall - fpr, (recall - fpr).max(), rtol=0, atol=1e-12))
    return float(candidates[best[len(best) // 2]])


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases whose probability falls in [low, high): how many, mean probability, share present."""

    low: float
    high: float
    n: int
    confidence: float
    frequency: float


def reliability(probabilities_N: np.ndarray, labels_N: np.ndarray, bins: int = 15) -> list[ReliabilityBin]:
    """Equal-width bins over [0, 1] that hold a case; 1.0 falls in the last."""
    probabilities, labels = np.asarray(probabilities_N, np.float64), np.asarray(labels_N, bool)
    if probabilities.size == 0 or probabilities.shape != labels.shape or not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise InputError(where="presence calibration", expected="one probability in [0, 1] per label", found=f"{probabilities.size} values")
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    return [
        ReliabilityBin(
            i / bins, (i + 1) / bins, int((place == i).sum()), float(probabilities[place == i].mean()), float(labels[place == i].mean())
        )
        for i in np.unique(place).tolist()
    ]


def expected_calibration_error(probabilities_N: np.ndarray, labels_N: np.ndarray, bins: int = 15) -> float:
    """Mean over cases of |mean probability - share present| of the case's bin (Guo et al. 2017, equation 3), `bins` equal-width bins."""
    table = reliability(probabilities_N, labels_N, bins)
    return float(sum(b.n * abs(b.confidence - b.frequency) for b in table) / sum(b.n for b in table))


def fit_temperature(logits_N: np.ndarray, labels_N: np.ndarray) -> float:
    """T > 0 that minimises the log loss of sigmoid(logit / T) (Guo et al. 2017), searched over 0.01 to 100."""
    logits, labels = _checked(logits_N, labels_N)
    sign = np.where(labels, 1.0, -1.0)
    found = minimize_scalar(lambda t: -log_expit(sign * logits * np.exp(-t)).mean(), bounds=(np.log(0.01), np.log(100)), method="bounded")
    return float(np.exp(found.x))


def fit_presence(logits_NK: np.ndarray, labels_N: np.ndarray, names: Sequence[str], *, max_fpr: float | None = None) -> PresenceCalibration:
    """Logistic combination of K logits, then a threshold; both from validation cases.

    Platt's smoothed targets (P + 1) / (P + 2) and 1 / (A + 2) keep the fit finite where the validation cases are separable.

    Raises:
        InputError: shapes do not fit, a logit is not finite, or only one kind of case.
    """
    logits = np.asarray(logits_NK, np.float64)
    if logits.ndim != 2 or logits.shape != (len(labels_N), len(names)) or not np.isfinite(logits).all():
        raise InputError(
            where="presence calibration", expected=f"finite logits ({len(labels_N)}, {len(names)})", found=f"{logits.shape} or a NaN"
        )
    labels = _checked(logits[:, 0], labels_N)[1]
    present, absent = int(labels.sum()), int((~labels).sum())
    target = np.where(labels, (present + 1) / (present + 2), 1 / (absent + 2))
    centre, scale = logits.mean(0), np.maximum(logits.std(0), 1e-9)  # the search is better conditioned on standardised logits
    standard = (logits - centre) / scale

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = standard @ parameters[:-1] + parameters[-1]
        residual = expit(z) - target
        value = -(target * log_expit(z) + (1 - target) * log_expit(-z)).mean()
        return float(value), np.append(standard.T @ residual, residual.sum()) / labels.size

    start = np.append(np.full(len(names), 0.1), 0.0)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(names) + [(None, None)])
    weights = found.x[:-1] / scale
    bias = float(found.x[-1] - weights @ centre)
    probabilities = expit(logits @ weights + bias)
    threshold = fit_threshold(probabilities, labels, max_fpr=max_fpr)
    rule = "highest balanced accuracy" if max_fpr is None else f"false-positive rate <= {max_fpr:g}"
    return PresenceCalibration(tuple(names), tuple(weights.tolist()), bias, threshold, rule, present, absent)


def _checked(scores_N: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores_N, np.float64), np.asarray(labels_N, bool)
    if scores.ndim != 1 or scores.shape != labels.shape or np.isnan(scores).any():
        raise InputError(where="presence scores", expected="one number per label", found=f"{scores.shape} for {labels.shape}, or a NaN")
    if labels.all() or not labels.any():
        raise InputError(
            where="presence scores",
            expected="present and absent cases",
            found=f"{int(labels.sum())} present, {int((~labels).sum())} absent",
            remedy="add questions about absent things to the set",
        )
    return scores, labels
