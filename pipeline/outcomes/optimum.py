"""Optimal actions: the best for each context (oracle), and the best constant one (blind)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.spatial

from pipeline.outcomes.model import OutcomeModel, expected_worth
from pipeline.tasks import Task, Worth

GRID_POINTS = {1: 1001, 2: 101}  # per axis; with more actions the search starts from scattered points
FINEST = 5e-5  # half width of the last grid, in the unit box
SCATTERED = 12  # number of scattered points, as a power of 2
MAX_CORNERS = 10  # most actions with which all corners are tried too
STARTS = 16  # parallel searches, from the best of the scattered points that exceed all their NEIGHBOURS
NEIGHBOURS = 4  # per action
FIRST_WIDTH = 0.1  # initial standard deviation of a search, in the unit box
ROUNDS, SAMPLES, ELITE = 60, 64, 12  # per search
AT_ONCE = 1 << 22  # pairs of a kind and an action priced at once, which bounds memory
SMOOTHING = 0.7  # weight of a round's elite in the next centre and covariance

WELL_SEARCHED = 6  # most actions with which the searches find the maximum
LINE_WIDTHS = (1.0, 0.1, 0.01, 0.001)  # half widths, in the unit box
LINE_POINTS, MAX_SWEEPS = 41, 20  # points per action; sweeps per width

Objective = Callable[[Worth], np.ndarray]


class Reference(NamedTuple):
    """Actions [n, A] on n rows, and their expected profit [n] in $/h."""

    actions: np.ndarray
    profit: np.ndarray


def oracle(model: OutcomeModel, rows: np.ndarray, objective: Objective | None = None) -> Reference:
    """The best action on each of the rows [n].

    objective: function of expected worth to maximise; default profit minus the model's penalty on uncertain outcomes,
    without which the best of many estimates would be the luckiest one.
    """
    rows = np.asarray(rows)
    kinds, first, back = np.unique(model.kind(rows), return_index=True, return_inverse=True)
    best = np.empty((len(kinds), model.task.num_actions))
    for number, row in enumerate(rows[first]):
        best[number] = best_action(model.task, functools.partial(_value_on, model, row, objective))
    actions = best[back.reshape(-1)]
    return Reference(actions, expected_worth(model, rows, actions).profit)


def _value_on(model: OutcomeModel, rows: np.ndarray, objective: Objective | None, actions: np.ndarray) -> np.ndarray:
    worth = expected_worth(model, rows, actions)
    return worth.profit - model.penalty(rows, actions) if objective is None else objective(worth)


def blind(model: OutcomeModel, rows: np.ndarray, objective: Objective | None = None) -> Reference:
    """The best constant action, with equal weight for each kind of row, evaluated on the rows [n].

    objective: as in `oracle`.
    """
    everywhere = np.arange(len(model.context))
    _, first = np.unique(model.kind(everywhere), return_index=True)
    kinds = everywhere[first]

    def mean_value(actions: np.ndarray) -> np.ndarray:
        parts = np.array_split(kinds, -(-len(kinds) * len(actions) // AT_ONCE))
        return sum(_value_on(model, part[:, None], objective, actions[None]).sum(0) for part in parts) / len(kinds)

    actions = np.tile(best_action(model.task, mean_value), (len(rows), 1))
    return Reference(actions, expected_worth(model, np.asarray(rows), actions).profit)


def best_action(task: Task, value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The action [A] that maximises `value`, a function from actions [P, A] to [P].

    With one or two actions: a grid over the box, zoomed around its best point. With more: scattered points and corners,
    then searches from the best of them. With many, for which these fall short: also one action after the other.
    """

    def in_unit(points: np.ndarray) -> np.ndarray:
        return value(task.from_unit(points))

    if task.num_actions in GRID_POINTS:
        return task.from_unit(_zoom(in_unit, task.num_actions))
    best = _search(in_unit, task.num_actions)
    return task.from_unit(best if task.num_actions <= WELL_SEARCHED else _one_by_one(in_unit, best))


def _zoom(value: Callable[[np.ndarray], np.ndarray], num_actions: int) -> np.ndarray:
    points = GRID_POINTS[num_actions]
    centre, half_width = np.full(num_actions, 0.5), 0.5
    while half_width > FINEST / 2:
        axes = [np.unique(np.clip(np.linspace(c - half_width, c + half_width, points), 0, 1)) for c in centre]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, num_actions)
        centre = grid[np.argmax(value(grid))]
        half_width *= 4 / (points - 1)  # two of this grid's steps
    return centre


def _search(value: Callable[[np.ndarray], np.ndarray], num_actions: int) -> np.ndarray:
    """Parallel cross-entropy searches (Rubinstein 1999): each samples points around its best ones.

    The covariance follows ridges, and kinks and plateaus do no harm because no gradient is used. The generator is
    fixed, so that the same `value` gives the same point.
    """
    points, neighbours = scattered(num_actions)
    values = value(points)
    best, best_value = points[values.argmax()], values.max()
    is_peak = values >= values[neighbours].max(1)
    peaks = points[is_peak]
    centre = peaks[np.argsort(-values[is_peak], kind="stable")[:STARTS]]  # [S, A]
    covariance = np.tile(FIRST_WIDTH**2 * np.eye(num_actions), (len(centre), 1, 1))  # [S, A, A]
    rng = np.random.default_rng(0)
    for _ in range(ROUNDS):
        factor = np.linalg.cholesky(covariance + 1e-14 * np.eye(num_actions))
        steps = rng.standard_normal((len(centre), SAMPLES, num_actions)) @ factor.transpose(0, 2, 1)
        points = np.clip(centre[:, None] + steps, 0, 1)
        points[:, 0] = centre
        values = value(points.reshape(-1, num_actions)).reshape(points.shape[:2])
        elite = np.take_along_axis(points, np.argsort(-values, 1)[:, :ELITE, None], 1)  # [S, ELITE, A]
        if values.max() > best_value:
            best, best_value = points.reshape(-1, num_actions)[values.argmax()], values.max()
        spread = elite - centre[:, None]  # around the old centre, so that a search on a slope takes longer steps
        covariance += SMOOTHING * (spread.transpose(0, 2, 1) @ spread / ELITE - covariance)
        centre = (1 - SMOOTHING) * centre + SMOOTHING * elite.mean(1)
    return best


def _one_by_one(value: Callable[[np.ndarray], np.ndarray], best: np.ndarray) -> np.ndarray:
    """Improve the point [A] by one action at a time, all others fixed, until none gains."""
    best_value = value(best[None])[0]
    for width in LINE_WIDTHS:
        steps = width * np.linspace(-1, 1, LINE_POINTS)
        for _ in range(MAX_SWEEPS):
            before = best_value
            for index in range(len(best)):
                points = np.tile(best, (LINE_POINTS, 1))
                points[:, index] = np.clip(best[index] + steps, 0, 1)
                values = value(points)
                if values.max() > best_value:
                    best, best_value = points[values.argmax()], values.max()
            if best_value <= before:
                break
    return best


@functools.cache
def scattered(num_actions: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, A] all over the unit box, corners included, and the indices of each one's neighbours."""
    from scipy.stats import qmc  # takes half a second

    points = qmc.Sobol(num_actions, scramble=False).random_base2(SCATTERED)
    if num_actions <= MAX_CORNERS:
        points = np.concatenate([points, np.array(list(itertools.product((0.0, 1.0), repeat=num_actions)))])
    return points, scipy.spatial.KDTree(points).query(points, 1 + NEIGHBOURS * num_actions)[1]
