import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import stats


def test_interval_by_hand():
    # mean 2, standard deviation 1, three samples: 2 ± 4.3027 / sqrt(3)
    low, high = stats.interval95(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


@pytest.mark.parametrize("interval", [stats.interval95, stats.bootstrap95])
def test_one_sample_has_no_interval_and_equal_ones_a_point(interval):
    assert interval(np.array([5.0])) is None
    assert interval(np.array([])) is None
    assert interval(np.array([5.0, 5.0])) == [5.0, 5.0]


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    intervals = np.array([stats.interval95(rng.normal(30, 2, 8)) for _ in range(2_000)])
    covered = ((intervals[:, 0] <= 30) & (intervals[:, 1] >= 30)).mean()
    assert covered == pytest.approx(0.95, abs=0.015)


def test_the_interval_of_a_ratio_is_that_of_its_linearisation():
    """Means 3 and 2: ratio 1.5; linearised samples are 1.5 + (n − 1.5 d) / 2."""
    numerator, denominator = np.array([2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0])
    expected = stats.interval95(1.5 + np.array([0.25, 0.0, -0.25]))
    assert stats.ratio_interval95(numerator, denominator) == pytest.approx(expected)


def test_clusters_scatter_about_the_means_of_strata_by_hand():
    """Means of the strata are 2 and 5, equally weighted 3.5; the clusters are 1/4 below and above, doubled for two."""
    values, strata, clusters = np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), np.array([7, 9, 9])
    found = stats.linearised(values, np.array([0.25, 0.25, 0.5]), strata, clusters)
    assert found == pytest.approx([3.0, 4.0])


def test_with_one_stratum_and_equal_clusters_values_are_cluster_means():
    values = np.random.default_rng(0).normal(size=12)
    found = stats.linearised(values, np.full(12, 1 / 12), np.zeros(12, int), np.repeat([2, 0, 1], 4))
    assert found == pytest.approx(values.reshape(3, 4).mean(1)[[1, 2, 0]])


def test_intervals_of_fixed_strata_cover_the_truth():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(1_000):
        strata, clusters = rng.integers(2, size=160), np.repeat(np.arange(8), 20)
        values = np.array([10.0, 50.0])[strata] + rng.normal(0, 1, 8)[clusters] + rng.normal(0, 1, 160)
        weights = 0.5 / np.bincount(strata)[strata]
        low, high = stats.interval95(stats.linearised(values, weights, strata, clusters))
        covered += low <= 30 <= high
    assert covered / 1_000 == pytest.approx(0.95, abs=0.025)


def test_a_ratio_to_a_constant_is_the_mean_in_its_unit():
    samples = np.array([3.0, 5.0, 7.0, 8.0])
    expected = stats.interval95(samples / 4)
    assert stats.ratio_interval95(samples, np.full(4, 4.0)) == pytest.approx(expected)


def test_the_interval_of_a_ratio_covers_it():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        denominator = rng.normal(10, 2, 30)
        low, high = stats.ratio_interval95(0.7 * denominator + rng.normal(0, 1, 30), denominator)
        hits += low <= 0.7 <= high
    assert hits / 1000 == pytest.approx(0.95, abs=0.025)


def test_interquartile_mean_by_hand():
    assert stats.interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == pytest.approx(3.5)
    np.testing.assert_allclose(stats.interquartile_mean(np.arange(16.0).reshape(4, 4), axis=0), [6, 7, 8, 9])


def test_bootstrap_of_the_mean_is_near_the_normal_interval():
    samples = np.random.default_rng(0).normal(10, 3, 400)
    half = 1.96 * samples.std() / 20
    assert stats.bootstrap95(samples) == pytest.approx([samples.mean() - half, samples.mean() + half], abs=0.03)
    assert stats.bootstrap95(samples) == stats.bootstrap95(samples), "it has its own generator"
    low, high = stats.bootstrap95(samples, stats.interquartile_mean)
    assert low < stats.interquartile_mean(samples) < high


def test_bootstrap_weights_are_counts_over_their_number():
    weights = stats.bootstrap_weights(5, 2000, np.random.default_rng(0))
    assert weights.shape == (2000, 5)
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(5 * weights, np.round(5 * weights))
    np.testing.assert_allclose(weights.mean(0), 0.2, atol=0.01)


def test_percentiles_by_hand():
    assert stats.percentiles95(np.arange(1001.0)) == pytest.approx([25, 975])


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), st.floats(-1e3, 1e3), st.floats(0.1, 10))
def test_intervals_move_and_stretch_with_their_samples(samples, shift, factor):
    samples = np.array(samples)
    expected = factor * np.array(stats.interval95(samples)) + shift
    size = max(1.0, np.abs(expected).max(), factor * np.abs(samples).max())
    np.testing.assert_allclose(stats.interval95(factor * samples + shift), expected, atol=1e-9 * size)


def test_weighted_percentiles_by_hand():
    """Bounds are samples: the first at which the cumulative weight reaches the level."""
    samples = np.array([[3.0, 1.0, 2.0, 9.0], [3.0, 1.0, 2.0, 9.0]])
    weights = np.array([[0.5, 0.02, 0.46, 0.02], [0.25, 0.25, 0.25, 0.25]])
    assert stats.weighted_percentiles95(samples, weights).tolist() == [[2, 3], [1, 9]]
    many = np.random.default_rng(0).normal(size=(1, 2001))
    equal = stats.weighted_percentiles95(many, np.full(many.shape, 1 / 2001))
    np.testing.assert_allclose(equal[0], stats.percentiles95(many[0]), atol=0.02)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.integers(0, 11))
def test_a_sample_without_weight_does_not_count(samples, place):
    weights = np.full(len(samples), 1 / len(samples))
    with_it = np.insert(samples, min(place, len(samples)), 1e9)[None]
    bounds = stats.weighted_percentiles95(with_it, np.insert(weights, min(place, len(samples)), 0)[None])
    assert bounds.tolist() == stats.weighted_percentiles95(np.array(samples)[None], weights[None]).tolist()


def test_leaving_out_each_cluster_in_turn_by_hand():
    """The mean of single samples: the jackknife is the usual Student interval."""
    samples = np.array([1.0, 2.0, 3.0])
    sums = np.stack([samples, np.ones(3)], 1)
    half = stats.jackknife_half95(sums, lambda sums: sums[..., 0] / sums[..., 1])
    low, high = stats.interval95(samples)
    assert half == pytest.approx((high - low) / 2)
    assert stats.jackknife_half95(sums[:1], lambda sums: sums[..., 0] / sums[..., 1]) == np.inf


def test_the_jackknife_of_a_ratio_covers_it_for_six_clusters():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        weights = rng.gamma(4.0, 1.0, 6)
        sums = np.stack([weights * rng.normal(0.7, 1.0, 6), weights], 1)
        half = stats.jackknife_half95(sums, lambda sums: sums[..., 0] / sums[..., 1])
        hits += abs(sums[:, 0].sum() / sums[:, 1].sum() - 0.7) <= half
    assert hits / 1000 == pytest.approx(0.95, abs=0.025)
