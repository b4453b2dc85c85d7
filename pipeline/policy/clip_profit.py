"""What a policy's actions are expected to bring on the clips of an embeddings file, where that can be known."""

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

UNLABELLED, FOREIGN = -1, -2  # no label; one that nothing is known of
BLOCK_ROWS = 4096

SharesOf = Callable[[np.ndarray], Shares]  # groups [N] of the training file's clips, −1 unknown → shares of the others


class ClipProfit(NamedTuple):
    """Expected profit in $/h on each clip, [N], with its 95% interval; NaN where it is not known."""

    expected: np.ndarray
    low: np.ndarray
    high: np.ndarray


def unknown_profit(num_clips: int) -> ClipProfit:
    return ClipProfit(*np.full((3, num_clips), np.nan))


def simulated_profit(task: Task, data: Embeddings, actions: np.ndarray) -> ClipProfit:
    """By the task's simulator, which knows a clip by its labelled context alone; without an interval."""
    context = labelled_contexts(data, task)
    if missing := int((context < 0).sum()):
        logger.info(
            "%d of %d clips have no label with a context of the simulator: their profit is left empty",
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
    """By what was learned from the logs of the training clips, whose data set may be the very one that is acted on.

    A clip without a label may be of any group that training clips were: its profit is the mean over these, weighted by
    the shares of the nearest training clips, and its interval that of the mixture.
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
    """Profit [M, G, n] of actions [n, A] on clips `rows` [n], were they of each group; 0 where the share [n, G] is."""
    clip, group = np.nonzero(share)
    members = np.zeros((model.num_members, share.shape[1], len(rows)))
    if len(clip) == 0:
        return members
    several = len(model.task.contexts) > 1  # then these are the groups
    of_pair = rows[clip]
    price, damage = (None if own is None else own[of_pair] for own in _own_prices(data))
    pairs = model.on_clips(
        group if several else np.zeros_like(group), group, price_usd=price, damage_usd=damage,
        step_s=_lengths(data)[of_pair] if model.task.step_s is None else model.task.step_s,
    )  # fmt: skip
    members[:, group, clip] = pairs.profit_of_members(np.arange(len(clip)), actions[clip])
    return members


def _group_shares(model: LearnedOutcomes, training: Embeddings, data: Embeddings, shares_of: SharesOf) -> np.ndarray:
    """The probability [N, G] of each group for each clip: of one where it is known, 0 of all where nothing is."""
    task = model.task
    if len(task.contexts) > 1:  # the groups
        of_training, group = (_with_logs(labelled_contexts(one, task), model) for one in (training, data))
        logged = model.steps.rows
        if (of_training[logged] == UNLABELLED).all():  # then all were taken for one context
            group = np.where(group == UNLABELLED, model.context[logged[0]], group)
    else:
        of_training = model.group
        group = of_training if data is training else np.minimum(labelled_contexts(data, task), UNLABELLED)
    if foreign := int((group == FOREIGN).sum()):
        logger.info(
            "%d of %d clips have a context that no logged step of the training clips has: their profit is left empty",
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
                "%d of %d clips have no label: their profit is a mean over contexts, weighted by those of the nearest "
                "training clips, and the interval takes that in; on held-out videos the likeliest context is the "
                "labelled one for %.0f%% of the clips",
                guessed.sum(),
                data.num_clips,
                100 * found.accuracy,
            )
    return share


def labelled_contexts(data: Embeddings, task: Task) -> np.ndarray:
    """The context of each clip as its number in the task, [N]; UNLABELLED, or FOREIGN where it is none of these.

    In a data set whose task has a single context it is known without a label.
    """
    if len(task.contexts) == 1 and data.task is not None and data.task.context_names == task.context_names:
        return np.zeros(data.num_clips, np.int64)
    names = [""] * data.num_clips if data.logs is None else data.logs.context.tolist()
    number = {name: index for index, name in enumerate(task.context_names)} | {"": UNLABELLED}
    return np.array([number.get(name, FOREIGN) for name in names], np.int64)


def _with_logs(context: np.ndarray, model: LearnedOutcomes) -> np.ndarray:
    """The contexts [N], FOREIGN where no logged step has them."""
    is_logged = np.isin(context, model.context[model.steps.rows])
    return np.where((context >= 0) & ~is_logged, FOREIGN, context)


def _own_prices(data: Embeddings) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The clips' own prices and damages."""
    return (None, None) if data.logs is None else (data.logs.price_usd, data.logs.damage_usd)


def _lengths(data: Embeddings) -> np.ndarray:
    return data.clips.end_s - data.clips.start_s
