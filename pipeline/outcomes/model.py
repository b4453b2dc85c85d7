"""Outcomes of actions: the one protocol for environments, optima, validations and experiments."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from pipeline import econ
from pipeline.tasks import SECONDS_PER_HOUR, Task, Worth, worth


class Outcomes(NamedTuple):
    """Attempts of a step and the errors among them: counts, or expectations."""

    attempts: np.ndarray
    errors: np.ndarray


class Terms(NamedTuple):
    """Prices of a step: US dollars per good unit, US dollars per error, and seconds of work."""

    price_usd: np.ndarray
    damage_usd: np.ndarray
    step_s: np.ndarray


class OutcomeModel(Protocol):
    """Outcomes of actions on rows, which are clips of a data set or, in the simulator, contexts.

    Rows are integers of any shape [...], actions [..., A] are in the task's units; both broadcast.
    """

    @property
    def task(self) -> Task:
        """The task, restricted to the rows' contexts."""

    @property
    def description(self) -> str:
        """Where outcomes come from, for logs and summaries."""

    @property
    def is_labelled(self) -> bool:
        """Whether the rows' contexts are known."""

    @property
    def is_estimate(self) -> bool:
        """Whether expectations are estimates, which training may use, not the truth, which only evaluation may."""

    @property
    def context(self) -> np.ndarray:
        """The context of every row, an index into the task's, [N]."""

    def kind(self, rows: np.ndarray) -> np.ndarray:
        """Integers that are equal for rows with the same outcomes of every action and the same terms."""

    def terms(self, rows: np.ndarray) -> Terms:
        """Prices and durations of steps on these rows."""

    def expected(self, rows: np.ndarray, actions: np.ndarray) -> Outcomes:
        """Expected attempts and errors of one step."""

    def sample(self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> Outcomes:
        """Sampled attempts and errors of one step."""

    def sample_many(
        self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator, size: tuple[int, ...]
    ) -> Outcomes:
        """Sampled attempts and errors of shape `size`, whose last axes are those of rows and actions."""

    def sample_coupled(self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator, draws: int) -> Outcomes:
        """`draws` samples [draws, n] on rows [n]; with equal generators similar actions have similar outcomes."""

    def penalty(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Penalty in training, in $/h, of actions with uncertain outcomes."""

    def with_task(self, task: Task) -> OutcomeModel:
        """The same outcomes at another task's prices and costs."""

    def scaled(self, *, price: float = 1.0, damage: float = 1.0) -> OutcomeModel:
        """The same outcomes with every price and every cost of an error times these factors, rows' own included."""


def step_value(model: OutcomeModel, rows: np.ndarray, outcomes: Outcomes) -> np.ndarray:
    """Value of the outcomes of steps on those rows, in US dollars, before hourly costs."""
    terms = model.terms(rows)
    return econ.step_value(outcomes.attempts, outcomes.errors, terms.price_usd, terms.damage_usd)


def step_worth(model: OutcomeModel, rows: np.ndarray, outcomes: Outcomes) -> Worth:
    """Worth of the outcomes of steps on those rows, per hour."""
    return worth(
        outcomes.attempts,
        outcomes.errors,
        step_value(model, rows, outcomes),
        SECONDS_PER_HOUR / model.terms(rows).step_s,
        costs_usd_per_hour=model.task.total_costs_usd_per_hour,
    )


def expected_worth(model: OutcomeModel, rows: np.ndarray, actions: np.ndarray) -> Worth:
    """Expected worth of actions on those rows, per hour."""
    return step_worth(model, rows, model.expected(rows, actions))
