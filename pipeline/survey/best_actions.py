"""What can be learned: each context's best action by the logs, its profit, and how sure the ensemble is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.outcomes import LearnedOutcomes, oracle
from pipeline.outcomes.fitting import Head
from pipeline.stats import percentiles95

MOST_KINDS = 24  # rows of a context to find best actions for, if its rows differ
MOST_STEPS = 5000  # logged steps of a context to average the logging policy's profit over
ALIKE = 0.02  # of the box: actions that differ by less are treated as equal


class Best(NamedTuple):
    """R rows of a context with their weights, which sum to 1, and the best action [R, A] on each of them."""

    rows: np.ndarray
    weights: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class Learnable:
    """The best action of a context by the logs; profits in $/h, with the middle 95% of the ensemble.

    best_actions: the best action of most of the context's clips, and their share; it differs between
    clips only if they have their own prices or look different. logging_: the expected profit of the logging policy, and
    gain_: how much more the best action earns; None if nothing was logged. like_steps: logged steps with an
    action like the best one.
    """

    best_actions: dict[str, float]
    best_actions_share: float
    profit_usd_per_hour: float
    profit_ci95: list[float]
    logging_profit_usd_per_hour: float | None
    logging_profit_ci95: list[float] | None
    gain_usd_per_hour: float | None
    gain_ci95: list[float] | None
    like_steps: float


@dataclass(frozen=True)
class Fitted:
    """How one kind of counts was fitted.

    prior_shape: the higher, the more similar contexts are assumed to be (0.3 to 100). is_product: the effect of each
    action does not depend on the others. dispersion: d of counts with the variance mean + d · mean².
    """

    prior_shape: float
    is_product: bool
    dispersion: float


@dataclass(frozen=True)
class Learned:
    """What the logs show. gain_: of the best actions over the logging policy, in $/h of all logged work."""

    members: int
    attempts: Fitted
    errors: Fitted
    contradicted: list[str]
    gain_usd_per_hour: float
    gain_ci95: list[float]
    contexts: dict[str, Learnable]


def best_of_contexts(model: LearnedOutcomes, advance: Callable[[str], None]) -> dict[str, Best]:
    """The best actions of each context that clips show; calls `advance` with the name of the next one."""
    found = {}
    for number, name in enumerate(model.task.context_names):
        here = np.flatnonzero(model.context == number)
        if len(here) == 0:
            continue
        advance(name)
        _, first, count = np.unique(model.kind(here), return_index=True, return_counts=True)
        rows, weights = here[first], count / len(here)
        if len(rows) > MOST_KINDS:
            rows = here[np.linspace(0, len(here) - 1, MOST_KINDS).astype(int)]
            weights = np.full(MOST_KINDS, 1 / MOST_KINDS)
        found[name] = Best(rows, weights, oracle(model, rows).actions)
    return found


def learned(model: LearnedOutcomes, bests: dict[str, Best]) -> Learned:
    """The model's knowledge of each context's best actions."""
    contexts = {}
    gains, clips = [], []  # [M] and their weight, of logged contexts
    for name, best in bests.items():
        number = model.task.context_names.index(name)
        profit = model.profit_of_members(best.rows, best.actions) @ best.weights
        logging = _logging_profit(model, np.flatnonzero(model.steps.context == number))
        gain = None if logging is None else profit - logging
        if gain is not None:
            gains.append(gain)
            clips.append(np.count_nonzero(model.context == number))
        unit = model.task.to_unit(best.actions)
        usual = int(best.weights.argmax())
        is_alike = (np.abs(unit - unit[usual]) <= ALIKE).all(1)
        contexts[name] = Learnable(
            best_actions=dict(zip(model.task.actions, best.actions[usual].tolist(), strict=True)),
            best_actions_share=float(best.weights[is_alike].sum()),
            profit_usd_per_hour=float(profit.mean()),
            profit_ci95=percentiles95(profit),
            logging_profit_usd_per_hour=None if logging is None else float(logging.mean()),
            logging_profit_ci95=None if logging is None else percentiles95(logging),
            gain_usd_per_hour=None if gain is None else float(gain.mean()),
            gain_ci95=None if gain is None else percentiles95(gain),
            like_steps=float(model.support(best.rows, best.actions) @ best.weights),
        )
    gain = np.average(gains, axis=0, weights=clips)
    return Learned(
        members=model.num_members,
        attempts=_fitted(model.attempts_head),
        errors=_fitted(model.errors_head),
        contradicted=list(model.contradicted),
        gain_usd_per_hour=float(gain.mean()),
        gain_ci95=percentiles95(gain),
        contexts=contexts,
    )


def _logging_profit(model: LearnedOutcomes, which: np.ndarray) -> np.ndarray | None:
    """What each member expects [M] of the actions of those logged steps."""
    if len(which) == 0:
        return None
    some = which[np.linspace(0, len(which) - 1, min(len(which), MOST_STEPS)).astype(int)]
    return model.profit_of_members(model.steps.rows[some], model.steps.actions[some]).mean(1)


def _fitted(head: Head) -> Fitted:
    return Fitted(head.prior.shape, head.prior.is_product, head.dispersion)
