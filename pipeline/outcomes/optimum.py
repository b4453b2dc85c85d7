"""The best that can be done, for one who sees what is worked on (the oracle) and for one who sees nothing (blind)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
from scipy.stats import qmc

from pipeline.outcomes.model import OutcomeModel, expected_worth
from pipeline.tasks import Task, Worth

GRID_POINTS = {1: 1001, 2: 101}  # an axis; more actions than these start from scattered points
FINEST = 5e-5  # half width of the last grid, in the unit box
SCATTERED = 12  # 2 to this power
POLISHED = 8  # of the scattered points, the best
MAX_CORNERS = 10  # actions up to which all corners are tried too

Objective = Callable[[Worth], np.ndarray]


class Reference(NamedTuple):
    """Actions [n, A] on n rows, and their expected profit [n] in $/h."""

    actions: np.ndarray
    profit: np.ndarray


def oracle(model: OutcomeModel, rows: np.ndarray, objective: Objective | None = None) -> Reference:
    """The best action on each of the rows [n], for one who sees what is on it.

    objective: what is maximised, of expected worth; by default profit.
    """
    value = objective or _profit
    rows = np.asarray(rows)
    kinds, first, back = np.unique(model.kind(rows), return_index=True, return_inverse=True)
    best = np.empty((len(kinds), model.task.num_actions))
    for number, row in enumerate(rows[first]):
        best[number] = best_action(model.task, functools.partial(_value_on, model, row, value))
    actions = best[back.reshape(-1)]
    return Reference(actions, expected_worth(model, rows, actions).profit)


def _value_on(model: OutcomeModel, row: np.ndarray, value: Objective, actions: np.ndarray) -> np.ndarray:
    return value(expected_worth(model, row, actions))


def blind(model: OutcomeModel, rows: np.ndarray, objective: Objective | None = None) -> Reference:
    """The best constant action, each kind of row as often, judged on the rows [n]: for one who sees nothing."""
    value = objective or _profit
    everywhere = np.arange(len(model.context))
    _, first = np.unique(model.kind(everywhere), return_index=True)
    kinds = everywhere[first]

    def mean_value(actions: np.ndarray) -> np.ndarray:
        return value(expected_worth(model, kinds[:, None], actions[None])).mean(0)

    actions = np.tile(best_action(model.task, mean_value), (len(rows), 1))
    return Reference(actions, expected_worth(model, np.asarray(rows), actions).profit)


def _profit(worth: Worth) -> np.ndarray:
    return worth.profit


def best_action(task: Task, value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The action [A] that maximises `value`, which takes actions [P, A] to [P].

    Of one or two actions a grid over the whole box, zoomed around its best point; of more, scattered points and
    corners, the best of which are polished (L-BFGS-B).
    """

    def in_unit(points: np.ndarray) -> np.ndarray:
        return value(task.from_unit(points))

    if task.num_actions in GRID_POINTS:
        return task.from_unit(_zoom(in_unit, task.num_actions))
    return task.from_unit(_polish(in_unit, task.num_actions))


def _zoom(value: Callable[[np.ndarray], np.ndarray], num_actions: int) -> np.ndarray:
    points = GRID_POINTS[num_actions]
    centre, half_width = np.full(num_actions, 0.5), 0.5
    while half_width > FINEST / 2:
        axes = [np.unique(np.clip(np.linspace(c - half_width, c + half_width, points), 0, 1)) for c in centre]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, num_actions)
        centre = grid[np.argmax(value(grid))]
        half_width *= 4 / (points - 1)  # two of this grid's steps
    return centre


def _polish(value: Callable[[np.ndarray], np.ndarray], num_actions: int) -> np.ndarray:
    points = qmc.Sobol(num_actions, scramble=False).random_base2(SCATTERED)
    if num_actions <= MAX_CORNERS:
        points = np.concatenate([points, np.array(list(itertools.product((0.0, 1.0), repeat=num_actions)))])
    values = value(points)
    scale = float(np.ptp(values)) or 1.0
    best, best_value = points[np.argmax(values)], float(values.max())
    for start in points[np.argsort(-values)[:POLISHED]]:
        found = scipy.optimize.minimize(
            lambda point: -float(value(point[None])[0]) / scale, start, bounds=[(0, 1)] * num_actions, method="L-BFGS-B"
        )
        if -found.fun * scale > best_value:
            best, best_value = found.x, -found.fun * scale
    return best
