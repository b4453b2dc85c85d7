"""Elasticities: profit to price and damage, the spread to the human wage, the price of errors to their target.

The fixed policy does in every world what it did in validation; the oracle takes the best actions of that world, in the
same contexts. Everything is expected, given context and action; the intervals are those of the validation episodes.

A policy that is fixed cannot meet a stricter error target. What the target costs it is measured with one knob: the
least care, added to all of its actions, that meets it. The oracle moves every action as it likes.

On request the policy is also retrained at every point. Its price of errors is found the other way round: retrained
where a unit of error rate costs λ, it reaches some error rate, and under that as a target λ is what errors cost it.
All are then judged on what training held out, where every one of them can be.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline import econ
from pipeline.config import ElasticityConfig
from pipeline.evaluate import interval95, oracle
from pipeline.experiments.output import (
    COLOURS,
    in_style,
    new_figure,
    output_folder,
    save,
    scenario_of,
    validation_steps,
)
from pipeline.experiments.retrain import Retrainer
from pipeline.rl.envs import expected_work
from pipeline.synthetic import dynamics

logger = logging.getLogger(__name__)

LOCAL = 0.01  # an elasticity is the slope in logarithms over ± 1% of today's value
KNOB = np.linspace(0, 1, 201)  # care added to the policy's actions
SPEEDS = np.linspace(0, 1, 101)
CARES = 1 - np.linspace(0, 1, 201) ** 2  # dense near full care, where the last errors go
BOOTSTRAPS = 1000
LAMBDAS = (0.5, 64.0)  # human wages a unit of error rate, at which the policy is retrained
TICKS = (0.5, 0.7, 1.0, 1.4, 2.0)
CURVES = {  # title, x label
    "price": ("Profit, $ an hour", "price, times today's"),
    "damage": ("Profit, $ an hour", "damage of an error, times today's"),
    "human_wage": ("Spread, $ an hour", "human wage, times today's"),
    "error_target": ("Shadow price of errors, λ", "error target"),
}

Progress = Callable[[int, int], None]


class Steps(NamedTuple):
    """Validation steps [n]; `episode` counts from 0 without a gap."""

    episode: np.ndarray
    context: np.ndarray
    speed: np.ndarray
    care: np.ndarray


def run(cfg: ElasticityConfig, *, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Write the four curves and their figure; returns elasticities and shadow prices at today's values."""
    started = time.monotonic()
    scenario = scenario_of(cfg.run)
    folder = output_folder(cfg.out, cfg.run)
    multipliers = np.geomspace(1 / cfg.range, cfg.range, cfg.points)
    retrainer = Retrainer(cfg.run) if cfg.retrain else None
    if retrainer:
        steps, judged_on = numbered(retrainer.judge(scenario)), retrainer.held_out
        retrained = retrain_everywhere(retrainer, scenario, multipliers, cfg, progress)
    else:
        steps, judged_on = numbered(validation_steps(cfg.run, scenario)), "the stored validation"
        retrained = {}
    retrained_at = time.monotonic()
    rng = np.random.default_rng(cfg.seed)

    rows, elasticities, over_range = [], {}, {}
    for curve in ("price", "damage", "human_wage"):
        policies = {
            m: retrained.get(("error_target", 0.0) if curve == "human_wage" else (curve, m)) for m in multipliers
        }
        points = [outcomes(scenario, steps, curve, m, policies[m]) for m in multipliers]
        rows += [
            {"curve": curve, "x": m, "who": who} | _mean(values)
            for m, point in zip(multipliers, points, strict=True)
            for who, values in point.items()
        ]
        below, above = (outcomes(scenario, steps, curve, m) for m in (1 - LOCAL, 1 + LOCAL))
        elasticities[curve] = {who: elasticity(below[who], above[who], rng) for who in below}
        over_range[curve] = {
            who: range_elasticity(multipliers, np.stack([point[who] for point in points]), rng) for who in points[0]
        }
    least = float(scenario.table["p_min"][steps.context].mean())  # the error rate of all possible care
    for target in np.geomspace(1.05 * least, econ.ERROR_TARGET_START, cfg.points):
        for who, price in shadow_price(scenario, steps, target, rng).items():
            rows.append({"curve": "error_target", "x": target, "who": who} | price)
    for (curve, price), policies in retrained.items():
        if curve == "error_target":
            rows.append({"curve": curve, "who": "retrained", "value": price} | reached(scenario, policies))
    result = {
        "task": scenario.task,
        "scenario": scenario.name,
        "episodes": int(steps.episode.max()) + 1,
        "judged_on": judged_on,
        "elasticities": elasticities,
        "elasticities_over_range": over_range,
        "error_target": econ.ERROR_TARGET_END,
        "shadow_price": shadow_price(scenario, steps, econ.ERROR_TARGET_END, rng),
        "retrained": {
            "updates": cfg.retrain,
            "seeds": cfg.retrain_seeds,
            "policies": sum(map(len, retrained.values())),
            "wall_s": retrained_at - started,
        }
        if retrainer
        else None,
        "wall_s": time.monotonic() - started,
    }
    table = pd.DataFrame(rows)
    save(folder, "elasticity", table, _draw(table), result)
    return result


def numbered(steps: pd.DataFrame) -> Steps:
    """Validation steps with their episodes counted from 0 without a gap."""
    _, episode = np.unique(steps["episode"], return_inverse=True)
    return Steps(episode, *(steps[name].to_numpy() for name in ("context", "speed", "care")))


