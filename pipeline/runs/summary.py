"""The figures of an evaluation and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from pipeline import econ
from pipeline.files import atomic_path, write_json
from pipeline.outcomes import OutcomeModel, blind, expected_worth, oracle
from pipeline.rl.rollouts import actions_of, expected_profit
from pipeline.run_directory import RunDirectory
from pipeline.runs.judgement import JUDGES
from pipeline.runs.metadata import PolicyMetadata
from pipeline.stats import interval95, linearised, ratio_interval95
from pipeline.text_files import read_text

PLAYED_IN_A_CHAIN = ("simulator", "closed loop from pixels")  # validations in which contexts follow at random
ContextMix = Literal["stationary", "as met"]
CUSTOMER_EPISODES = 100  # last episodes of training, over which the customer's share is averaged


def summarise(
    model: OutcomeModel, steps: pd.DataFrame, *, s_cust: float, context_mix: ContextMix = "as met"
) -> dict[str, Any]:
    """The figures of evaluation steps; oracle and blind are computed for the same rows.

    s_cust: the customer's share of the spread, in [0, 1]. context_mix: the weights of contexts. "stationary" weighs
    them equally, as the simulator does in the long run; with few steps their observed frequencies differ by chance.
    Contexts that were not met have no weight and are named. A ratio is None if its denominator is not positive.
    """
    task, rows = model.task, steps["row"].to_numpy()
    actions = actions_of(steps, task)
    found = expected_worth(model, rows, actions)
    best, constant = oracle(model, rows), blind(model, rows)
    context, episode = model.context[rows], steps["episode"].to_numpy()
    strata = context if context_mix == "stationary" else np.zeros_like(context)
    weights = _equal_weights(strata)
    profits, oracle_profits = (
        linearised(values, weights, strata, episode) for values in (found.profit, best.profit)
    )  # per episode
    profit, oracle_profit, blind_profit, mp = (
        float(weights @ values) for values in (found.profit, best.profit, constant.profit, found.mp)
    )
    attempts = weights * found.attempts
    implied_wage = profit + task.total_costs_usd_per_hour
    split = econ.allocate_spread(implied_wage, task.human_wage_usd, 1.0, delta_mpl_total=1.0, delta_mpl_cust=s_cust)
    contexts = {}
    for k in np.unique(context):
        here = context == k
        contexts[task.context_names[k]] = {
            "share": float(weights[here].sum()),
            "share_of_steps": float(here.mean()),
            "actions": dict(zip(task.action_names, actions[here].mean(0).tolist(), strict=True)),
            "oracle_actions": dict(zip(task.action_names, best.actions[here].mean(0).tolist(), strict=True)),
            "profit": float(found.profit[here].mean()),
            "oracle_profit": float(best.profit[here].mean()),
            "blind_profit": float(constant.profit[here].mean()),
            "err": float(found.err_rate[here].mean()),
        }
    is_ratio = oracle_profit > 0
    return {
        "task": task.name,
        "scenario": task.scenario,
        "task_definition": task.model_dump(mode="json"),
        "actions": {name: [action.low, action.high] for name, action in task.actions.items()},
        "episodes": len(profits),
        "profit_mean": profit,
        "profit_ci95": interval95(profits),
        "mp_mean": mp,
        "err_mean": float(econ.error_rate((attempts * found.err_rate).sum(), attempts.sum())),
        "wage_parity": econ.wage_parity(implied_wage, task.human_wage_usd),
        "oracle_profit": oracle_profit,
        "blind_profit": blind_profit,
        "oracle_ratio": profit / oracle_profit if is_ratio else None,
        "oracle_ratio_ci95": ratio_interval95(profits, oracle_profits) if is_ratio else None,
        "blind_ratio": profit / blind_profit if blind_profit > 0 else None,
        "costs_usd_per_hour": dict(task.costs_usd_per_hour),
        "spread": split.spread,
        "rebate": split.rebate,
        "captured": split.captured_spread,
        "human_wage": task.human_wage_usd,
        "contexts": contexts,
        "context_mix": context_mix,
        "contexts_not_met": [name for name in task.context_names if name not in contexts],
    }


def _equal_weights(strata: np.ndarray) -> np.ndarray:
    """Weights [n] that sum to 1, equal for all strata and, within a stratum, for its samples."""
    _, index, counts = np.unique(strata, return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(counts) * counts[index]))


def write_summary(
    run: RunDirectory,
    model: OutcomeModel,
    steps: pd.DataFrame,
    *,
    metadata: PolicyMetadata,
    validation: str,
    evaluation: dict[str, Any],
    stage: str,
    wall_s: float,
    off_policy: dict[str, Any] | None = None,
    out: RunDirectory | None = None,
) -> dict[str, Any]:
    """Write `validation.csv` and `summary.json` to the run, or to another folder `out`; returns the summary.

    evaluation: settings of this validation. off_policy: the result of `on_logs`. The summary's wall_s is the time of
    all the run's stages so far, starting with training; a repeated stage counts once.
    """
    out = out or run
    names = np.array(model.task.context_names)
    table = steps.assign(context=names[model.context[steps["row"]]], profit_usd_per_hour=expected_profit(model, steps))
    with atomic_path(out.validation) as temporary:
        table.to_csv(temporary, index=False)
    stages = ({} if stage == "train" else _stages_so_far(run.summary)) | {stage: wall_s}
    mix: ContextMix = "stationary" if validation in PLAYED_IN_A_CHAIN else "as met"
    summary = {
        "source": metadata.source,
        "seeds": [metadata.seed],
        **summarise(model, steps, s_cust=_customer_share(run), context_mix=mix),
        "estimator": run.read_estimator(),
        "validation": validation,
        "judge": JUDGES[validation],
        "deployed": metadata.provenance.get("deployed", "learned policy"),
        "off_policy": off_policy,
        "outcome_model": model.description,
        "trained_on_outcomes": metadata.outcome_model,
        "labelled": None if metadata.source == "sim" else metadata.is_labelled,
        "evaluation": evaluation,
        "wall_s": sum(stages.values()),
        "stages_wall_s": stages,
        "provenance": metadata.provenance,
    }
    write_json(out.summary, summary)
    return summary


def _stages_so_far(path: Path) -> dict[str, float]:
    """Seconds of the stages in an earlier summary; none if it cannot be read, because it is replaced anyway."""
    try:
        stages = json.loads(read_text(path))["stages_wall_s"]
        return {str(name): float(seconds) for name, seconds in stages.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _customer_share(run: RunDirectory) -> float:
    """The customer's mean share of the spread at the end of training; 0 if it was not recorded."""
    if not run.metrics.is_file():
        return 0.0
    shares = pd.read_csv(run.metrics, usecols=["s_cust"])["s_cust"].tail(CUSTOMER_EPISODES)
    return float(shares.mean()) if len(shares) else 0.0
