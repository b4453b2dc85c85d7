"""Off-policy evaluation on held-out logs, of a policy and of others for comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pipeline.dataset import Embeddings
from pipeline.outcomes import LearnedOutcomes, LoggedSteps, blind, logged_steps, step_worth
from pipeline.outcomes.caution import greedy
from pipeline.outcomes.learned import NO_CAUTION
from pipeline.outcomes.model import Outcomes
from pipeline.outcomes.off_policy import Change, Estimate, OffPolicyEstimate, Targets, estimate_off_policy
from pipeline.rl.rollouts import actions_of

LARGEST_ADVANTAGE = 3.0  # in standard deviations; larger advantages are clipped


def on_logs(model: LearnedOutcomes, data: Embeddings, steps: pd.DataFrame) -> dict[str, Any] | None:
    """Off-policy evaluation on those clips of a policy's steps that have logs; None if none has.

    model: learned from the logs of other clips. steps: the policy's, with columns `row` and the actions.
    """
    steps = steps.drop_duplicates("row").set_index("row", drop=False)
    logged = logged_steps(data, model.task, model.context, np.sort(steps["row"].to_numpy()))
    if logged.num_steps == 0:
        return None
    actions = actions_of(steps.loc[logged.rows], model.task)
    policies = {"deployed": actions} | _beside(model, logged.rows)
    others = None if np.isin(logged.video, model.steps.video).any() else model.steps
    outcomes = Outcomes(logged.attempts, logged.errors)
    value = step_worth(model, logged.rows, outcomes).profit
    targets = {name: Targets(chosen, _profit(model, logged.rows, chosen)) for name, chosen in policies.items()}
    found = {
        name: estimate_off_policy(
            model.task,
            logged,
            value,
            _profit(model, logged.rows, logged.actions),
            target,
            compared=targets["best constant"] if name == "deployed" else None,
            hours=model.terms(logged.rows).step_s,
            others=others,
        )
        for name, target in targets.items()
    }
    return _described(found["deployed"], logged) | {
        "policies": {name: _change(one.change) for name, one in found.items() if name != "deployed"},
        "same_videos": others is None,
    }


def _profit(model: LearnedOutcomes, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return model.profit_of_members(rows, actions).mean(0)


def _beside(model: LearnedOutcomes, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Actions [n, A] on rows [n] of other policies, made from the logs that the model has learned from."""
    cautious, bold = greedy(model, rows, (model.caution, NO_CAUTION))
    return {
        "clone of the logging policy": clone_of_logs(model, rows),
        "best constant": blind(model, rows).actions,
        "advantage-weighted": advantage_weighted(model, rows),
        "greedy": cautious,
        "greedy without caution": bold,
    }


def clone_of_logs(model: LearnedOutcomes, rows: np.ndarray) -> np.ndarray:
    """The mean logged action in the group of each row, [n, A]."""
    return _weighted_means(model, rows, np.ones(model.steps.num_steps))


def advantage_weighted(model: LearnedOutcomes, rows: np.ndarray) -> np.ndarray:
    """The mean logged action [n, A] in the group of each row, weighted by e^advantage (Peng et al. 2019).

    The advantage is the step's profit minus the group's mean, in standard deviations of the group.
    """
    logged = model.steps
    brought = step_worth(model, logged.rows, Outcomes(logged.attempts, logged.errors)).profit
    group, advantage = model.group[logged.rows], np.zeros(logged.num_steps)
    for one in np.unique(group):
        here = group == one
        deviation = brought[here].std()
        advantage[here] = (brought[here] - brought[here].mean()) / (deviation if deviation > 0 else 1.0)
    return _weighted_means(model, rows, np.exp(np.clip(advantage, -LARGEST_ADVANTAGE, LARGEST_ADVANTAGE)))


def _weighted_means(model: LearnedOutcomes, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    logged = model.steps
    group, actions = model.group[logged.rows], np.empty((len(rows), model.task.num_actions))
    for one in np.unique(model.group[rows]):
        here = group == one
        here = here if here.any() else np.full(len(group), True)
        actions[model.group[rows] == one] = np.average(logged.actions[here], axis=0, weights=weights[here])
    return np.clip(actions, model.task.low, model.task.high)


def _described(found: OffPolicyEstimate, logged: LoggedSteps) -> dict[str, Any]:
    return {
        **_change(found.change),
        "against_blind": None if found.change_over_compared is None else _change(found.change_over_compared),
        "logging_policy": _interval(found.logged),
        "direct": _interval(found.direct),
        "weighted": _interval(found.weighted),
        "doubly_robust": _interval(found.doubly_robust),
        "change_at_half_bandwidth": _interval(found.half_bandwidth),
        "change_at_double_bandwidth": _interval(found.double_bandwidth),
        "effective_steps": found.effective_steps,
        "largest_weight": found.largest_weight,
        "overlap": found.overlap,
        "propensities": found.propensities,
        "num_steps": logged.num_steps,
        "num_videos": logged.num_videos,
    }


def _change(change: Change) -> dict[str, Any]:
    """A change as stored in the summary; without dollars if they are not identified."""
    is_known = change.verdict != "not identified"
    return {
        "verdict": change.verdict,
        "change_usd_per_hour": _interval(change.usd_per_hour) if is_known else None,
        "reason": change.reason,
        "advice": change.advice,
    }


def _interval(found: Estimate) -> list[float | None]:
    """The value and the bounds of its 95% interval, in $/h; None for an infinite bound (a single video)."""
    return [x if np.isfinite(x) else None for x in (found.value, found.low, found.high)]
