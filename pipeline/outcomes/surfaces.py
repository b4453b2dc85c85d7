"""Rates over the box of actions, one surface per group of clips, fitted to counts with partial pooling of the groups.

A rate is a sum of non-negative causes: a background, and one for each cell of a grid, which is a product of one
Bernstein polynomial per action. If an action is declared to raise or to lower the rate, its polynomials are cumulated,
so that every cause, and with them the rate, is monotonic in it (Curtis and Ghosh 2011, 'A variable selection approach
to monotonic regression with Bernstein polynomials'). A group's causes are drawn from gamma distributions around those
that all groups share; the shape sets how far groups differ. Fitted by expectation maximisation, as non-negative
factorisations are (Lee and Seung 2001; Cemgil 2009 for the gamma priors).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipeline.tasks.task import Direction

# Degree of the polynomials of each action, by the number of actions; 1 for more actions.
MONOTONE_DEGREE = {1: 8, 2: 4, 3: 3, 4: 2}
FREE_DEGREE = {1: 10, 2: 6, 3: 4, 4: 3}
ROUNDS = 150  # of expectation maximisation
MARGIN_PRIOR = 0.3  # weight of each polynomial's prior, in counts
LEVEL_PRIOR = 1.0  # weight of the prior of a group's level, in counts
FARTHEST_LEVEL = 30.0  # most that the prior of a group's level differs from the mean rate, as a factor
BACKGROUND_PRIOR = 0.2  # weight of the prior of the background, in counts
PRIOR_SPREAD = 1.0  # standard deviation of the logarithm of an ensemble member's priors
MOST_WEIGHT = 50.0  # of a trial with a rate near 1, whose variance vanishes
TINY = 1e-12
HIGHEST_PROBABILITY = 1 - 1e-6


class Basis:
    """Causes at actions of the unit box: the background, then the cells.

    directions: of each action, `rises`, `falls` or None if undeclared. is_coarse: polynomials of actions with a
    direction have half the degree.
    """

    def __init__(self, directions: Sequence[Direction | None], *, is_coarse: bool = False):
        self.directions = tuple(directions)
        free, monotone = (degree.get(len(self.directions), 1) for degree in (FREE_DEGREE, MONOTONE_DEGREE))
        if is_coarse:
            monotone = math.ceil(monotone / 2)
        self.shape = tuple(1 + (free if direction is None else monotone) for direction in self.directions)
        self.cells = np.stack(np.unravel_index(np.arange(math.prod(self.shape)), self.shape))  # [A, B]

    def __call__(self, unit: np.ndarray) -> np.ndarray:
        """Actions [n, A] in the unit box → causes [n, 1 + B], in [0, 1]."""
        causes = np.ones((len(unit), 1))
        for index, direction in enumerate(self.directions):
            factor = _polynomials(unit[:, index], self.shape[index] - 1, direction)
            causes = (causes[:, :, None] * factor[:, None, :]).reshape(len(unit), -1)
        return np.concatenate([np.ones((len(unit), 1)), causes], axis=1)


def _polynomials(unit: np.ndarray, degree: int, direction: Direction | None) -> np.ndarray:
    """Bernstein polynomials [n, degree + 1], cumulated if they must rise or fall."""
    powers = np.arange(degree + 1)
    ways = np.array([math.comb(degree, k) for k in powers], float)
    chance = ways * unit[:, None] ** powers * (1 - unit[:, None]) ** (degree - powers)
    if direction == "rises":
        return np.cumsum(chance[:, ::-1], axis=1)[:, ::-1]  # of at least k successes in `degree` trials
    if direction == "falls":
        return np.cumsum(chance, axis=1)
    return chance


class Prior(NamedTuple):
    """How similar groups of clips are.

    shape: of the gamma distributions that a group's causes are drawn from, in counts; the larger, the more similar the
    groups. is_product: whether the shared causes are a product of the actions' effects, or any mixture of cells.
    """

    shape: float
    is_product: bool = True


@dataclass(frozen=True)
class Counts:
    """N counts whose rates are fitted.

    If is_binomial, `count` is out of `exposure` trials and the rate is a probability. Otherwise it is Poisson with mean
    exposure · rate or, with a dispersion d above 0, negative binomial with variance mean + d · mean².
    """

    causes: np.ndarray  # [N, 1 + B]
    group: np.ndarray  # [N]
    num_groups: int
    count: np.ndarray  # [N]
    exposure: np.ndarray  # [N]
    is_binomial: bool = False
    dispersion: float = 0.0

    def take(self, which: np.ndarray) -> Counts:
        return Counts(
            self.causes[which], self.group[which], self.num_groups, self.count[which], self.exposure[which],
            self.is_binomial, self.dispersion,
        )  # fmt: skip

    def level(self) -> Counts:
        """The sum of all counts as one count of one group, which distinguishes neither actions nor groups."""
        exposed = self.exposure.sum()
        return replace(
            self, causes=(self.exposure @ self.causes / exposed)[None], group=np.zeros(1, int), num_groups=1,
            count=self.count.sum(keepdims=True), exposure=np.array([exposed]),
        )  # fmt: skip

    def rates(self, surfaces: np.ndarray) -> np.ndarray:
        """The rates [..., N] of surfaces [..., G, 1 + B]."""
        rates = np.empty((*surfaces.shape[:-2], len(self.group)))
        for group, which in self.members():
            rates[..., which] = surfaces[..., group, :] @ self.causes[which].T
        return np.minimum(rates, HIGHEST_PROBABILITY) if self.is_binomial else rates

    def members(self) -> list[tuple[int, np.ndarray]]:
        """The groups that have counts, and the indices of these."""
        return [(int(group), np.flatnonzero(self.group == group)) for group in np.unique(self.group)]

    def log_likelihood(self, surfaces: np.ndarray) -> np.ndarray:
        """Log likelihood of each count [..., N], up to terms that do not depend on the surfaces."""
        rate = np.maximum(self.rates(surfaces), TINY)
        if self.is_binomial:
            return self.count * np.log(rate) + (self.exposure - self.count) * np.log1p(-rate)
        mean = self.exposure * rate
        if self.dispersion == 0:
            return self.count * np.log(mean) - mean
        return self.count * np.log(mean) - (self.count + 1 / self.dispersion) * np.log1p(self.dispersion * mean)


def fit(
    basis: Basis,
    counts: Counts,
    weights: np.ndarray,
    prior: Prior,
    rng: np.random.Generator | None = None,
    rounds: int = ROUNDS,
) -> np.ndarray:
    """Fit surfaces [M, G, 1 + B], the causes' sizes in each group, for M sets of weights [M, N] of the counts.

    With a generator, each is an ensemble member: it has its own priors, so that members differ where there are no
    counts (Osband et al. 2018, 'Randomized prior functions'), and is a posterior draw.
    """
    num_sets, num_causes = len(weights), counts.causes.shape[1]
    groups = [
        (group, counts.causes[which], weights[:, which], counts.count[which], counts.exposure[which])
        for group, which in counts.members()
    ]
    is_poisson = not counts.is_binomial and counts.dispersion == 0
    shared = _Shared(basis, counts, weights, prior, rng)
    mean = shared.mean
    surfaces = mean.copy()
    found, exposed = np.zeros((2, num_sets, counts.num_groups, num_causes))
    if is_poisson:  # then weights are the same in every round
        for group, causes, weight, _, exposure in groups:
            exposed[:, group] = (weight * exposure) @ causes
    for _ in range(rounds):
        for group, causes, weight, count, exposure in groups:
            rate = np.maximum(surfaces[:, group] @ causes.T, TINY)
            if not is_poisson:
                if counts.is_binomial:
                    weight = weight / np.maximum(1 - rate, 1 / MOST_WEIGHT)  # its variance is below Poisson's
                else:
                    weight = weight / (1 + counts.dispersion * exposure * rate)  # its variance exceeds Poisson's
                exposed[:, group] = (weight * exposure) @ causes
            found[:, group] = surfaces[:, group] * ((weight * count / rate) @ causes)
        shared.update(found, exposed)
        mean = shared.mean
        surfaces = (prior.shape + found) / (prior.shape / mean + exposed)
    if rng is None:
        return surfaces
    known = np.maximum(found[:, :, 1:].sum(2), 0) + LEVEL_PRIOR
    mean = mean * (rng.gamma(known) / known)[:, :, None]
    return rng.gamma(prior.shape + found) / (prior.shape / np.maximum(mean, TINY) + exposed)


class _Shared:
    """Shared causes, for M sets of weights: the size of each cell and of the background, and each group's level."""

    def __init__(
        self, basis: Basis, counts: Counts, weights: np.ndarray, prior: Prior, rng: np.random.Generator | None
    ):
        self._basis, self._prior = basis, prior
        num_sets, num_groups, num_cells = len(weights), counts.num_groups, counts.causes.shape[1] - 1
        exposure = (weights * counts.exposure).sum(1)
        rate = ((weights * counts.count).sum(1) + 0.5) / np.where(exposure > 0, exposure, counts.exposure.sum())
        usual = counts.causes[:, 1:].mean()  # of a cell, so that cells and background start with half the rate each

        def own(*shape: int) -> np.ndarray:
            return np.ones(shape) if rng is None else np.exp(PRIOR_SPREAD * rng.standard_normal(shape))

        def margin(size: int) -> np.ndarray:
            return np.full((num_sets, size), 1 / size) if rng is None else rng.dirichlet(np.ones(size), num_sets)

        self._first_level = (rate / (2 * usual))[:, None]  # [M, 1]
        self._level = np.repeat(self._first_level, num_groups, axis=1)  # [M, G]
        self._own_level = own(num_sets, num_groups)
        self._background = np.full(num_sets, usual)  # [M], as a multiple of the level
        self._prior_background = usual * own(num_sets)
        self._prior_margins = [margin(size) for size in (basis.shape if prior.is_product else (num_cells,))]
        self._margins = [prior_margin.copy() for prior_margin in self._prior_margins]  # [M, n] of each action
        cells = basis.cells if prior.is_product else np.arange(num_cells)[None]
        self._is_of = [  # [B, n] of each action: each cell's polynomial, one-hot
            (cell[:, None] == np.arange(margin.shape[1])).astype(float)
            for cell, margin in zip(cells, self._margins, strict=True)
        ]
        self.mean = self._mean()  # [M, G, 1 + B], prior means of the groups' causes

    def _cells(self, without: int | None = None) -> np.ndarray:
        """The size of each cell [M, B] at level 1, optionally without the effect of one action."""
        if not self._prior.is_product:
            return self._margins[0] if without is None else np.ones_like(self._margins[0])
        cells = np.ones((len(self._level), self._basis.cells.shape[1]))
        for index, margin in enumerate(self._margins):
            if index != without:
                cells *= margin[:, self._basis.cells[index]]
        return cells

    def _mean(self) -> np.ndarray:
        sizes = np.concatenate([self._background[:, None], self._cells()], axis=1)
        return np.maximum(self._level[:, :, None] * sizes[:, None], TINY)

    def update(self, found: np.ndarray, exposed: np.ndarray) -> None:
        """Update from the counts `found` of each cause and its exposure, both [M, G, 1 + B].

        A group's weight is smaller the more freely its causes vary around the shared ones.
        """
        mean = self.mean
        told = self._prior.shape / (self._prior.shape + mean * exposed)
        found, exposed = found * told, exposed * told
        usual = self._own_level * self._level.mean(axis=1, keepdims=True)
        usual = np.clip(usual, self._first_level / FARTHEST_LEVEL, self._first_level * FARTHEST_LEVEL)
        level = (found.sum(2) + LEVEL_PRIOR) / ((mean * exposed).sum(2) / self._level + LEVEL_PRIOR / usual)
        self._background = (found[:, :, 0].sum(1) + BACKGROUND_PRIOR) / (
            (self._level * exposed[:, :, 0]).sum(1) + BACKGROUND_PRIOR / self._prior_background
        )
        margins = []
        for index, prior in enumerate(self._prior_margins):
            others = (self._level[:, :, None] * self._cells(without=index)[:, None] * exposed[:, :, 1:]).sum(1)
            size = prior.shape[1]
            is_of = self._is_of[index]
            margin = (found[:, :, 1:].sum(1) @ is_of + MARGIN_PRIOR * prior * size) / (
                others @ is_of + MARGIN_PRIOR * size
            )
            margins.append(margin / margin.sum(1, keepdims=True))
        self._level, self._margins = level, margins
        self.mean = self._mean()
