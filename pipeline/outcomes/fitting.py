"""Fit rates of logged counts over actions: an ensemble of surfaces, with priors weighted by held-out likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.outcomes import surfaces
from pipeline.outcomes.surfaces import Basis, Counts, Prior
from pipeline.tasks.task import Direction

FOLDS = 4
ENOUGH_STEPS = 1 << 13  # used to choose polynomials and priors; more hardly change the choice
# Logarithms of prior odds: a product of effects is e³ times as likely as any other shape.
PRIORS = {Prior(shape): 0.0 for shape in (0.3, 1.0, 3.0, 10.0, 100.0)} | {
    Prior(shape, is_product=False): -3.0 for shape in (1.0, 10.0)
}
COARSE = 3.0  # nats of held-out likelihood that fine polynomials must gain over coarse ones, which vary less
CONTRADICTION = 4.0  # nats of held-out likelihood that a direction must cost to be called contradicted
OVERDISPERSED = 2.33  # standard normal quantile: 1% of Poisson logs exceed it


@dataclass(frozen=True)
class Head:
    """One kind of rate: attempts per minute, or errors per attempt.

    surfaces: [M, G, 1 + B], of M members of the ensemble. dispersion: of negative binomial counts, 0 for Poisson ones.
    scores: log score of each prior on held-out videos. contradicted: declared directions, such as `errors falls with
    care`, that held-out videos contradict. counts: the fitted counts, with causes of the `fine` basis; other members
    are fitted with it, because coarse polynomials would understate the uncertainty of few steps.
    """

    basis: Basis
    surfaces: np.ndarray
    dispersion: float
    scores: dict[Prior, float]
    contradicted: tuple[str, ...]
    fine: Basis
    counts: Counts

    @property
    def prior(self) -> Prior:
        """The prior with the best score."""
        return max(self.scores, key=lambda one: self.scores[one])

    def refitted(self, weights: np.ndarray, rng: np.random.Generator, rounds: int) -> Head:
        """The same head with M other members, each fitted to the same counts at its own weights, [M, N].

        Prior and dispersion stay those of all counts, which makes it fast.
        """
        found = surfaces.fit(self.fine, self.counts, weights, self.prior, rng, rounds)
        return replace(self, basis=self.fine, surfaces=found)

    def untaught(self, num_members: int, rng: np.random.Generator, rounds: int) -> Head:
        """The same head with one group, whose members know only the overall level and the declared directions."""
        counts = self.counts.level()
        found = surfaces.fit(self.fine, counts, np.ones((num_members, 1)), self.prior, rng, rounds)
        return replace(self, basis=self.fine, surfaces=found, counts=counts)

    def rates(self, group: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """Rates [M, n] at actions [n, A] of the unit box, in groups [n]."""
        causes = self.basis(unit)
        rates = np.empty((len(self.surfaces), len(unit)))
        for one in np.unique(group):
            which = np.flatnonzero(group == one)
            rates[:, which] = self.surfaces[:, one] @ causes[which].T
        return rates


def fit_head(
    name: str,
    unit: np.ndarray,
    counts: Counts,
    video: np.ndarray,
    directions: dict[str, Direction | None],
    weights: np.ndarray,
    rng: np.random.Generator,
    whole: Head | None = None,
) -> Head:
    """Fit counts of steps with actions [N, A] in the unit box.

    weights: [M, N], of the steps in each member's bootstrap of videos. directions: of each action. whole: the head of
    all logs, if these are a part of them: its contradictions and, if it has many counts, its basis and priors are kept.
    """
    fine = Basis(list(directions.values()))
    if whole is not None and len(whole.counts.count) > ENOUGH_STEPS:
        basis, scores = whole.basis, whole.scores
    else:
        some = drawn_steps(len(video), ENOUGH_STEPS)
        basis, scores = _chosen(fine, unit[some], counts.take(some), folds_of(video[some]))
    counts = replace(counts, causes=basis(unit))
    prior = max(scores, key=lambda one: scores[one])
    counts = replace(counts, dispersion=_dispersion(basis, counts, prior))
    fine_counts = replace(counts, causes=fine(unit))
    if whole is None:
        contradicted = _contradicted(name, unit, fine, fine_counts, folds_of(video), directions, prior)
    else:
        contradicted = whole.contradicted
    found = np.empty((len(weights), counts.num_groups, counts.causes.shape[1]))
    for one, which in _shares(scores, len(weights), rng):
        found[which] = surfaces.fit(basis, counts, weights[which], one, rng)
    return Head(basis, found, counts.dispersion, scores, contradicted, fine, fine_counts)


def drawn_steps(num_steps: int, most: int) -> np.ndarray:
    """Indices of `most` random steps in order, or of all if there are no more. Not whole videos, which may be few."""
    if num_steps <= most:
        return np.arange(num_steps)
    return np.sort(np.random.default_rng(0).choice(num_steps, most, replace=False))


def folds_of(video: np.ndarray, rng: np.random.Generator | None = None, most: int = FOLDS) -> np.ndarray:
    """The fold [N] of each step, in `most` folds or fewer: whole videos, in turn, or shuffled by a generator."""
    names, index = np.unique(video, return_inverse=True)
    order = np.arange(len(names)) if rng is None else rng.permutation(len(names))
    return (order % max(min(most, len(names)), 1))[index]


def held_out(basis: Basis, counts: Counts, folds: np.ndarray, prior: Prior) -> np.ndarray:
    """The log likelihood [N] of each count under surfaces fitted to the other folds."""
    weights = (folds != np.arange(folds.max() + 1)[:, None]).astype(float)
    found = surfaces.fit(basis, counts, weights, prior)
    return counts.log_likelihood(found)[folds, np.arange(len(folds))]


def _chosen(fine: Basis, unit: np.ndarray, counts: Counts, folds: np.ndarray) -> tuple[Basis, dict[Prior, float]]:
    """The basis, coarse unless held-out videos prefer fine polynomials, and the scores of priors with it."""
    coarse, scores = Basis(fine.directions, is_coarse=True), _scores(fine, unit, counts, folds)
    if coarse.shape != fine.shape:
        others = _scores(coarse, unit, counts, folds)
        if max(others.values()) + COARSE > max(scores.values()):
            return coarse, others
    return fine, scores


def _scores(basis: Basis, unit: np.ndarray, counts: Counts, folds: np.ndarray) -> dict[Prior, float]:
    """The held-out log likelihood of every prior, plus the logarithm of its prior odds."""
    counts = replace(counts, causes=basis(unit))
    return {prior: bonus + held_out(basis, counts, folds, prior).sum() for prior, bonus in PRIORS.items()}


def _shares(scores: dict[Prior, float], num_members: int, rng: np.random.Generator) -> list[tuple[Prior, np.ndarray]]:
    """Ensemble members with each prior, in proportion to its held-out likelihood (Yao et al. 2018)."""
    score = np.array(list(scores.values()))
    share = np.exp(score - score.max())
    drawn = np.searchsorted(np.cumsum(share / share.sum()), (np.arange(num_members) + 0.5) / num_members)
    drawn = rng.permutation(np.minimum(drawn, len(scores) - 1))
    return [(prior, np.flatnonzero(drawn == index)) for index, prior in enumerate(scores) if (drawn == index).any()]


def _dispersion(basis: Basis, counts: Counts, prior: Prior) -> float:
    """Dispersion by moments if counts vary more than Poisson ones do (Dean 1992), else 0."""
    if counts.is_binomial:
        return 0.0
    mean = counts.exposure * counts.rates(surfaces.fit(basis, counts, np.ones((1, len(counts.count))), prior))[0]
    excess = (counts.count - mean) ** 2 - counts.count
    if excess.sum() < OVERDISPERSED * np.sqrt(2 * (mean**2).sum()):
        return 0.0
    return float(excess.sum() / (mean**2).sum())


def _contradicted(
    name: str,
    unit: np.ndarray,
    basis: Basis,
    counts: Counts,
    folds: np.ndarray,
    directions: dict[str, Direction | None],
    prior: Prior,
) -> tuple[str, ...]:
    declared = held_out(basis, counts, folds, prior).sum()
    found = []
    for action, direction in directions.items():
        if direction is None:
            continue
        other_basis = Basis([None if other == action else one for other, one in directions.items()])
        free = held_out(other_basis, replace(counts, causes=other_basis(unit)), folds, prior).sum()
        if free > declared + CONTRADICTION:
            found.append(f"{name} {direction} with {action}")
    return tuple(found)


def bootstraps(video: np.ndarray, num_members: int, rng: np.random.Generator) -> np.ndarray:
    """How often each step [N] is in each of M bootstraps of whole videos, [M, N]."""
    names, index = np.unique(video, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), num_members)
    return drawn[:, index].astype(float)
