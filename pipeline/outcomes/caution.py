"""How cautious a policy that learns from logs should be: chosen on folds of the logs, by a lower bound on its gain."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.outcomes.fitting import folds_of
from pipeline.outcomes.learned import Caution, LearnedOutcomes
from pipeline.outcomes.optimum import scattered

CAUTIONS = tuple(Caution(*pair) for pair in ((0, 0), (0.5, 0), (0.5, 0.15), (0.5, 0.3), (1, 0), (1, 0.3), (2, 0.6)))
SURENESS = 1.0  # standard deviations that the bound lies below the mean
GRID_POINTS = {1: 201, 2: 21}
MOST_KINDS = 300  # kinds of clips that a policy is compared on

Progress = Callable[[int, int], None]


class Candidate(NamedTuple):
    """A caution, and the gain over the logging policy in $/h of the policy that it makes: mean and lower bound."""

    caution: Caution
    gain: float
    lower_bound: float


def choose_caution(
    model: LearnedOutcomes, rng: np.random.Generator, progress: Progress = lambda done, total: None
) -> list[Candidate]:
    """The candidates, the best by its lower bound first.

    In each fold of whole videos, outcomes learned from the others make a policy with every caution; its gain over the
    logged actions of the fold is judged by them and by outcomes learned from the fold alone.
    """
    steps = model.steps
    folds = folds_of(steps.video, rng)
    num_folds = int(folds.max()) + 1
    gains = np.zeros((num_folds, 2, len(CAUTIONS)))  # mean and deviation
    for fold in range(num_folds):
        progress(fold, num_folds)
        inside = np.flatnonzero(folds == fold)
        own = model.relearned(steps.take(folds != fold))
        judges = [own]
        if steps.take(inside).num_videos >= 2:
            judges.append(model.relearned(steps.take(inside)))
        if len(inside) > MOST_KINDS:
            inside = rng.choice(inside, MOST_KINDS, replace=False)
        rows, logged = steps.rows[inside], steps.actions[inside]
        policies = greedy(own, rows, CAUTIONS)
        before = [judge.profit_of_members(rows, logged) for judge in judges]
        for index, actions in enumerate(policies):
            found = [
                (judge.profit_of_members(rows, actions) - was).mean(1)
                for judge, was in zip(judges, before, strict=True)
            ]
            gains[fold, :, index] = np.mean([one.mean() for one in found]), np.mean([one.std() for one in found])
    mean, deviation = gains.mean(0)
    bound = mean - SURENESS * deviation
    order = np.argsort(-bound, kind="stable")
    return [Candidate(CAUTIONS[k], float(mean[k]), float(bound[k])) for k in order]


def greedy(model: LearnedOutcomes, rows: np.ndarray, cautions: tuple[Caution, ...]) -> list[np.ndarray]:
    """The best actions [n, A] on rows [n] by profit less penalty, for each caution; on a grid."""
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
