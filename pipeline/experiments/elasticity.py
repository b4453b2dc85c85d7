"""Elasticities: profit to price and damage, the spread to the human wage, the price of errors to their target.

The fixed policy does in every world what it did in validation; the oracle takes the best actions of that world, in the
same contexts. Everything is expected, given context and action; the intervals are those of the validation episodes.

A policy that is fixed cannot meet a stricter error target. What the target costs it is measured with one knob: the
least care, added to all of its actions, that meets it. The oracle moves every action as it likes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline import econ, sim
from pipeline.config import ElasticityConfig
from pipeline.envs import expected_work
from pipeline.evaluate import interval95, oracle
from pipeline.experiments.files import COLOURS, in_style, new_figure, output_folder, save, scenario_of, validation_steps

LOCAL = 0.01  # an elasticity is the slope in logarithms over ± 1% of today's value
KNOB = np.linspace(0, 1, 201)  # care added to the policy's actions
SPEEDS = np.linspace(0, 1, 101)
CARES = 1 - np.linspace(0, 1, 201) ** 2  # dense near full care, where the last errors go
BOOTSTRAPS = 1000
TICKS = (0.5, 0.7, 1.0, 1.4, 2.0)
CURVES = {  # title, x label
    "price": ("Profit, $ an hour", "price, times today's"),
    "damage": ("Profit, $ an hour", "damage of an error, times today's"),
    "human_wage": ("Spread, $ an hour", "human wage, times today's"),
    "error_target": ("Shadow price of errors, λ", "error target"),
}


class Steps(NamedTuple):
    """Validation steps [n]; `episode` counts from 0 without a gap."""

    episode: np.ndarray
    context: np.ndarray
    speed: np.ndarray
    care: np.ndarray


def run(cfg: ElasticityConfig) -> dict[str, Any]:
    """Write the four curves and their figure; returns elasticities and shadow prices at today's values."""
    scenario = scenario_of(cfg.run)
    stored = validation_steps(cfg.run, scenario)
    _, episode = np.unique(stored["episode"], return_inverse=True)
    steps = Steps(episode, *(stored[name].to_numpy() for name in ("context", "speed", "care")))
    rng = np.random.default_rng(cfg.seed)
    rows, elasticities = [], {}
    for curve in ("price", "damage", "human_wage"):
        for multiplier in np.geomspace(1 / cfg.range, cfg.range, cfg.points):
            for who, values in outcomes(scenario, steps, curve, multiplier).items():
                rows.append({"curve": curve, "x": multiplier, "who": who} | _mean(values))
        below, above = (outcomes(scenario, steps, curve, m) for m in (1 - LOCAL, 1 + LOCAL))
        elasticities[curve] = {who: elasticity(below[who], above[who], rng) for who in below}
    least = float(scenario.table["p_min"][steps.context].mean())  # the error rate of all possible care
    targets = np.geomspace(1.05 * least, econ.ERROR_TARGET_START, cfg.points)
    for target in targets:
        for who, price in shadow_price(scenario, steps, target, rng).items():
            rows.append({"curve": "error_target", "x": target, "who": who} | price)
    result = {
        "task": scenario.task,
        "scenario": scenario.name,
        "episodes": int(episode.max()) + 1,
        "elasticities": elasticities,
        "error_target": econ.ERROR_TARGET_END,
        "shadow_price": shadow_price(scenario, steps, econ.ERROR_TARGET_END, rng),
        "not_computed": "a policy retrained per point",
    }
    table = pd.DataFrame(rows)
    save(output_folder(cfg.out, cfg.run), "elasticity", table, _draw(table), result)
    return result


def changed(scenario: sim.Scenario, curve: str, multiplier: float) -> sim.Scenario:
    """The scenario with every price or damage, or the human wage, times `multiplier`."""
    if curve == "human_wage":
        return replace(scenario, human_wage_usd=scenario.human_wage_usd * multiplier)
    field = f"{curve}_usd"
    contexts = tuple(replace(c, **{field: getattr(c, field) * multiplier}) for c in scenario.contexts)
    return replace(scenario, contexts=contexts)


def outcomes(scenario: sim.Scenario, steps: Steps, curve: str, multiplier: float) -> dict[str, np.ndarray]:
    """The curve's quantity in $/h for policy and oracle in the changed scenario, a mean for each episode [E]."""
    scenario = changed(scenario, curve, multiplier)
    best = oracle(scenario).actions[steps.context]
    values = {}
    for who, speed, care in (("policy", steps.speed, steps.care), ("oracle", best[:, 0], best[:, 1])):
        _, _, profit = expected_work(scenario, steps.context, speed, care)
        if curve == "human_wage":
            profit = profit + scenario.energy_usd_per_hour - scenario.human_wage_usd
        values[who] = episode_means(steps.episode, profit[:, None])[:, 0]
    return values


