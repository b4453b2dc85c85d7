"""What an action brings: the one protocol that environments, optima, validations and experiments ask."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from pipeline import econ
from pipeline.tasks import SECONDS_PER_HOUR, Task, Worth, worth


class Outcomes(NamedTuple):
    """Attempts, and the errors among them, of a step: counted, or expected."""

    attempts: np.ndarray
    errors: np.ndarray


class Terms(NamedTuple):
    """What a step is priced by: US dollars a good unit earns, US dollars an error costs, seconds of work."""

    price_usd: np.ndarray
    damage_usd: np.ndarray
    step_s: np.ndarray


class OutcomeModel(Protocol):
    """Knows rows, which are clips of a data set or, in the simulator, contexts; says what actions bring there.

    Rows are integers of any shape [...], actions [..., A] are in the task's units; both broadcast.
    """

    @property
    def task(self) -> Task:
        """The task, with the contexts that the rows are of."""

    @property
    def description(self) -> str:
        """Where outcomes come from, for logs and summaries."""

    @property
    def is_labelled(self) -> bool:
        """Whether the rows' contexts are known."""

    @property
    def is_estimate(self) -> bool:
        """Whether what is expected is an estimate, which training may know, and not the truth that only judges may."""

    @property
    def context(self) -> np.ndarray:
        """The context of every row, an index into the task's, [N]."""

    def kind(self, rows: np.ndarray) -> np.ndarray:
        """Integers that are equal where rows bring the same for every action, at the same terms."""

    def terms(self, rows: np.ndarray) -> Terms:
        """What steps on these rows are priced by."""

    def expected(self, rows: np.ndarray, actions: np.ndarray) -> Outcomes:
        """Expected attempts and errors of one step."""

    def sample(self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> Outcomes:
        """Sampled attempts and errors of one step."""

    def sample_many(
        self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator, size: tuple[int, ...]
    ) -> Outcomes:
        """Sampled attempts and errors of shape `size`, whose last axes are those of rows and actions."""

    def sample_coupled(self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator, draws: int) -> Outcomes:
        """`draws` samples [draws, n] of steps on rows [n]; with equal generators like actions meet like luck."""

    def penalty(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """What a policy in training pays, in $/h, for actions whose outcomes are not well known."""

    def with_task(self, task: Task) -> OutcomeModel:
        """The same work at another task's prices and costs; what actions bring stays as it is."""

    def scaled(self, *, price: float = 1.0, damage: float = 1.0) -> OutcomeModel:
        """The same work with every price, and every cost of an error, times these factors; rows' own included."""


def step_value(model: OutcomeModel, rows: np.ndarray, outcomes: Outcomes) -> np.ndarray:
    """What the outcomes of steps on those rows are worth, in US dollars, before hourly costs."""
    terms = model.terms(rows)
    return econ.step_value(outcomes.attempts, outcomes.errors, terms.price_usd, terms.damage_usd)


def step_worth(model: OutcomeModel, rows: np.ndarray, outcomes: Outcomes) -> Worth:
    """What the outcomes of steps on those rows are worth, as rates an hour."""
    return worth(
        outcomes.attempts,
        outcomes.errors,
        step_value(model, rows, outcomes),
        SECONDS_PER_HOUR / model.terms(rows).step_s,
        costs_usd_per_hour=model.task.total_costs_usd_per_hour,
    )


def expected_worth(model: OutcomeModel, rows: np.ndarray, actions: np.ndarray) -> Worth:
    """What is expected of actions held on those rows, as rates an hour."""
    return step_worth(model, rows, model.expected(rows, actions))
