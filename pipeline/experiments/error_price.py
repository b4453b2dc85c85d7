"""The price of the error target: worth of a unit of error rate, in human wages per hour, when the target just binds.

A fixed policy cannot meet a stricter target by itself. The cost of the target is measured with a knob: one action is
moved, equally in all steps, towards one of its bounds, just far enough to meet the target. The knob that leaves the
most profit is used. The oracle moves every action freely.

Error rates are means over steps, as in the reward.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

from pipeline.experiments import by_members
from pipeline.outcomes import LearnedOutcomes, OutcomeModel, expected_worth, oracle
from pipeline.tasks import Task

TURNS = np.linspace(0, 1, 201)  # positions of a knob: distances moved, as fractions of the action's range
# Points per axis, less than 2e-5 apart near the bounds, where the last errors disappear.
AXIS_POINTS = {1: 10_001, 2: 401}
SCATTERED = 14  # 2 to this power scattered points for more actions than these
MAX_CORNERS = 10  # up to this number of actions, all corners are candidates too
PRICES = (0.0, *np.geomspace(2**-4, 2**10, 15))  # the best actions at these prices are candidates too
BETWEEN = 33  # candidates from the best actions at one price to those at the next
LEAST_TARGET = 1e-4  # the lowest one, if errors can be avoided almost entirely
TOLERANCE = 1e-4  # of a price, relative


class Knob(NamedTuple):
    """One action moved towards a bound by TURNS [T]: profit in human wages and error rate of each episode, [E, T].

    If outcomes are learned: means over all episodes by each of M ensemble members, [M, T].
    """

    action: str
    towards: str
    profit: np.ndarray
    err_rate: np.ndarray

    def __str__(self) -> str:
        return f"{self.action} {self.towards}"


class Tradeoff(NamedTuple):
    """The oracle's options on one kind of row: profit in human wages and error rate of P efficient actions, [P] each.

    share: of this kind among the steps, in (0, 1].
    """

    share: float
    profit: np.ndarray
    err_rate: np.ndarray


def knobs(model: OutcomeModel, rows: np.ndarray, actions: np.ndarray, episode: np.ndarray) -> list[Knob]:
    """A knob for each of the A actions and each of its bounds; rows [n], actions [n, A], episode [n] counted from 0."""
    task, found = model.task, []
    steps_of = np.bincount(episode)
    samples = model.num_members if isinstance(model, LearnedOutcomes) else len(steps_of)
    for index, name in enumerate(task.action_names):
        for towards, bound in (("high", task.high[index]), ("low", task.low[index])):
            reach = task.high[index] - task.low[index]
            profit, err_rate = np.empty((2, samples, len(TURNS)))
            for turn, part in enumerate(TURNS):
                moved = actions.copy()
                missing = bound - actions[:, index]
                moved[:, index] += np.sign(missing) * np.minimum(part * reach, np.abs(missing))
                if isinstance(model, LearnedOutcomes):
                    profit[:, turn] = by_members.mean_profit(model, rows, moved) / task.human_wage_usd
                    err_rate[:, turn] = by_members.mean_err_rate(model, rows, moved)
                    continue
                worth = expected_worth(model, rows, moved)
                profit[:, turn] = np.bincount(episode, worth.profit / task.human_wage_usd) / steps_of
                err_rate[:, turn] = np.bincount(episode, worth.err_rate) / steps_of
            found.append(Knob(name, towards, profit, err_rate))
    return found


def best_knob(found: list[Knob], err_target: float) -> Knob:
    """The knob that leaves the most profit at its first position that meets the target over all episodes.

    If none meets it, the knob that comes closest.
    """

    def merit(knob: Knob) -> tuple[bool, float]:
        profit, err_rate = knob.profit.mean(0), knob.err_rate.mean(0)
        meets = err_rate <= err_target
        return (True, float(profit[meets.argmax()])) if meets.any() else (False, -float(err_rate.min()))

    return max(found, key=merit)


def knob_price(profit: np.ndarray, err_rate: np.ndarray, err_target: float) -> np.ndarray:
    """Profit given up per unit of error rate, [B], when the knob first meets the target; NaN if it never does.

    profit, err_rate: [B, T] over the positions of the knob.
    """
    meets = err_rate <= err_target
    first = meets.argmax(1)
    rows, here, before = np.arange(len(profit)), first, np.maximum(first - 1, 0)
    gain, relief = profit[rows, before] - profit[rows, here], err_rate[rows, before] - err_rate[rows, here]
    price = np.maximum(np.divide(gain, relief, out=np.zeros(len(profit)), where=relief > 0), 0.0)
    return np.where(meets.any(1), price, np.nan)


def tradeoffs(model: OutcomeModel, rows: np.ndarray) -> list[Tradeoff]:
    """The oracle's options on rows [n]: the efficient actions for each kind of row.

    An action is efficient if no other earns as much profit with fewer errors.
    """
    _, first, count = np.unique(model.kind(rows), return_index=True, return_counts=True)
    kinds = rows[first]
    everywhere = candidates(model.task)
    fewest_errors = oracle(model, kinds, lambda worth: -worth.err_rate).actions
    paths = np.stack([fewest_errors, *_best_at_prices(model, kinds)], 1)  # [kinds, points, A]
    return [
        _efficient(model, row, np.concatenate([everywhere, path]), number / len(rows))
        for row, path, number in zip(kinds, paths, count, strict=True)
    ]


def _best_at_prices(model: OutcomeModel, kinds: np.ndarray) -> list[np.ndarray]:
    """The best actions on kinds [n] at PRICES and between them, each [n, A]; none if a grid covers all actions.

    From one price to the next they move little, so a straight line between them is nearly optimal.
    """
    if model.task.num_actions in AXIS_POINTS:
        return []

    def best_at(price: float) -> np.ndarray:
        wage = model.task.human_wage_usd
        return oracle(model, kinds, lambda worth: worth.profit / wage - price * worth.err_rate).actions

    best = [best_at(price) for price in PRICES]
    return [
        here + part * (there - here) for here, there in itertools.pairwise(best) for part in np.linspace(0, 1, BETWEEN)
    ]


def candidates(task: Task) -> np.ndarray:
    """Actions [P, A] over the whole box: a grid for one or two actions, scattered points and corners for more."""
    if task.num_actions in AXIS_POINTS:
        axis = np.linspace(0, 1, AXIS_POINTS[task.num_actions])
        unit = np.stack(np.meshgrid(*[axis] * task.num_actions, indexing="ij"), -1).reshape(-1, task.num_actions)
    else:
        unit = qmc.Sobol(task.num_actions, scramble=False).random_base2(SCATTERED)
        if task.num_actions <= MAX_CORNERS:
            unit = np.concatenate([unit, np.array(list(itertools.product((0.0, 1.0), repeat=task.num_actions)))])
    return task.from_unit((1 - np.cos(np.pi * unit)) / 2)


def _efficient(model: OutcomeModel, row: np.ndarray, actions: np.ndarray, share: float) -> Tradeoff:
    worth = expected_worth(model, row, actions)
    profit, err_rate = np.broadcast_arrays(worth.profit / model.task.human_wage_usd, worth.err_rate)
    order = np.lexsort([-profit, err_rate])
    profit, err_rate = profit[order], err_rate[order]
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(profit)[:-1]])
    return Tradeoff(share, profit[profit > best_before], err_rate[profit > best_before])


def least_err_rate(choices: list[Tradeoff]) -> float:
    """The lowest achievable error rate."""
    return float(sum(choice.share * choice.err_rate.min() for choice in choices))


def oracle_price(choices: list[Tradeoff], err_target: float) -> float | None:
    """The smallest λ ≥ 0 at which the best actions meet the target, by bisection; None if no action can.

    At λ the action on each kind of row maximises profit in human wages − λ · err_rate.
    """

    def best_err_rate(price: float) -> float:
        return float(
            sum(
                choice.share * choice.err_rate[np.argmax(choice.profit - price * choice.err_rate)] for choice in choices
            )
        )

    if least_err_rate(choices) > err_target:
        return None
    low, high = 0.0, 1.0
    if best_err_rate(low) <= err_target:
        return low
    while best_err_rate(high) > err_target:
        low, high = high, 2 * high
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if best_err_rate(middle) <= err_target else (middle, high)
    return high


def targets(task: Task, choices: list[Tradeoff], points: int) -> np.ndarray:
    """Error targets [points] from just above the lowest achievable error rate to the initial target of training."""
    lowest = max(1.05 * least_err_rate(choices), LEAST_TARGET)
    return np.geomspace(lowest, max(task.error_target.start, 2 * lowest), points)
