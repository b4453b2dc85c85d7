"""The best that can be done, and the figures of what was done: all analytic, for judging only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from pipeline import econ
from pipeline.rl.envs import expected_work
from pipeline.synthetic import dynamics

BOOTSTRAPS = 10_000


class Reference(NamedTuple):
    """Actions [K, 2] a context, and their expected profit [K] in $/h."""

    actions: np.ndarray
    profit: np.ndarray


def _profit_grid(scenario: dynamics.Scenario, speed: np.ndarray, care: np.ndarray) -> np.ndarray:
    """Expected profit [K, S, C] in $/h."""
    context = np.arange(len(scenario.contexts))[:, None, None]
    return expected_work(scenario, context, speed[None, :, None], care[None, None, :])[2]


def _best_action(profit_of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The action [2] that maximises a profit surface: a grid, zoomed three times around its best point."""
    centre, half_width = np.array([0.5, 0.5]), 0.5
    for _ in range(4):
        speed, care = (np.unique(np.clip(np.linspace(c - half_width, c + half_width, 101), 0, 1)) for c in centre)
        best = np.unravel_index(np.argmax(profit_of(speed, care)), (len(speed), len(care)))
        centre, half_width = np.array([speed[best[0]], care[best[1]]]), half_width / 25
    return centre


def oracle(scenario: dynamics.Scenario) -> Reference:
    """The best action in each context, for one who sees it."""
    actions = np.stack(
        [_best_action(lambda s, c, k=k: _profit_grid(scenario, s, c)[k]) for k in range(len(scenario.contexts))]
    )
    return Reference(actions, _profits(scenario, actions))


def blind(scenario: dynamics.Scenario) -> Reference:
    """The best constant action over uniform contexts, for one who sees nothing."""
    action = _best_action(lambda s, c: _profit_grid(scenario, s, c).mean(0))
    actions = np.tile(action, (len(scenario.contexts), 1))
    return Reference(actions, _profits(scenario, actions))


def _profits(scenario: dynamics.Scenario, actions: np.ndarray) -> np.ndarray:
    return expected_work(scenario, np.arange(len(scenario.contexts)), actions[:, 0], actions[:, 1])[2]


def interval95(samples: np.ndarray) -> list[float] | None:
    """95% Student interval of the mean of independent samples [n]; None for a single one."""
    if len(samples) < 2:
        return None
    half = float(scipy.stats.t.ppf(0.975, len(samples) - 1) * np.std(samples, ddof=1) / np.sqrt(len(samples)))
    return [float(np.mean(samples)) - half, float(np.mean(samples)) + half]


def interquartile_mean(samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of samples (Agarwal et al. 2021, rliable)."""
    return scipy.stats.trim_mean(samples, 0.25, axis=axis)


def bootstrap95(samples: np.ndarray, statistic: Callable[..., np.ndarray] = np.mean) -> list[float] | None:
    """95% percentile bootstrap of a statistic of independent samples [n]; None for a single one.

    With a handful of samples it is too narrow: the mean of five normal ones lies in it in 84 of 100 cases.
    """
    if len(samples) < 2:
        return None
    drawn = np.random.default_rng(0).integers(len(samples), size=(BOOTSTRAPS, len(samples)))
    return [float(bound) for bound in np.quantile(statistic(samples[drawn], axis=-1), [0.025, 0.975])]


def ratio_interval95(numerator: np.ndarray, denominator: np.ndarray) -> list[float] | None:
    """95% interval of the ratio of two means over the same episodes [n], by linearisation (the delta method)."""
    ratio = numerator.mean() / denominator.mean()
    return interval95(ratio + (numerator - ratio * denominator) / denominator.mean())


def summarise(scenario: dynamics.Scenario, steps: pd.DataFrame, *, s_cust: float) -> dict[str, Any]:
    """The figures of validation steps. Oracle and blind act in the very contexts that the policy met.

    s_cust: the customer's share of the spread, in [0, 1].
    """
    context = steps["context"].to_numpy()
    attempts, err_rate, profit = expected_work(scenario, context, steps["speed"].to_numpy(), steps["care"].to_numpy())
    best, constant = oracle(scenario), blind(scenario)
    by_episode = (
        pd.DataFrame({"profit": profit, "oracle": best.profit[context]}).groupby(steps["episode"].to_numpy()).mean()
    )
    profit_mean, oracle_profit = float(profit.mean()), float(best.profit[context].mean())
    blind_profit = float(constant.profit[context].mean())
    implied_wage = profit_mean + scenario.energy_usd_per_hour
    split = econ.allocate_spread(implied_wage, scenario.human_wage_usd, 1.0, delta_mpl_total=1.0, delta_mpl_cust=s_cust)
    contexts = {}
    for k in np.unique(context):
        here = context == k
        contexts[scenario.context_names[k]] = {
            "share": float(here.mean()),
            "speed": float(steps["speed"][here].mean()),
            "care": float(steps["care"][here].mean()),
            "oracle_speed": float(best.actions[k, 0]),
            "oracle_care": float(best.actions[k, 1]),
            "profit": float(profit[here].mean()),
            "oracle_profit": float(best.profit[k]),
            "blind_profit": float(constant.profit[k]),
            "err": float(err_rate[here].mean()),
        }
    return {
        "task": scenario.task,
        "scenario": scenario.name,
        "episodes": len(by_episode),
        "profit_mean": profit_mean,
        "profit_ci95": interval95(by_episode["profit"].to_numpy()),
        "mp_mean": float((attempts * (1 - err_rate)).mean()),
        "err_mean": float((attempts * err_rate).sum() / attempts.sum()),
        "wage_parity": econ.wage_parity(implied_wage, scenario.human_wage_usd),
        "oracle_profit": oracle_profit,
        "blind_profit": blind_profit,
        "oracle_ratio": profit_mean / oracle_profit,
        "oracle_ratio_ci95": ratio_interval95(by_episode["profit"].to_numpy(), by_episode["oracle"].to_numpy()),
        "blind_ratio": profit_mean / blind_profit,
        "spread": split.spread,
        "rebate": split.rebate,
        "captured": split.captured_spread,
        "human_wage": scenario.human_wage_usd,
        "contexts": contexts,
    }
