"""Means by each member of an ensemble of learned outcome models; their spread measures the uncertainty."""

from __future__ import annotations

import numpy as np

from pipeline.outcomes import LearnedOutcomes


def mean_profit(model: LearnedOutcomes, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Mean profit in $/h of actions [n, A] on rows [n], by each member [M]."""
    rows, actions, share = _distinct(rows, actions)
    return model.profit_of_members(rows, actions) @ share


def mean_err_rate(model: LearnedOutcomes, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Mean error rate of actions [n, A] on rows [n], by each member [M]."""
    rows, actions, share = _distinct(rows, actions)
    attempts, errors = model.of_members(rows, actions)
    return np.divide(errors, attempts, out=np.zeros_like(errors), where=attempts > 0) @ share


def _distinct(rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs of row and action, and the share of each among all pairs.

    Validation plays every clip many times, and an unchanged policy repeats its action.
    """
    _, first, count = np.unique(np.column_stack([rows, actions]), axis=0, return_index=True, return_counts=True)
    return rows[first], actions[first], count / len(rows)
