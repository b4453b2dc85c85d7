"""Intervals and bootstraps: the uncertainty of a mean, a ratio or any statistic of independent samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri, stdtrit

BOOTSTRAPS = 10_000
LEVELS = (0.025, 0.975)
NORMAL95 = float(ndtri(LEVELS[1]))  # half-width of a normal interval, in known standard errors


def interval95(samples: np.ndarray) -> list[float] | None:
    """95% Student interval of the mean of independent samples [n]; None for a single one."""
    if len(samples) < 2:
        return None
    half = float(stdtrit(len(samples) - 1, LEVELS[1]) * np.std(samples, ddof=1) / np.sqrt(len(samples)))
    return [float(np.mean(samples)) - half, float(np.mean(samples)) + half]


def linearised(values: np.ndarray, weights: np.ndarray, strata: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """One value per cluster [C]; their mean is the weighted mean of values [n], and their scatter gives its error.

    weights: [n], constant within a stratum and summing to 1: each stratum's share of the whole is fixed, however often
    it was drawn, so only deviations from stratum means add to the error (Särndal et al. 1992, section 5.7). Samples
    within a cluster may depend on each other in any way.
    """
    _, stratum = np.unique(strata, return_inverse=True)
    _, cluster = np.unique(clusters, return_inverse=True)
    mean = (np.bincount(stratum, values) / np.bincount(stratum))[stratum]
    totals = np.bincount(cluster, weights * (values - mean))
    return np.asarray(weights @ values + len(totals) * totals)


def jackknife_half95(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> float:
    """Half-width of a 95% Student interval of a statistic of sums over clusters [V, S], leaving out each in turn.

    statistic: maps sums over clusters [..., S] to [...]. Steps within a cluster may depend on each other in any way.
    With few clusters it errs on the wide side, while a bootstrap is too narrow (Efron and Stein 1981). inf for one.
    """
    num_clusters = len(sums)
    if num_clusters < 2:
        return float("inf")
    left = statistic(sums.sum(0) - sums)
    error = np.sqrt((num_clusters - 1) / num_clusters * ((left - left.mean()) ** 2).sum())
    return float(stdtrit(num_clusters - 1, LEVELS[1]) * error)


def ratio_interval95(numerator: np.ndarray, denominator: np.ndarray) -> list[float] | None:
    """95% interval of the ratio of two means over the same episodes [n], by linearisation (the delta method)."""
    ratio = numerator.mean() / denominator.mean()
    return interval95(ratio + (numerator - ratio * denominator) / denominator.mean())


def interquartile_mean(samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of samples (Agarwal et al. 2021, rliable)."""
    import scipy.stats  # takes half a second

    return scipy.stats.trim_mean(samples, 0.25, axis=axis)


def bootstrap95(samples: np.ndarray, statistic: Callable[..., np.ndarray] = np.mean) -> list[float] | None:
    """95% percentile bootstrap of a statistic of independent samples [n]; None for a single one.

    Too narrow for few samples: with five normal ones it covers the mean in 84 of 100 cases.
    """
    if len(samples) < 2:
        return None
    drawn = np.random.default_rng(0).integers(len(samples), size=(BOOTSTRAPS, len(samples)))
    return percentiles95(statistic(samples[drawn], axis=-1))


def bootstrap_weights(num_samples: int, num_bootstraps: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of n samples in each of B bootstraps, [B, n]; each row sums to 1."""
    return rng.multinomial(num_samples, np.full(num_samples, 1 / num_samples), num_bootstraps) / num_samples


def percentiles95(samples: np.ndarray) -> list[float]:
    """The bounds of the middle 95% of samples [n]."""
    return [float(bound) for bound in np.quantile(samples, LEVELS)]


def weighted_percentiles95(samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The bounds [n, 2] of the middle 95% of samples [n, S] with weights [n, S]; each row of weights sums to 1.

    Bounds are samples: the nearest at or beyond the level, so with few samples the smallest and the largest.
    """
    order = np.argsort(samples, axis=1)
    ordered = np.take_along_axis(samples, order, axis=1)
    total = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    low = (total >= LEVELS[0] - 1e-9).argmax(axis=1)
    high = (total >= LEVELS[1] - 1e-9).argmax(axis=1)
    return np.take_along_axis(ordered, np.stack([low, high], axis=1), axis=1)