def retrain_everywhere(
    retrainer: Retrainer,
    scenario: dynamics.Scenario,
    multipliers: np.ndarray,
    cfg: ElasticityConfig,
    progress: Progress,
) -> dict[tuple[str, float], list[Steps]]:
    """What the policy does when it is retrained at every (curve, x), for each seed; x of the error target is λ.

    With errors at no price the human wage only scales the reward, which training normalises: one policy, retrained in
    today's world, serves all wages.
    """
    lambdas = [0.0, *np.geomspace(*LAMBDAS, cfg.points - 1)]
    worlds = {(curve, m): (changed(scenario, curve, m), 0.0) for curve in ("price", "damage") for m in multipliers}
    worlds |= {("error_target", price): (scenario, price) for price in lambdas}
    logger.info("retraining %d policies by %d updates each", len(worlds) * cfg.retrain_seeds, cfg.retrain)
    retrained: dict[tuple[str, float], list[Steps]] = {}
    for number, (point, (world, price)) in enumerate(worlds.items()):
        retrained[point] = []
        for seed in range(cfg.seed, cfg.seed + cfg.retrain_seeds):
            agent = retrainer.retrain(world, updates=cfg.retrain, lambda_dual=price, seed=seed)
            retrained[point].append(numbered(retrainer.judge(world, agent)))
        progress(number + 1, len(worlds))
    return retrained


def changed(scenario: dynamics.Scenario, curve: str, multiplier: float) -> dynamics.Scenario:
    """The scenario with every price or damage, or the human wage, times `multiplier`."""
    if curve == "human_wage":
        return replace(scenario, human_wage_usd=scenario.human_wage_usd * multiplier)
    field = f"{curve}_usd"
    contexts = tuple(replace(c, **{field: getattr(c, field) * multiplier}) for c in scenario.contexts)
    return replace(scenario, contexts=contexts)


def outcomes(
    scenario: dynamics.Scenario, steps: Steps, curve: str, multiplier: float, retrained: Sequence[Steps] | None = None
) -> dict[str, np.ndarray]:
    """The curve's quantity in $/h in the changed scenario, a mean for each episode [E], for policy and oracle.

    For the policy retrained there too, where it is given: the mean over its seeds.
    """
    scenario = changed(scenario, curve, multiplier)
    best = oracle(scenario).actions[steps.context]

    def earned(steps: Steps) -> np.ndarray:
        _, _, profit = expected_work(scenario, steps.context, steps.speed, steps.care)
        if curve == "human_wage":
            profit = profit + scenario.energy_usd_per_hour - scenario.human_wage_usd
        return episode_means(steps.episode, profit[:, None])[:, 0]

    values = {"policy": earned(steps), "oracle": earned(steps._replace(speed=best[:, 0], care=best[:, 1]))}
    if retrained:
        values["retrained"] = np.mean([earned(of_seed) for of_seed in retrained], axis=0)
    return values


def reached(scenario: dynamics.Scenario, policies: Sequence[Steps]) -> dict[str, float | None]:
    """The error rate of retrained policies, mean over steps as in the reward, and seeds, as `x` with its interval."""
    by_seed = []
    for steps in policies:
        _, err_rate, _ = expected_work(scenario, steps.context, steps.speed, steps.care)
        by_seed.append(episode_means(steps.episode, err_rate[:, None])[:, 0])
    mean = _mean(np.mean(by_seed, axis=0))
    return {"x": mean["value"], "x_low": mean["low"], "x_high": mean["high"]}


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


def range_elasticity(multipliers: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> dict[str, float | None]:
    """Least-squares slope in logarithms over a whole curve, values [P, E] at P points, with its bootstrap interval.

    Where policies are retrained their luck drowns a change of 1%, and not one over the whole range. None where a mean
    is not positive.
    """
    means = values.mean(1)
    if means.min() <= 0:
        return {"value": None, "low": None, "high": None}
    x = np.log(multipliers) - np.log(multipliers).mean()
    resampled = values @ resamples(values.shape[1], rng).T  # [P, B]
    known = (resampled > 0).all(0)
    slopes = x @ np.log(resampled[:, known]) / (x @ x)
    return {"value": float(x @ np.log(means) / (x @ x))} | _percentiles(slopes, values.shape[1])


def shadow_price(
    scenario: dynamics.Scenario, steps: Steps, err_target: float, rng: np.random.Generator
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


def oracle_price(scenario: dynamics.Scenario, context: np.ndarray, err_target: float) -> float:
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
        for who, style in (("oracle", "--"), ("policy", "-"), ("retrained", ":")):
            rows = table[(table["curve"] == curve) & (table["who"] == who)].sort_values("x")
            if rows.empty:
                continue
            x, y, low, high = (rows[name].to_numpy(float) for name in ("x", "value", "low", "high"))
            ax.plot(x, y, style, marker="o", ms=3, c=COLOURS[who], label=who)
            ax.fill_between(x, low, high, color=COLOURS[who], alpha=0.15, lw=0)
            if curve == "error_target" and who == "retrained":
                ax.hlines(y, rows["x_low"].to_numpy(float), rows["x_high"].to_numpy(float), color=COLOURS[who], lw=1)
        ax.set(title=title, xlabel=x_label, xscale="linear" if curve == "error_target" else "log")
        if curve != "error_target":
            ax.set_xticks([*TICKS], labels=[f"{tick:g}" for tick in TICKS])
            ax.minorticks_off()
            ax.axhline(0, c=COLOURS["soft"], lw=0.8)
    axes[-1].set_yscale("symlog", linthresh=0.1)
    axes[0].legend()
    return figure
