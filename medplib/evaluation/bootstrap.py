"""Intervals by patient-clustered bootstrap: whole patients are drawn with replacement, because their cases are not independent.

Percentile intervals (Efron and Tibshirani 1993, chapter 13). B resamples, N cases, C clusters (patients), G groups, K columns.
Every statistic here is a ratio of sums over cases, so one resample is one row of cluster counts times per-cluster sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medplib.errors import InputError

_CELLS_PER_CHUNK = 2_000_000  # 16 MB of float64 weights at a time


@dataclass(frozen=True)
class Interval:
    """Bounds of an interval and the words that say how it was made."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Difference:
    """Paired difference second minus first, its interval, and the share of resamples on the other side of zero, doubled (p)."""

    value: float
    interval: Interval | None
    p: float | None


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn. The same seed and the same cases, in any order of calls, give the same interval.

    Args:
        resamples: B; 2,000 keep the Monte Carlo error of a 95 % bound near 0.05 standard errors.
        seed: of numpy's default generator.
        level: coverage, 0.95 for the usual interval.
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 100 or not 0.5 <= self.level < 1:
            raise InputError(
                where="bootstrap", expected="resamples >= 100 and 0.5 <= level < 1", found=f"resamples={self.resamples}, level={self.level}"
            )

    def mean(self, values_N: Sequence[float] | np.ndarray, clusters_N: Sequence[object]) -> Interval | None:
        """Interval of the plain mean over cases; None with fewer than two clusters.

        Values must lie in [0, 1]. Where every value is 0, or every value is 1, the bootstrap has no spread and would claim certainty; the
        exact binomial interval (Clopper and Pearson 1934) with one trial per cluster is given instead and `method` says so.
        """
        values = np.asarray(values_N, np.float64)
        return self.ratio(values, np.ones_like(values), clusters_N)

    def ratio(
        self, numerators_N: Sequence[float] | np.ndarray, denominators_N: Sequence[float] | np.ndarray, clusters_N: Sequence[object]
    ) -> Interval | None:
        """Interval of sum(numerators) / sum(denominators), 0 <= numerator <= denominator; None with fewer than two clusters.

        Clusters whose denominator is zero are part of the population and are drawn too; resamples without any denominator are dropped.
        """
        top_N, bottom_N = np.asarray(numerators_N, np.float64), np.asarray(denominators_N, np.float64)
        codes_N, count = cluster_codes(clusters_N)
        if count < 2 or bottom_N.sum() == 0:
            return None
        if top_N.sum() == 0 or top_N.sum() == bottom_N.sum():
            informative = np.unique(codes_N[bottom_N > 0]).size
            return self._exact(all_hit=top_N.sum() > 0, trials=informative)
        sums_CK = np.stack([np.bincount(codes_N, column, count) for column in (top_N, bottom_N)], axis=1)
        draws_BK = np.concatenate([weights_bC @ sums_CK for weights_bC in self.weights(count)])
        kept = draws_BK[:, 1] > 0
        return self.percentile(draws_BK[kept, 0] / draws_BK[kept, 1], count)

    def macro_mean(
        self, values_N: Sequence[float] | np.ndarray, groups_N: Sequence[object], clusters_N: Sequence[object]
    ) -> Interval | None:
        """Interval of the mean of per-group means; None with fewer than two clusters.

        Patients are drawn over all groups together, so that a patient with cases in several groups stays whole. In a resample that misses a
        group entirely the mean is over the groups it has.
        """
        codes_N, count = cluster_codes(clusters_N)
        if count < 2:
            return None
        return self.percentile(self._macro_draws(np.asarray(values_N, np.float64), groups_N, codes_N, count), count)

    def paired_difference(
        self,
        first_N: Sequence[float] | np.ndarray,
        second_N: Sequence[float] | np.ndarray,
        clusters_N: Sequence[object],
        groups_N: Sequence[object] | None = None,
    ) -> Difference:
        """Second minus first on the same cases: mean, or macro mean over `groups_N`; two-sided bootstrap p = 2 min(share <= 0, share >= 0).

        Raises:
            InputError: the two do not have one value per case each, or there is no case.
        """
        first, second = np.asarray(first_N, np.float64), np.asarray(second_N, np.float64)
        if first.shape != second.shape or first.size == 0 or first.size != len(clusters_N):
            raise InputError(
                where="paired difference", expected="the same cases, at least one", found=f"{first.size}, {second.size}, {len(clusters_N)}"
            )
        groups_N = [""] * first.size if groups_N is None else groups_N
        difference_N = second - first
        value = macro_mean(difference_N, groups_N)
        codes_N, count = cluster_codes(clusters_N)
        if count < 2:
            return Difference(value, None, None)
        draws_B = self._macro_draws(difference_N, groups_N, codes_N, count)
        p = min(1.0, 2 * min(np.mean(draws_B <= 0), np.mean(draws_B >= 0)))
        # With B resamples nothing below 1 / B can be told from it.
        return Difference(value, self.percentile(draws_B, count), max(float(p), 1 / self.resamples))

    def weights(self, clusters: int, width: int = 0) -> Iterator[np.ndarray]:
        """Chunks (b, C) float64 of how often each cluster was drawn; each row sums to C; B rows in all.

        `width` is how many numbers the caller makes of one row where that is more than C; it keeps its memory bounded too.
        """
        rng = np.random.default_rng(self.seed)
        step = max(1, min(self.resamples, _CELLS_PER_CHUNK // max(clusters, width)))
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            # Counting uniform draws gives the same multinomial as rng.multinomial, an order of magnitude faster.
            drawn = rng.integers(0, clusters, (rows, clusters), dtype=np.int32)
            drawn += (np.arange(rows, dtype=np.int32) * clusters)[:, None]
            yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)

    def _macro_draws(self, values_N: np.ndarray, groups_N: Sequence[object], codes_N: np.ndarray, count: int) -> np.ndarray:
        group_N, groups = cluster_codes(groups_N)
        cell_N = codes_N * groups + group_N
        sums_CG = np.bincount(cell_N, values_N, count * groups).reshape(count, groups)
        cases_CG = np.bincount(cell_N, minlength=count * groups).reshape(count, groups).astype(np.float64)
        draws = []
        for weights_bC in self.weights(count):
            cases_bG = weights_bC @ cases_CG
            means_bG = np.divide(weights_bC @ sums_CG, cases_bG, out=np.zeros_like(cases_bG), where=cases_bG > 0)
            draws.append(means_bG.sum(1) / (cases_bG > 0).sum(1))
        return np.concatenate(draws)

    def percentile(self, draws_B: np.ndarray, clusters: int) -> Interval:
        """Central percentile interval of B draws of a statistic."""
        low, high = np.quantile(draws_B, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Interval(
            float(low), float(high), f"patient-clustered percentile bootstrap, B={self.resamples}, seed={self.seed}, clusters={clusters}"
        )

    def _exact(self, *, all_hit: bool, trials: int) -> Interval:
        tail = (1 - self.level) / 2
        bound = tail ** (1 / trials)  # closed form of the beta quantile for 0 of n and n of n
        low, high = (bound, 1.0) if all_hit else (0.0, 1 - bound)
        return Interval(low, high, f"Clopper-Pearson, clusters={trials} (all values equal, bootstrap undefined)")


def macro_mean(values_N: Sequence[float] | np.ndarray, groups_N: Sequence[object]) -> float:
    """Mean over groups of the mean within each group; at least one case."""
    group_N, groups = cluster_codes(groups_N)
    return float(np.mean(np.bincount(group_N, np.asarray(values_N, np.float64), groups) / np.bincount(group_N, minlength=groups)))


def cluster_codes(labels_N: Sequence[object]) -> tuple[np.ndarray, int]:
    """Labels as integers 0..C-1 in order of first appearance (N,), and C."""
    table: dict[object, int] = {}
    codes = np.fromiter((table.setdefault(label, len(table)) for label in labels_N), np.int64, len(labels_N))
    return codes, len(table)
