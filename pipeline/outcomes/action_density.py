"""Densities of actions on the unit box, with atoms at its bounds, and the smoothing kernel of off-policy weights.

Loggers that clip actions to their bounds choose a bound with positive probability, so densities here are with respect
to a base measure: on each axis length inside (0, 1), plus an atom at each bound that counts as a stretch of the axis.
The stretch is as wide as the steps at the bound would need at the density just before it, so a density does not jump at
an atom, and a kernel puts as much of its mass there as the logs do. Without an atom the width is 0, and the kernel is
the normal density truncated to the box.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

AT_BOUND = 1e-9  # in the unit box; points closer to a bound are at it
FEWEST_AT_BOUND = 2  # steps at a bound that make it an atom: a density gives none
NEAR_BOUND = 0.15  # in the unit box; range over which the density before a bound is measured
WIDEST = 2.0  # width of an atom
AT_ONCE = 1 << 22  # pairs of points compared at once, which bounds memory
FACTORS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # bandwidths to try, in spreads of the action
SHRINKAGE = (5.0, 20.0, 80.0, 320.0)  # weights to try for the density over all contexts in each, in steps
UNIFORM_STEPS = 5.0  # weight of the uniform density, in steps
MOST_REFERENCES = 2000  # steps used to estimate a density


def atom_widths(unit: np.ndarray) -> np.ndarray:
    """Widths [A, 2] of the atoms at the low and high bounds of logged actions [n, A] in the unit box."""
    widths = np.zeros((unit.shape[1], 2))
    for axis, points in enumerate(unit.T):
        for side, distance in enumerate((points, 1 - points)):
            at_bound = (distance <= AT_BOUND).sum()
            if at_bound >= FEWEST_AT_BOUND:
                near = ((distance > AT_BOUND) & (distance < NEAR_BOUND)).sum() / NEAR_BOUND
                widths[axis, side] = min(at_bound / near, WIDEST) if near else WIDEST
    return widths


def log_mass(centres: np.ndarray, bandwidth: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Logarithm of the integral over the box of exp(−Σ_j ((u_j − c_j) / h_j)² / 2), for centres c [..., A] in it."""
    low, high = -centres / bandwidth, (1 - centres) / bandwidth
    inside = np.sqrt(2 * np.pi) * bandwidth * (ndtr(high) - ndtr(low))
    return np.log(inside + widths[:, 0] * np.exp(-0.5 * low**2) + widths[:, 1] * np.exp(-0.5 * high**2)).sum(-1)


def kernel(points: np.ndarray, centres: np.ndarray, bandwidth: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Density at points [..., A] of the kernel around centres [..., A] in the unit box; it integrates to 1 over it.

    Normalised separately at every centre: an edge of the box cuts off half of a normal, a corner of two actions three
    quarters. bandwidth: [A]. widths: [A, 2].
    """
    squares = (((points - centres) / bandwidth) ** 2).sum(-1)
    return np.exp(-0.5 * squares - log_mass(centres, bandwidth, widths))


def logged_density(propensity: np.ndarray, unit: np.ndarray, ranges: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Logged propensities [n] of actions [n, A] in the unit box as densities with respect to the base measure.

    A propensity is a density per unit of each action, or a probability for an action at an atom. ranges: [A] of the
    actions, in their units.
    """
    measure = np.tile(ranges, (len(unit), 1))
    for side, is_there in enumerate((unit <= AT_BOUND, unit >= 1 - AT_BOUND)):
        at_atom = is_there & (widths[:, side] > 0)
        measure = np.where(at_atom, 1 / np.where(widths[:, side] > 0, widths[:, side], 1.0), measure)
    return propensity * measure.prod(1)


class ActionDensity:
    """Kernel estimate of the density of logged actions in each context, from the steps of other videos.

    A context's density is shrunk towards that of all contexts, and that towards the uniform one, so rare contexts have
    one too. The kernel is normalised around the evaluated point, which avoids bias at the bounds. Bandwidth and
    shrinkage maximise the likelihood of each video given the others.
    """

    def __init__(self, unit: np.ndarray, context: np.ndarray, video: np.ndarray, widths: np.ndarray):
        if len(unit) > MOST_REFERENCES:
            kept = np.random.default_rng(0).choice(len(unit), MOST_REFERENCES, replace=False)
            unit, context, video = unit[kept], context[kept], video[kept]
        self._unit, self._context, self._video, self._widths = unit, context, video, widths
        spread = np.sqrt((deviations(unit, context) ** 2).mean(0))
        best = -np.inf
        for factor in FACTORS:
            sums = self._sums(unit, context, video, factor * spread)
            for shrinkage in SHRINKAGE:
                likelihood = np.log(_shrunk(sums, shrinkage)).sum()
                if likelihood > best:
                    best, self.bandwidth, self.shrinkage = likelihood, factor * spread, shrinkage

    def __call__(self, unit: np.ndarray, context: np.ndarray, video: np.ndarray) -> np.ndarray:
        """Density [m] of actions [m, A] in the unit box on steps of these contexts and videos [m]."""
        return _shrunk(self._sums(unit, context, video, self.bandwidth), self.shrinkage)

    def _sums(self, unit: np.ndarray, context: np.ndarray, video: np.ndarray, bandwidth: np.ndarray) -> np.ndarray:
        """Sums of kernels over the reference steps of the same context and over all, and their counts: [4, m]."""
        mass = log_mass(unit, bandwidth, self._widths)
        sums = np.empty((4, len(unit)))
        for part in np.array_split(np.arange(len(unit)), -(-len(unit) * len(self._unit) // AT_ONCE) or 1):
            exponent = -np.broadcast_to(mass[part, None], (len(part), len(self._unit)))
            for axis, width in enumerate(bandwidth):
                exponent = exponent - 0.5 * ((unit[part, None, axis] - self._unit[:, axis]) / width) ** 2
            others = video[part, None] != self._video
            same = (context[part, None] == self._context) * others
            kernels = np.exp(exponent)
            sums[:, part] = (kernels * same).sum(1), (kernels * others).sum(1), same.sum(1), others.sum(1)
        return sums


def _shrunk(sums: np.ndarray, shrinkage: float) -> np.ndarray:
    own, every, num_own, num_every = sums
    pooled = (every + UNIFORM_STEPS) / (num_every + UNIFORM_STEPS)
    return (own + shrinkage * pooled) / (num_own + shrinkage)


def deviations(unit: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Actions [n, A] less the mean of their context."""
    _, index, counts = np.unique(context, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), unit.shape[1]))
    np.add.at(sums, index.reshape(-1), unit)
    return unit - (sums / counts[:, None])[index.reshape(-1)]
