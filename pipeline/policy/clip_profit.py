"""The expected profit of a policy's actions on the clips of an embeddings file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.dataset import Embeddings
from pipeline.outcomes import LearnedOutcomes, SimulatedOutcomes, expected_worth
from pipeline.policy.training_clips import Shares
from pipeline.stats import weighted_percentiles95
from pipeline.tasks import Task

logger = logging.getLogger(__name__)

UNLABELLED, FOREIGN = -1, -2  # no label; a label that the outcome model does not know
BLOCK_ROWS = 4096

SharesOf = Callable[[np.ndarray], Shares]  # groups [N] of the training clips, −1 if unknown → shares for others


class ClipProfit(NamedTuple):
    """Expected profit in $/h on each clip, [N], with its 95% interval; NaN if unknown."""

    expected: np.ndarray
    low: np.ndarray
    high: np.ndarray


def unknown_profit(num_clips: int) -> ClipProfit:
    return ClipProfit(*np.full((3, num_clips), np.nan))


def simulated_profit(task: Task, data: Embeddings, actions: np.ndarray) -> ClipProfit:
    """By the task's simulator, given the labelled context of each clip; without an interval."""
    context = labelled_contexts(data, task)
    if missing := int((context < 0).sum()):
        logger.info(
            "%d of %d clips have no label with a context of the simulator; their profit is left empty",
            missing,
            data.num_clips,
        )
    known = np.flatnonzero(context >= 0)
    price, damage = _own_prices(data)
    model = SimulatedOutcomes(task, np.maximum(context, 0), price_usd=price, damage_usd=damage, step_s=_lengths(data))
    profit = unknown_profit(data.num_clips)
    profit.expected[known] = expected_worth(model, known, actions[known]).profit
    return profit


def learned_profit(
    model: LearnedOutcomes, training: Embeddings, data: Embeddings, actions: np.ndarray, shares_of: SharesOf
) -> ClipProfit:
    """By the outcome model learned from the logs of the training clips; `data` may be the same data set.

    A clip without a label may be in any group of the training clips: its profit is the mean over groups, weighted by
    their shares among the nearest training clips, and its interval is that of the mixture.
    """
    share = _group_shares(model, training, data, shares_of)
    profit = unknown_profit(data.num_clips)
    for rows in np.array_split(np.arange(data.num_clips), -(-data.num_clips // BLOCK_ROWS)):
        members = _profit_of_members(model, data, rows, actions[rows], share[rows])
        weight = np.broadcast_to(share[rows].T / model.num_members, members.shape)
        profit.expected[rows] = (weight * members).sum((0, 1))
        flat, weight = (values.reshape(-1, len(rows)).T for values in (members, weight))
        profit.low[rows], profit.high[rows] = weighted_percentiles95(flat, weight).T
    for bounds in profit:
        bounds[share.sum(1) == 0] = np.nan
    return profit


def _profit_of_members(
    model: LearnedOutcomes, data: Embeddings, rows: np.ndarray, actions: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Profit [M, G, n] of actions [n, A] on clips `rows` [n] if they were in each group; 0 if the share [n, G] is 0."""
    clip, group = np.nonzero(share)
    members = np.zeros((model.num_members, share.shape[1], len(rows)))
    if len(clip) == 0:
        return members
    several = len(model.task.contexts) > 1  # contexts are the groups
    of_pair = rows[clip]
    price, damage = (None if own is None else own[of_pair] for own in _own_prices(data))
    pairs = model.on_clips(
        group if several else np.zeros_like(group), group, price_usd=price, damage_usd=damage,
        step_s=_lengths(data)[of_pair] if model.task.step_s is None else model.task.step_s,
    )  # fmt: skip
    members[:, group, clip] = pairs.profit_of_members(np.arange(len(clip)), actions[clip])
    return members


def _group_shares(model: LearnedOutcomes, training: Embeddings, data: Embeddings, shares_of: SharesOf) -> np.ndarray:
    """The probability [N, G] of each group for each clip: 1 for a known group, all 0 if nothing is known."""
    task = model.task
    if len(task.contexts) > 1:  # contexts are the groups
        of_training, group = (_with_logs(labelled_contexts(one, task), model) for one in (training, data))
        logged = model.steps.rows
        if (of_training[logged] == UNLABELLED).all():  # then all were treated as one context
            group = np.where(group == UNLABELLED, model.context[logged[0]], group)
    else:
        of_training = model.group
        group = of_training if data is training else np.minimum(labelled_contexts(data, task), UNLABELLED)
    if foreign := int((group == FOREIGN).sum()):
        logger.info(
            "%d of %d clips have a context that no logged step of the training clips has; their profit is left empty",
            foreign,
            data.num_clips,
        )
    share = np.zeros((data.num_clips, int(model.group.max()) + 1))
    known = np.flatnonzero(group >= 0)
    share[known, group[known]] = 1
    guessed = group == UNLABELLED
    if guessed.any():
        found = shares_of(np.maximum(of_training, UNLABELLED))
        share[guessed, : found.share.shape[1]] = found.share[guessed]
        if len(task.contexts) > 1:
            logger.info(
                "%d of %d clips have no label: their profit and interval are for a mixture of contexts, weighted as in "
                "the nearest training clips; on held-out videos the most likely context is right for %.0f%% of the "
                "clips",
                guessed.sum(),
                data.num_clips,
                100 * found.accuracy,
            )
    return share


def labelled_contexts(data: Embeddings, task: Task) -> np.ndarray:
    """The context of each clip as its index in the task, [N]; UNLABELLED without a label, FOREIGN for another context.

    If the data set's task has a single context, it is known without labels.
    """
    if len(task.contexts) == 1 and data.task is not None and data.task.context_names == task.context_names:
        return np.zeros(data.num_clips, np.int64)
    names = [""] * data.num_clips if data.logs is None else data.logs.context.tolist()
    number = {name: index for index, name in enumerate(task.context_names)} | {"": UNLABELLED}
    return np.array([number.get(name, FOREIGN) for name in names], np.int64)


def _with_logs(context: np.ndarray, model: LearnedOutcomes) -> np.ndarray:
    """The contexts [N], with FOREIGN for those that no logged step has."""
    is_logged = np.isin(context, model.context[model.steps.rows])
    return np.where((context >= 0) & ~is_logged, FOREIGN, context)


def _own_prices(data: Embeddings) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The clips' own prices and damages."""
    return (None, None) if data.logs is None else (data.logs.price_usd, data.logs.damage_usd)


def _lengths(data: Embeddings) -> np.ndarray:
    return data.clips.end_s - data.clips.start_s
