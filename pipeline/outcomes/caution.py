"""Choose the caution of a policy learned from logs: the best lower bound on its gain, by cross-validation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from pipeline.outcomes.fitting import FOLDS, folds_of
from pipeline.outcomes.learned import NO_CAUTION, Caution, LearnedOutcomes
from pipeline.outcomes.optimum import scattered

CAUTIONS = tuple(Caution(*pair) for pair in ((0, 0), (0.5, 0), (0.5, 0.15), (0.5, 0.3), (1, 0), (1, 0.3), (2, 0.6)))
ROUNDS = 2  # of cross-validation, each with videos shuffled again
SURENESS = 0.5  # standard deviations from the mean down to the bound
PROVEN = 0.85  # one-sided confidence of the bound that decides whether to deploy the learned policy
GRID_POINTS = {1: 201, 2: 21}
MEMBERS = 16  # of the ensembles learned from folds
MOST_KINDS = 300  # steps per fold on which policies are compared

Progress = Callable[[int, int], None]


class Candidate(NamedTuple):
    """A caution, and the gain in $/h over the logging policy of the policy learned with it.

    lower_bound: the criterion for choosing a caution. proven: lower bound on the gain with 85% confidence, by outcomes
    that the policy was not learned from; −∞ if there are too few videos or outcomes do not distinguish actions.
    """

    caution: Caution
    gain: float
    lower_bound: float
    proven: float


def choose_caution(
    model: LearnedOutcomes,
    rng: np.random.Generator,
    progress: Progress = lambda done, total: None,
    given: Caution | None = None,
) -> list[Candidate]:
    """Return the candidates, the best lower bound first; only the `given` caution if there is one.

    For each fold of whole videos, outcomes learned from the other folds give one policy per caution. Its gain over the
    fold's logged actions is estimated by those outcomes and by outcomes learned from the fold alone.
    """
    steps, cautions = model.steps, CAUTIONS if given is None else (given,)
    num_folds = min(FOLDS, steps.num_videos // 2)
    if num_folds < 2 or steps.tells_nothing():
        return [Candidate(NO_CAUTION if given is None else given, np.nan, -np.inf, -np.inf)]
    rounds = [folds_of(steps.video, rng, num_folds) for _ in range(ROUNDS)]
    dealt = [folds == fold for folds in rounds for fold in range(num_folds)]
    made, proof = np.empty((2, len(dealt), 2, len(cautions)))  # mean and deviation of the gain, by each judge
    for fold, is_inside in enumerate(dealt):
        progress(fold, len(dealt))
        inside = np.flatnonzero(is_inside)
        maker, judge = (model.relearned(steps.take(which), MEMBERS) for which in (~is_inside, inside))
        if len(inside) > MOST_KINDS:
            inside = rng.choice(inside, MOST_KINDS, replace=False)
        rows = steps.rows[inside]
        policies = greedy(maker, rows, cautions)
        for found, by in ((made, maker), (proof, judge)):
            before = by.profit_of_members(rows, steps.actions[inside])
            gains = np.stack([(by.profit_of_members(rows, actions) - before).mean(1) for actions in policies])
            found[fold, 0], found[fold, 1] = gains.mean(1), gains.std(1)
    progress(len(dealt), len(dealt))
    mean, deviation = (made.mean(0) + proof.mean(0)) / 2
    bound = mean - SURENESS * deviation
    error = np.maximum(np.sqrt((proof[:, 1] ** 2).mean(0)), proof[:, 0].std(0, ddof=1)) / np.sqrt(num_folds)
    proven = proof[:, 0].mean(0) - stdtrit(num_folds - 1, PROVEN) * error
    order = np.argsort(-bound, kind="stable")
    return [Candidate(cautions[k], float(mean[k]), float(bound[k]), float(proven[k])) for k in order]


def greedy(model: LearnedOutcomes, rows: np.ndarray, cautions: tuple[Caution, ...]) -> list[np.ndarray]:
    """The actions [n, A] of a grid with the highest profit minus penalty on rows [n], for each caution."""
    kinds, first, back = np.unique(model.kind(rows), return_index=True, return_inverse=True)
    points = model.task.from_unit(grid(model.task.num_actions))
    best = np.empty((len(cautions), len(kinds)), np.int64)
    for index, row in enumerate(rows[first]):
        here = np.full(len(points), row)
        profit = model.profit_of_members(here, points)
        mean, deviation = profit.mean(0), profit.std(0)
        unknown = model.unknown(here, points)
        for number, caution in enumerate(cautions):
            best[number, index] = (mean - model.penalty_of(caution, deviation, unknown)).argmax()
    return [points[chosen[back.reshape(-1)]] for chosen in best]


def grid(num_actions: int) -> np.ndarray:
    """Points [P, A] all over the unit box, its corners included."""
    if num_actions in GRID_POINTS:
        axis = np.linspace(0, 1, GRID_POINTS[num_actions])
        return np.array(list(itertools.product(axis, repeat=num_actions)))
    return scattered(num_actions)[0]
