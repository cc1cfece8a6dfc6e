from __future__ import annotations

import time

import numpy as np
import pytest

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap, cluster_codes, macro_mean


def simulate(rng: np.random.Generator, patients: int, cases: int) -> tuple[np.ndarray, np.ndarray]:
    """Dice-like values around 0.7 whose patient effect is as large as the spread within a patient."""
    effect = np.repeat(rng.normal(0, 0.1, patients), cases)
    return np.clip(0.7 + effect + rng.normal(0, 0.1, patients * cases), 0, 1), np.repeat(np.arange(patients), cases)


def test_weights_are_multinomial():
    rows = np.concatenate(list(Bootstrap(resamples=4000).weights(5)))
    assert rows.shape == (4000, 5)
    assert (rows.sum(1) == 5).all()
    np.testing.assert_allclose(rows.mean(0), 1, atol=0.05)
    np.testing.assert_allclose(rows.var(0), 0.8, atol=0.08)  # n p (1 - p)


def test_chunks_do_not_change_the_draws():
    whole = np.concatenate(list(Bootstrap(resamples=500).weights(7)))
    pieces = np.concatenate(list(Bootstrap(resamples=500).weights(7, width=20_000)))
    np.testing.assert_array_equal(whole, pieces)


def test_interval_matches_a_plain_loop():
    rng = np.random.default_rng(3)
    values, clusters = simulate(rng, 12, 3)
    fast = Bootstrap(resamples=2000).mean(values, clusters)
    by_patient = values.reshape(12, 3)
    slow = [by_patient[rng.integers(0, 12, 12)].mean() for _ in range(20_000)]
    np.testing.assert_allclose([fast.low, fast.high], np.quantile(slow, [0.025, 0.975]), atol=0.006)


def test_deterministic_and_said():
    values, clusters = simulate(np.random.default_rng(0), 20, 2)
    first, again, other = (Bootstrap(seed=seed).mean(values, clusters) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert "B=2000" in first.method
    assert "seed=1" in first.method
    assert "clusters=20" in first.method


def test_coverage_of_the_mean():
    rng = np.random.default_rng(11)
    bootstrap = Bootstrap(resamples=400)
    truth = simulate(rng, 200_000, 1)[0].mean()
    hits = naive_hits = 0
    for _ in range(200):
        values, clusters = simulate(rng, 40, 5)
        interval, naive = bootstrap.mean(values, clusters), bootstrap.mean(values, np.arange(values.size))
        hits += interval.low <= truth <= interval.high
        naive_hits += naive.low <= truth <= naive.high
    assert 0.90 <= hits / 200 <= 0.985  # 0.95 +- 3 standard errors, and a little less for 40 patients
    assert naive_hits / 200 < 0.8  # cases as if independent: the reason for drawing patients


def test_coverage_of_the_macro_mean():
    rng = np.random.default_rng(12)
    bootstrap = Bootstrap(resamples=400)
    means, sizes = np.array([0.2, 0.5, 0.8]), (15, 60, 30)
    hits = 0
    for _ in range(200):
        groups = np.repeat(np.arange(3), sizes)
        values = np.clip(means[groups] + rng.normal(0, 0.05, groups.size), 0, 1)
        interval = bootstrap.macro_mean(values, groups, np.arange(groups.size))
        hits += interval.low <= means.mean() <= interval.high
    assert 0.89 <= hits / 200 <= 0.985


def test_macro_mean_by_hand_and_with_a_group_that_is_missed():
    values, groups = [1.0, 0.0, 0.0, 0.0, 0.5], ["a", "b", "b", "b", "c"]
    assert macro_mean(values, groups) == pytest.approx(0.5)
    interval = Bootstrap(resamples=500).macro_mean(values, groups, range(5))
    assert 0 <= interval.low < interval.high <= 1
    constant = Bootstrap(resamples=500).macro_mean([0.8] * 5, groups, range(5))
    assert (constant.low, constant.high) == pytest.approx((0.8, 0.8))


def test_ratio_by_hand():
    interval = Bootstrap().ratio([1, 1, 0, 0], [1, 1, 1, 0], "abcd")
    assert 0 <= interval.low < 2 / 3 < interval.high <= 1


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.0] * 50, 0.0, 1 - 0.025 ** (1 / 50)), ([1.0] * 50, 0.025 ** (1 / 50), 1.0)],
)
def test_all_equal_gets_the_exact_interval(values, low, high):
    interval = Bootstrap().mean(values, range(50))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert "Clopper-Pearson" in interval.method


def test_exact_interval_counts_patients_not_cases():
    wide, narrow = Bootstrap().mean([0.0] * 100, [0, 1] * 50), Bootstrap().mean([0.0] * 100, range(100))
    assert wide.high > 0.8 > 0.1 > narrow.high


def test_one_patient_has_no_interval():
    bootstrap = Bootstrap()
    assert bootstrap.mean([0.1, 0.5], "aa") is None
    assert bootstrap.macro_mean([0.1, 0.5], "xy", "aa") is None
    assert bootstrap.ratio([0, 0], [0, 0], "ab") is None
    assert bootstrap.paired_difference([0.1, 0.5], [0.2, 0.5], "aa").interval is None


def test_paired_difference():
    rng = np.random.default_rng(5)
    first, clusters = simulate(rng, 60, 2)
    better = np.clip(first + 0.03 + rng.normal(0, 0.01, first.size), 0, 1)
    bootstrap = Bootstrap()
    gain = bootstrap.paired_difference(first, better, clusters)
    assert gain.value == pytest.approx((better - first).mean())
    assert gain.interval.low > 0.02
    assert gain.p == 1 / bootstrap.resamples
    # Paired, the interval is far narrower than those of the two means.
    alone = bootstrap.mean(first, clusters)
    assert gain.interval.high - gain.interval.low < (alone.high - alone.low) / 3
    loss = bootstrap.paired_difference(better, first, clusters)
    assert (loss.value, loss.interval.low, loss.interval.high) == pytest.approx((-gain.value, -gain.interval.high, -gain.interval.low))
    same = bootstrap.paired_difference(first, first, clusters)
    assert (same.value, same.p) == (0.0, 1.0)
    groups = np.repeat(["a", "b", "b"], 40)
    macro = bootstrap.paired_difference(first, better, clusters, groups)
    assert macro.value == pytest.approx(macro_mean(better, groups) - macro_mean(first, groups))


def test_bad_input_is_refused():
    with pytest.raises(InputError):
        Bootstrap(resamples=3)
    with pytest.raises(InputError):
        Bootstrap(level=1.0)
    with pytest.raises(InputError):
        Bootstrap().paired_difference([0.1], [0.1, 0.2], "ab")


def test_cluster_codes():
    codes, count = cluster_codes(["b", "a", "b", ("a", 1)])
    assert codes.tolist() == [0, 1, 0, 2]
    assert count == 3


def test_speed():
    values = np.random.default_rng(0).random(4000)
    start = time.process_time()
    Bootstrap(resamples=2000).mean(values, range(4000))
    Bootstrap(resamples=2000).macro_mean(values, np.arange(4000) % 8, range(4000))
    assert time.process_time() - start < 2.0  # about 0.3 s for the two
