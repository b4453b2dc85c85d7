"""Outcomes from the simulator: it knows contexts, and nothing else of a clip."""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np

from pipeline.errors import VtpError
from pipeline.outcomes.model import OutcomeModel, Outcomes, Terms
from pipeline.outcomes.optimum import MAX_CORNERS
from pipeline.synthetic import dynamics
from pipeline.tasks import Task

STEP_DIGITS = 3  # of seconds: clips of one length differ by rounding, as their ends are times in the video


class SimulatedOutcomes(OutcomeModel):
    """Rows [N] whose contexts are known; by default a row is a context of the task, as in the simulator itself.

    price_usd, damage_usd: [N] a row's own, NaN where the task's hold. step_s: [N] seconds of work, where the task
    leaves them to the clips.
    """

    def __init__(
        self,
        task: Task,
        context: np.ndarray | None = None,
        *,
        price_usd: np.ndarray | None = None,
        damage_usd: np.ndarray | None = None,
        step_s: np.ndarray | None = None,
        is_labelled: bool = True,
        description: str = "",
    ):
        self._dynamics = dynamics.Dynamics(task)
        self._task, self._is_labelled = task, is_labelled
        self._context = np.arange(len(task.contexts)) if context is None else context
        self._own_price, self._own_damage, self._own_step_s = price_usd, damage_usd, step_s
        self._price = _own_or_else(price_usd, task.price_usd[self._context])
        self._damage = _own_or_else(damage_usd, task.damage_usd[self._context])
        if task.step_s is not None:
            self._step_s = np.full(len(self._context), task.step_s)
        else:
            self._step_s = np.full(len(self._context), self._dynamics.step_s) if step_s is None else step_s
        self._description = description or f"simulator, {task}"

    @property
    def task(self) -> Task:
        return self._task

    @property
    def description(self) -> str:
        return self._description

    @property
    def is_labelled(self) -> bool:
        return self._is_labelled

    @property
    def context(self) -> np.ndarray:
        return self._context

    @cached_property
    def _kinds(self) -> np.ndarray:
        step_s = np.round(self._step_s, STEP_DIGITS)
        columns = np.stack([self._context, self._price, self._damage, step_s], 1)
        return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)

    def kind(self, rows: np.ndarray) -> np.ndarray:
        return self._kinds[rows]

    def terms(self, rows: np.ndarray) -> Terms:
        return Terms(self._price[rows], self._damage[rows], self._step_s[rows])

    def expected(self, rows: np.ndarray, actions: np.ndarray) -> Outcomes:
        rate, p_err = self._rates(rows, actions)
        attempts = self._dynamics.expected_attempts(rate)
        return Outcomes(attempts, attempts * p_err)

    def sample(self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> Outcomes:
        return Outcomes(*self._dynamics.sample(*self._rates(rows, actions), rng))

    def sample_coupled(self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator, draws: int) -> Outcomes:
        rate, p_err = (np.broadcast_to(values, rows.shape) for values in self._rates(rows, actions))
        return Outcomes(*self._dynamics.sample_coupled(rate, p_err, rng, draws))

    def sample_many(
        self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator, size: tuple[int, ...]
    ) -> Outcomes:
        """Sampled attempts and errors of shape `size`, whose last axes are those of rows and actions."""
        return Outcomes(*self._dynamics.sample(*self._rates(rows, actions), rng, size))

    def with_task(self, task: Task) -> SimulatedOutcomes:
        if task.context_names != self._task.context_names:
            raise VtpError(
                f"task {task} has other contexts than {self._task}; name one with the same", code="task-other-contexts"
            )
        return self._priced(task, self._own_price, self._own_damage)

    def scaled(self, *, price: float = 1.0, damage: float = 1.0) -> SimulatedOutcomes:
        own_price, own_damage = (
            None if own is None else factor * own
            for own, factor in ((self._own_price, price), (self._own_damage, damage))
        )
        return self._priced(self._task.scaled(price=price, damage=damage), own_price, own_damage)

    def _priced(self, task: Task, price_usd: np.ndarray | None, damage_usd: np.ndarray | None) -> SimulatedOutcomes:
        return SimulatedOutcomes(
            task, self._context, price_usd=price_usd, damage_usd=damage_usd, step_s=self._own_step_s,
            is_labelled=self._is_labelled, description=self._description,
        )  # fmt: skip

    def _rates(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._dynamics(self._context[rows], actions, self._step_s[rows])

    # The simulator's own world, where a row is a context.

    @cached_property
    def fastest(self) -> float:
        """Attempts of a step at the corner of the actions where there are most of them, in the fastest context.

        Of many actions, which have too many corners, at one that no single other bound would make faster.
        """
        num_actions, rows = self._task.num_actions, np.arange(len(self._context))

        def most(actions: np.ndarray) -> np.ndarray:
            return np.broadcast_to(self._rates(rows, actions[:, None])[0], (len(actions), len(rows))).max(1)

        if num_actions <= MAX_CORNERS:
            corners = np.array(list(itertools.product((0.0, 1.0), repeat=num_actions)))
            return float(most(self._task.from_unit(corners)).max()) or 1.0
        corner, found = np.zeros(num_actions), 0.0
        while True:
            neighbours = np.abs(corner - np.eye(num_actions))
            rates = most(self._task.from_unit(neighbours))
            if rates.max() <= found:
                return found or 1.0
            corner, found = neighbours[rates.argmax()], float(rates.max())

    def initial_rows(self, num_envs: int, rng: np.random.Generator) -> np.ndarray:
        """Contexts [num_envs] to begin with."""
        return dynamics.initial_context(len(self._context), num_envs, rng)

    def next_rows(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The contexts that follow."""
        return dynamics.next_context(len(self._context), rows, rng)


def _own_or_else(own: np.ndarray | None, usual: np.ndarray) -> np.ndarray:
    return usual if own is None else np.where(np.isnan(own), usual, own)
