"""Outcomes from the simulator, which depend on a clip's context only."""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np

from pipeline.outcomes.model import Outcomes
from pipeline.outcomes.optimum import MAX_CORNERS
from pipeline.outcomes.priced_rows import PricedRows
from pipeline.synthetic import dynamics
from pipeline.tasks import Task


class SimulatedOutcomes(PricedRows):
    """Rows [N] with known contexts; by default one row per context of the task, as in the simulator itself.

    price_usd, damage_usd: [N] per row, NaN: the task's. step_s: [N] seconds of work, used if the task sets none.
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
        self._given_step_s = step_s
        context = np.arange(len(task.contexts)) if context is None else context
        super().__init__(
            task,
            context,
            price_usd=price_usd,
            damage_usd=damage_usd,
            step_s=self._dynamics.step_s if task.step_s is not None or step_s is None else step_s,
            is_labelled=is_labelled,
            description=description or f"simulator, {task}",
        )

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
        return Outcomes(*self._dynamics.sample(*self._rates(rows, actions), rng, size))

    def _priced(self, task: Task, price_usd: np.ndarray | None, damage_usd: np.ndarray | None) -> SimulatedOutcomes:
        return SimulatedOutcomes(
            task, self._context, price_usd=price_usd, damage_usd=damage_usd, step_s=self._given_step_s,
            is_labelled=self._is_labelled, description=self._description,
        )  # fmt: skip

    def _rates(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._dynamics(self._context[rows], actions, self._step_s[rows])

    # For the simulator itself, where a row is a context.

    @cached_property
    def fastest(self) -> float:
        """Attempts per step in the fastest context at the fastest corner of the actions.

        With many actions, which have too many corners: at a corner that no change of a single bound makes faster.
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
        """Initial contexts, [num_envs]."""
        return dynamics.initial_context(len(self._context), num_envs, rng)

    def next_rows(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The next contexts."""
        return dynamics.next_context(len(self._context), rows, rng)