def episode_means(episode: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means over each episode's steps: [n], [n, m] → [E, m]."""
    sums = np.zeros((episode.max() + 1, values.shape[1]))
    np.add.at(sums, episode, values)
    return sums / np.bincount(episode)[:, None]


def elasticity(below: np.ndarray, above: np.ndarray, rng: np.random.Generator) -> dict[str, float | None]:
    """Slope in logarithms between the values of E episodes at today less and plus 1%, with its bootstrap interval.

    None where a value is not positive, which has no elasticity.
    """
    if min(below.mean(), above.mean()) <= 0:
        return {"value": None, "low": None, "high": None}
    span = np.log1p(LOCAL) - np.log1p(-LOCAL)
    weights = resamples(len(below), rng)
    below_means, above_means = weights @ below, weights @ above
    known = (below_means > 0) & (above_means > 0)
    slopes = np.log(above_means[known] / below_means[known]) / span
    return {"value": float(np.log(above.mean() / below.mean()) / span)} | _percentiles(slopes, len(below))


def shadow_price(
    scenario: sim.Scenario, steps: Steps, err_target: float, rng: np.random.Generator
) -> dict[str, dict[str, float | None]]:
    """λ at which the error target just holds: human wages an hour that a unit of error rate is worth. 0 where slack.

    The error rate is the mean over steps, as in the reward.
    """
    care = np.minimum(steps.care[:, None] + KNOB, 1.0)
    _, err_rate, profit = expected_work(scenario, steps.context[:, None], steps.speed[:, None], care)
    by_episode = [episode_means(steps.episode, values) for values in (profit / scenario.human_wage_usd, err_rate)]
    weights = resamples(len(by_episode[0]), rng)
    policy = knob_price(*(values.mean(0)[None] for values in by_episode), err_target)[0]
    resampled = knob_price(*(weights @ values for values in by_episode), err_target)
    return {
        "policy": {"value": _finite(policy)} | _percentiles(resampled, len(by_episode[0])),
        "oracle": {"value": oracle_price(scenario, steps.context, err_target), "low": None, "high": None},
    }


def knob_price(profit: np.ndarray, err_rate: np.ndarray, err_target: float) -> np.ndarray:
    """Profit given up a unit of error rate, [B], where added care first meets the target; NaN where none does.

    profit, err_rate: [B, 201] over the knob.
    """
    meets = err_rate <= err_target
    first = meets.argmax(1)
    rows, here, before = np.arange(len(profit)), first, np.maximum(first - 1, 0)
    gain, relief = profit[rows, before] - profit[rows, here], err_rate[rows, before] - err_rate[rows, here]
    price = np.maximum(np.divide(gain, relief, out=np.zeros(len(profit)), where=relief > 0), 0.0)
    return np.where(meets.any(1), price, np.nan)


def oracle_price(scenario: sim.Scenario, context: np.ndarray, err_target: float) -> float:
    """The least λ ≥ 0 at which the best actions keep the target over the contexts met, by bisection.

    At λ every context takes the action that maximises profit in human wages less λ · err_rate.
    """
    shares = np.bincount(context, minlength=len(scenario.contexts)) / len(context)
    speed, care = (axis.ravel() for axis in np.meshgrid(SPEEDS, CARES))
    _, err_rate, profit = expected_work(scenario, np.arange(len(shares))[:, None], speed, care)
    profit, err_rate = np.broadcast_arrays(profit / scenario.human_wage_usd, err_rate)
    profit, err_rate = (values.reshape(len(shares), len(speed)) for values in (profit, err_rate))

    def best_err_rate(price: float) -> float:
        best = (profit - price * err_rate).argmax(1)
        return float(shares @ err_rate[np.arange(len(shares)), best])

    low, high = 0.0, 1.0
    if best_err_rate(low) <= err_target:
        return low
    while best_err_rate(high) > err_target:
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if best_err_rate(middle) <= err_target else (middle, high)
    return high


def resamples(episodes: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap weights of E episodes, [B, E]; each row sums to 1."""
    return rng.multinomial(episodes, np.full(episodes, 1 / episodes), BOOTSTRAPS) / episodes


def _percentiles(samples: np.ndarray, episodes: int) -> dict[str, float | None]:
    """The middle 95%; None for a single episode, or where the quantity is not always there."""
    if episodes < 2 or not len(samples) or not np.isfinite(samples).all():
        return {"low": None, "high": None}
    low, high = np.quantile(samples, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _mean(values: np.ndarray) -> dict[str, float | None]:
    low, high = interval95(values) or (None, None)
    return {"value": float(values.mean()), "low": low, "high": high}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@in_style
def _draw(table: pd.DataFrame) -> Figure:
    figure, axes = new_figure(2, 2)
    for ax, (curve, (title, x_label)) in zip(axes, CURVES.items(), strict=True):
        for who, style in (("oracle", "--"), ("policy", "-")):
            rows = table[(table["curve"] == curve) & (table["who"] == who)]
            x, low, high = (rows[name].to_numpy(float) for name in ("x", "low", "high"))
            ax.plot(x, rows["value"].to_numpy(float), style, marker="o", ms=3, c=COLOURS[who], label=who)
            ax.fill_between(x, low, high, color=COLOURS[who], alpha=0.15, lw=0)
        ax.set(title=title, xlabel=x_label, xscale="linear" if curve == "error_target" else "log")
        if curve != "error_target":
            ax.set_xticks([*TICKS], labels=[f"{tick:g}" for tick in TICKS])
            ax.minorticks_off()
            ax.axhline(0, c=COLOURS["soft"], lw=0.8)
    axes[-1].set_yscale("symlog", linthresh=0.1)
    axes[0].legend()
    return figure
