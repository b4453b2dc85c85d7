"""Logging policies: how the logged actions of simulated demonstrations are chosen, and with which propensity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from pipeline.errors import VtpError
from pipeline.outcomes.optimum import oracle
from pipeline.outcomes.simulated import SimulatedOutcomes
from pipeline.tasks import Task

LOGGERS = ("uniform", "human", "expert")
HOLD_PROBABILITY = 0.5  # a demonstrator tries an action for a few steps
HUMAN_FIRST, HUMAN_OTHERS = 0.55, 0.60  # mean of the first action and of every other one, in units of the box
HUMAN_SD, EXPERT_SD = 0.18, 0.15  # in units of the box


class Normal(NamedTuple):
    """Independent normal distributions of the actions in each context, in the task's units, before clipping."""

    mean: np.ndarray  # [K, A]
    sd: np.ndarray  # [A]


@dataclass(frozen=True)
class LoggingPolicy:
    """Draws every action independently in the box [low, high]: uniformly, or from a normal distribution clipped to it.

    A normal draw beyond a bound becomes the bound, which therefore has a probability instead of a density. A uniform
    draw is never clipped.

    hold_probability: of keeping an action for the next step instead of drawing another. Only policies that do not
    depend on the context hold actions, so that an action has the same density given its context, held or not.
    """

    name: str
    low: np.ndarray  # [A]
    high: np.ndarray  # [A]
    normal: Normal | None = None  # None: uniform
    hold_probability: float = 0.0

    @property
    def is_cut(self) -> bool:
        """Whether a bound has a probability instead of a density."""
        return self.normal is not None

    def draw(self, context: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Actions [n, A] in contexts [n], which are integers in [0, K)."""
        if self.normal is None:
            unit = rng.random((len(context), len(self.low)))
            return np.clip(self.low + unit * (self.high - self.low), self.low, self.high)
        return np.clip(rng.normal(self.normal.mean[context], self.normal.sd), self.low, self.high)

    def propensity(self, context: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """The density [...] with which actions [..., A] are chosen in contexts [...], per unit of every action.

        It is a product of one factor per action: the action's density or, at a bound to which draws are clipped, the
        probability of the bound. It is 0 outside the box and NaN if an action is NaN.
        """
        actions = np.asarray(actions, float)
        width = self.high - self.low
        factors = np.broadcast_to(1 / width, actions.shape)
        if self.normal is not None:
            mean, sd = self.normal.mean[context], self.normal.sd
            factors = np.exp(-0.5 * ((actions - mean) / sd) ** 2) / (np.sqrt(2 * np.pi) * sd)
            factors = np.where(actions == self.low, ndtr((self.low - mean) / sd), factors)
            factors = np.where(actions == self.high, ndtr((mean - self.high) / sd), factors)
        factors = np.where((actions < self.low) | (actions > self.high), 0.0, factors)
        return np.where(np.isnan(actions), np.nan, factors).prod(-1)


def logging_policy(name: str, task: Task) -> LoggingPolicy:
    """The logging policy of that name, for the contexts and actions of a task with a simulator.

    uniform: over the box of the actions. human: around 0.55 of the first action's range and 0.60 of every other one's,
    with a standard deviation of 0.18 of the range, in every context. expert: around each context's best action, with a
    standard deviation of 0.15 of the range.
    """
    low, high = task.low, task.high
    if name == "uniform":
        return LoggingPolicy(name, low, high, hold_probability=HOLD_PROBABILITY)
    if name == "human":
        unit = np.full((len(task.contexts), task.num_actions), HUMAN_OTHERS)
        unit[:, 0] = HUMAN_FIRST
        normal = Normal(task.from_unit(unit), HUMAN_SD * (high - low))
        return LoggingPolicy(name, low, high, normal, hold_probability=HOLD_PROBABILITY)
    if name == "expert":
        best = oracle(SimulatedOutcomes(task), np.arange(len(task.contexts))).actions
        return LoggingPolicy(name, low, high, Normal(best, EXPERT_SD * (high - low)))
    raise VtpError(f"logger {name!r} is unknown; use one of {', '.join(LOGGERS)}", code="logger-unknown")
