"""Rows of an outcome model and their prices: the part that all outcome models share."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import VtpError
from pipeline.outcomes.model import OutcomeModel, Terms
from pipeline.tasks import Task

STEP_DIGITS = 3  # of seconds: equal clips differ by rounding, because their ends are times in the video

if TYPE_CHECKING:
    from typing_extensions import Self


class PricedRows(OutcomeModel):
    """Rows [N] with known contexts, at the task's prices or their own.

    price_usd, damage_usd: [N] per row, NaN: the task's. step_s: [N] seconds of work, or one number for all rows.
    """

    def __init__(
        self,
        task: Task,
        context: np.ndarray,
        *,
        price_usd: np.ndarray | None,
        damage_usd: np.ndarray | None,
        step_s: np.ndarray | float,
        is_labelled: bool,
        description: str,
    ):
        self._task, self._context = task, context
        self._own_price, self._own_damage = price_usd, damage_usd
        self._price = own_or_else(price_usd, task.price_usd[context])
        self._damage = own_or_else(damage_usd, task.damage_usd[context])
        self._step_s = np.broadcast_to(step_s, len(context))
        self._is_labelled, self._description = is_labelled, description

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
    def is_estimate(self) -> bool:
        return False

    @property
    def context(self) -> np.ndarray:
        return self._context

    def _alike(self) -> np.ndarray:
        """Columns [N, n] that are equal for rows with the same outcomes."""
        return self._context[:, None]

    @cached_property
    def _kinds(self) -> np.ndarray:
        kinds = np.zeros(len(self._context), np.int64)
        # One column at a time, because sorting a million whole rows takes many times as long.
        for column in (*self._alike().T, self._price, self._damage, np.round(self._step_s, STEP_DIGITS)):
            values, number = np.unique(column, return_inverse=True)
            if len(values) > 1:
                kinds = np.unique(kinds * len(values) + number, return_inverse=True)[1]
        return kinds

    def kind(self, rows: np.ndarray) -> np.ndarray:
        return self._kinds[rows]

    def terms(self, rows: np.ndarray) -> Terms:
        return Terms(self._price[rows], self._damage[rows], self._step_s[rows])

    def penalty(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.zeros(np.broadcast_shapes(np.shape(rows), np.shape(actions)[:-1]))

    def with_task(self, task: Task) -> Self:
        if task.context_names != self._task.context_names:
            raise VtpError(
                f"task {task} has other contexts than {self._task}; name a task with the same contexts",
                code="task-other-contexts",
            )
        return self._priced(task, self._own_price, self._own_damage)

    def scaled(self, *, price: float = 1.0, damage: float = 1.0) -> Self:
        own_price, own_damage = (
            None if own is None else factor * own
            for own, factor in ((self._own_price, price), (self._own_damage, damage))
        )
        return self._priced(self._task.scaled(price=price, damage=damage), own_price, own_damage)

    @abstractmethod
    def _priced(self, task: Task, price_usd: np.ndarray | None, damage_usd: np.ndarray | None) -> Self:
        """The same rows and outcomes at the task's prices, or at the rows' own."""


def own_or_else(own: np.ndarray | None, usual: np.ndarray) -> np.ndarray:
    return usual if own is None else np.where(np.isnan(own), usual, own)
