"""What to log next: the contexts and actions for which more steps are expected to improve the best action most.

The value of n steps in a cell of the actions is the expected increase in profit of the best action, chosen with and
without them: the knowledge gradient (Frazier, Powell and Dayanik 2008, 'A knowledge-gradient policy for
sequential information collection'; with correlated beliefs, 2009, equations 9 to 11). Beliefs are the ensemble's: with
its covariance Σ of profits in cells i and c, and the noise λ of one step, n steps in c move the profit of i by

    Σ_ic / √(Σ_cc + λ / n) · Z,    Z a standard normal number,

so uncertainty that all cells share has no value, because it changes no choice. Only cells that could be best are
suggested. The profit of steps while they are logged is shown beside their value, not subtracted from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from pipeline.outcomes import LearnedOutcomes, Outcomes, Terms
from pipeline.survey.action_cells import Cells, cells_of
from pipeline.survey.best_actions import Best
from pipeline.tasks import SECONDS_PER_HOUR

SUGGESTIONS = 5
LEAST_GAIN = 0.005  # $/h; steps that add less are not suggested
COULD_BE_BEST = 0.1  # share of the ensemble that must expect more there than from the best action by the logs
APART = 2.5  # least distance of suggested cells of a context, in their widths
KNOWN = 0.9  # of the ensemble's variance: steps are suggested until this much of it is resolved
TENS = 10
NORMAL = ndtri((np.arange(100) + 0.5) / 100)  # a standard normal number, in hundredths
TINY = 1e-12


@dataclass(frozen=True)
class Suggestion:
    """Steps to log in a context, with each action between two values.

    gain_usd_per_hour: expected increase in the profit of the best actions, in $/h of all work. profit_usd_per_hour:
    expected profit of the steps themselves. logged_steps: in that cell so far.
    """

    context: str
    actions: dict[str, list[float]]
    steps: int
    gain_usd_per_hour: float
    profit_usd_per_hour: float
    logged_steps: int


def suggestions(model: LearnedOutcomes, bests: dict[str, Best], budget: int) -> list[Suggestion]:
    """The most valuable cells first, without those near a better one. budget: steps that could be logged per cell."""
    cells = cells_of(model.task.num_actions)
    found = []
    for name, best in bests.items():
        number = model.task.context_names.index(name)
        share = np.count_nonzero(model.context == number) / len(model.context)
        value = value_of_logging(model, best, cells, budget)
        logged = cells.counts(model.task.to_unit(model.steps.actions[model.steps.context == number]))
        for cell in _apart(cells, share * value.gain):
            low, high = (model.task.from_unit(bound[cell]).tolist() for bound in (cells.low, cells.high))
            ranges = {action: [a, b] for action, a, b in zip(model.task.actions, low, high, strict=True)}
            gain, profit = float(share * value.gain[cell]), float(value.profit[cell])
            found.append(Suggestion(name, ranges, int(value.steps[cell]), gain, profit, int(logged[cell])))
    return sorted(found, key=lambda one: -one.gain_usd_per_hour)[:SUGGESTIONS]


class Value(NamedTuple):
    """Per cell [C]: the expected increase of the context's profit by steps there, in $/h; their number; and their own
    expected profit, in $/h."""

    gain: np.ndarray
    steps: np.ndarray
    profit: np.ndarray


def value_of_logging(model: LearnedOutcomes, best: Best, cells: Cells, budget: int) -> Value:
    """The value of logging up to `budget` steps in each cell; 0 in cells that are unlikely to be best."""
    actions, rows = model.task.from_unit(cells.centres)[None], best.rows[:, None]
    profit = model.profit_of_members(rows, actions)  # [M, R, C]
    of_best = model.profit_of_members(best.rows, best.actions)[:, :, None]
    dispersion = model.attempts_head.dispersion
    noise = best.weights @ step_variance(model.expected(rows, actions), model.terms(rows), dispersion=dispersion)
    seen = np.tensordot(profit, best.weights, (1, 0))  # [M, C], what steps in a cell are a sample of
    variance = np.maximum(seen.var(0, ddof=1), TINY)
    steps = np.clip(np.ceil(KNOWN / (1 - KNOWN) * noise / variance / TENS) * TENS, TENS, max(budget, TENS))
    deviation = (seen - seen.mean(0)) / np.sqrt(variance + noise / steps) / (len(seen) - 1)
    gain = np.zeros(len(steps))
    for row, weight in enumerate(best.weights):
        choices = np.concatenate([profit[:, row], of_best[:, row]], axis=1)  # [M, C + 1]
        mean = choices.mean(0)
        slopes = deviation.T @ (choices - mean)  # [C, C + 1]
        gain += weight * (expected_maximum(mean, slopes) - mean.max())
    could_be_best = np.tensordot((profit > of_best).mean(0), best.weights, (0, 0)) >= COULD_BE_BEST
    unit = model.task.to_unit(best.actions)
    could_be_best |= ((unit[:, None] >= cells.low) & (unit[:, None] <= cells.high)).all(2).any(0)
    return Value(np.where(could_be_best, np.maximum(gain, 0), 0), steps, seen.mean(0))


def expected_maximum(mean: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """E max_i (mean_i + slope_i · Z) for a standard normal Z: mean [n], slopes [C, n] → [C]."""
    return np.mean([(mean + slopes * z).max(1) for z in NORMAL], axis=0)


def step_variance(expected: Outcomes, terms: Terms, *, dispersion: float) -> np.ndarray:
    """The variance of one step's profit, in ($/h)², from expected attempts and errors of any shape.

    Attempts have variance mean + dispersion · mean², and errors are binomial given attempts: a step of A attempts is
    worth A · (price − (price + damage) · p) on average.
    """
    attempts = expected.attempts
    p = np.clip(expected.errors / np.maximum(attempts, TINY), 0, 1)
    loss = terms.price_usd + terms.damage_usd
    of_attempts = (attempts + dispersion * attempts**2) * (terms.price_usd - loss * p) ** 2
    of_errors = attempts * loss**2 * p * (1 - p)
    return (of_attempts + of_errors) * (SECONDS_PER_HOUR / terms.step_s) ** 2


def _apart(cells: Cells, gain: np.ndarray) -> list[int]:
    """The cells of the largest gains [C], none near a better one."""
    centres, width = cells.centres, (cells.high - cells.low).max()
    kept: list[int] = []
    for cell in np.argsort(-gain, kind="stable"):
        if gain[cell] < LEAST_GAIN or len(kept) == SUGGESTIONS:
            break
        if all(np.abs(centres[cell] - centres[other]).max() > APART * width for other in kept):
            kept.append(int(cell))
    return kept
