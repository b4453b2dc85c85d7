"""Elasticities: of profit to price and damage, of the spread to the human wage, of the price of errors to their target.

At every point the fixed policy repeats its validation actions; the oracle takes the best actions for that point, on
the same rows. All values are expectations given row and action; intervals are over validation episodes. If outcomes are
learned from logs, the oracle is the optimum according to the logs, and all intervals are over the ensemble. Prices do
not change outcomes, so no outcome model is fitted again.

On request the policy is also retrained at every point. Its price of errors is found in reverse: retrained at a price λ
per unit of error rate, it reaches some error rate, and λ is its shadow price at that rate as the target. All policies
are then judged on the data held out of training, which suits them all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.config import ElasticityConfig
from pipeline.experiments import by_members, error_price
from pipeline.experiments.output import (
    COLOURS,
    in_style,
    name_judge,
    new_figure,
    outcomes_from,
    output_folder,
    run_outcomes,
    save,
)
from pipeline.experiments.retrain import Retrainer
from pipeline.outcomes import LearnedOutcomes, OutcomeModel, expected_worth, oracle
from pipeline.rl.rollouts import actions_of
from pipeline.runs import RunDirectory
from pipeline.stats import bootstrap_weights, interval95, percentiles95

logger = logging.getLogger(__name__)

LOCAL = 0.01  # an elasticity is the log-log slope over ± 1% of today's value
BOOTSTRAPS = 1000
LAMBDAS = (0.5, 64.0)  # prices of a unit of error rate, in human wages, at which the policy is retrained
TICKS = 5  # on the axis of multipliers
CURVES = {  # title, x label
    "price": ("Profit, $ per hour", "price, relative to today's"),
    "damage": ("Profit, $ per hour", "damage per error, relative to today's"),
    "human_wage": ("Spread, $ per hour", "human wage, relative to today's"),
    "error_target": ("Shadow price of errors, λ", "error target"),
}

Progress = Callable[[int, int], None]


class Steps(NamedTuple):
    """Validation steps [n], actions [n, A]; episodes are numbered from 0 without gaps, rows index the outcome model."""

    episode: np.ndarray
    rows: np.ndarray
    actions: np.ndarray


def run(cfg: ElasticityConfig, *, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Write the four curves and their figure; return elasticities and shadow prices at today's values."""
    started = time.monotonic()
    files = RunDirectory(cfg.run)
    folder = output_folder(cfg, "elasticity", run=files)
    multipliers = np.geomspace(1 / cfg.range, cfg.range, cfg.points)
    retrained: dict[tuple[str, float], list[Steps]] = {}
    device: str | None = None
    if cfg.retrain:
        retrainer, (judged, _) = Retrainer(files), run_outcomes(files)
        model, judged_on = retrainer.model.with_task(judged.task), retrainer.held_out  # the evaluation's prices
        steps = numbered(model, retrainer.judge(model))
        device = retrainer.device
        retrained = retrain_everywhere(retrainer, model, multipliers, cfg, progress)
    else:
        model, table = run_outcomes(files)
        steps, judged_on = numbered(model, table), "the stored validation"
    retrained_at = time.monotonic()
    rng, learned = np.random.default_rng(cfg.seed), isinstance(model, LearnedOutcomes)

    lines, elasticities, over_range = [], {}, {}
    for curve in ("price", "damage", "human_wage"):
        policies = {
            m: retrained.get(("error_target", 0.0) if curve == "human_wage" else (curve, m)) for m in multipliers
        }
        points = [outcomes(model, steps, curve, m, policies[m]) for m in multipliers]
        lines += [
            {"curve": curve, "x": m, "who": who} | _mean(values, learned)
            for m, point in zip(multipliers, points, strict=True)
            for who, values in point.items()
        ]
        below, above = (outcomes(model, steps, curve, m) for m in (1 - LOCAL, 1 + LOCAL))
        elasticities[curve] = {who: elasticity(below[who], above[who], rng, of_members=learned) for who in below}
        over_range[curve] = {
            who: range_elasticity(multipliers, np.stack([point[who] for point in points]), rng, of_members=learned)
            for who in points[0]
        }
    choices = error_price.tradeoffs(model, steps.rows)
    knobs = error_price.knobs(model, steps.rows, steps.actions, steps.episode)
    for target in error_price.targets(model.task, choices, cfg.points):
        for who, price in shadow_price(knobs, choices, target, rng, of_members=learned).items():
            lines.append({"curve": "error_target", "x": target, "who": who} | price)
    for (curve, paid), of_seeds in retrained.items():
        if curve == "error_target":
            lines.append({"curve": curve, "who": "retrained", "value": paid} | reached(model, of_seeds))
    result = {
        "task": model.task.name,
        "scenario": model.task.scenario,
        **outcomes_from(model),
        "profit": _today(model, steps),
        "episodes": int(steps.episode.max()) + 1,
        "judged_on": judged_on,
        "elasticities": elasticities,
        "elasticities_over_range": over_range,
        "error_target": model.task.error_target.end,
        "shadow_price": shadow_price(knobs, choices, model.task.error_target.end, rng, of_members=learned),
        "retrained": {
            "updates": cfg.retrain,
            "seeds": cfg.retrain_seeds,
            "policies": sum(map(len, retrained.values())),
            "device": device,
            "wall_s": retrained_at - started,
        }
        if retrained
        else None,
        "wall_s": time.monotonic() - started,
    }
    table = pd.DataFrame(lines)
    save(folder, "elasticity", table, _draw(table, result), result)
    return result


def numbered(model: OutcomeModel, steps: pd.DataFrame) -> Steps:
    """Validation steps with episodes renumbered from 0 without gaps."""
    _, episode = np.unique(steps["episode"], return_inverse=True)
    return Steps(episode, steps["row"].to_numpy(), actions_of(steps, model.task))


def retrain_everywhere(
    retrainer: Retrainer, model: OutcomeModel, multipliers: np.ndarray, cfg: ElasticityConfig, progress: Progress
) -> dict[tuple[str, float], list[Steps]]:
    """Steps of the policy retrained at every (curve, x), for each random seed; for the error target, x is λ.

    If errors cost nothing, the human wage only scales the reward, which training normalises: one policy, retrained at
    today's values, serves all wages.
    """
    assert cfg.retrain is not None
    lambdas = [0.0, *np.geomspace(*LAMBDAS, cfg.points - 1)]
    worlds = {(curve, m): (changed(model, curve, m), 0.0) for curve in ("price", "damage") for m in multipliers}
    worlds |= {("error_target", price): (model, price) for price in lambdas}
    logger.info("retraining %d policies with %d updates each", len(worlds) * cfg.retrain_seeds, cfg.retrain)
    retrained: dict[tuple[str, float], list[Steps]] = {}
    for number, (point, (world, price)) in enumerate(worlds.items()):
        retrained[point] = []
        for seed in range(cfg.seed, cfg.seed + cfg.retrain_seeds):
            agent = retrainer.retrain(world, updates=cfg.retrain, lambda_dual=price, seed=seed)
            retrained[point].append(numbered(world, retrainer.judge(world, agent)))
        progress(number + 1, len(worlds))
    return retrained


def changed(model: OutcomeModel, curve: str, multiplier: float) -> OutcomeModel:
    """The same outcomes with every price, every damage or the human wage multiplied by `multiplier`."""
    task = model.task
    if curve == "human_wage":
        return model.with_task(task.model_copy(update={"human_wage_usd": multiplier * task.human_wage_usd}))
    return model.scaled(**{curve: multiplier})


def outcomes(
    model: OutcomeModel, steps: Steps, curve: str, multiplier: float, retrained: Sequence[Steps] | None = None
) -> dict[str, np.ndarray]:
    """The curve's quantity in $/h at the multiplier, as episode means [E], for policy and oracle.

    The retrained policy, if given, is included as the mean over its random seeds. If outcomes are learned, means over
    all episodes by each member of the ensemble [M] instead.
    """
    model = changed(model, curve, multiplier)

    def earned(steps: Steps) -> np.ndarray:
        if isinstance(model, LearnedOutcomes):
            profit = by_members.mean_profit(model, steps.rows, steps.actions)
            above_wage = profit + model.task.total_costs_usd_per_hour - model.task.human_wage_usd
            return above_wage if curve == "human_wage" else profit
        worth = expected_worth(model, steps.rows, steps.actions)
        spread = worth.implied_wage - model.task.human_wage_usd
        return episode_means(steps.episode, spread if curve == "human_wage" else worth.profit)

    values = {"policy": earned(steps), "oracle": earned(steps._replace(actions=oracle(model, steps.rows).actions))}
    if retrained:
        values["retrained"] = np.mean([earned(of_seed) for of_seed in retrained], axis=0)
    return values


def reached(model: OutcomeModel, policies: Sequence[Steps]) -> dict[str, float | None]:
    """Error rate of retrained policies, as `x` with its interval: mean over random seeds and over steps."""
    if isinstance(model, LearnedOutcomes):
        by_seed = [by_members.mean_err_rate(model, steps.rows, steps.actions) for steps in policies]
    else:
        by_seed = [
            episode_means(steps.episode, expected_worth(model, steps.rows, steps.actions).err_rate)
            for steps in policies
        ]
    mean = _mean(np.mean(by_seed, axis=0), isinstance(model, LearnedOutcomes))
    return {"x": mean["value"], "x_low": mean["low"], "x_high": mean["high"]}


def episode_means(episode: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means [E] over each episode's steps [n]."""
    return np.bincount(episode, values) / np.bincount(episode)


def elasticity(
    below: np.ndarray, above: np.ndarray, rng: np.random.Generator, *, of_members: bool = False
) -> dict[str, float | None]:
    """Log-log slope between the values of E episodes at today's value ∓ 1%, with its bootstrap interval.

    None if a mean is not positive, which has no elasticity. of_members: the values are those of ensemble members, whose
    spread is the interval.
    """
    if min(below.mean(), above.mean()) <= 0:
        return {"value": None, "low": None, "high": None}
    span = np.log1p(LOCAL) - np.log1p(-LOCAL)
    weights = _weights(len(below), rng, of_members)
    below_means, above_means = weights @ below, weights @ above
    known = (below_means > 0) & (above_means > 0)
    slopes = np.log(above_means[known] / below_means[known]) / span
    return {"value": float(np.log(above.mean() / below.mean()) / span)} | _percentiles(slopes, len(below))


def range_elasticity(
    multipliers: np.ndarray, values: np.ndarray, rng: np.random.Generator, *, of_members: bool = False
) -> dict[str, float | None]:
    """Least-squares log-log slope over a whole curve, values [P, E] at P points, with its bootstrap interval.

    The training noise of retrained policies hides the effect of a 1% change, but not that of the whole range. None if a
    mean is not positive.
    """
    means = values.mean(1)
    if means.min() <= 0:
        return {"value": None, "low": None, "high": None}
    x = np.log(multipliers) - np.log(multipliers).mean()
    resampled = values @ _weights(values.shape[1], rng, of_members).T  # [P, B]
    known = (resampled > 0).all(0)
    slopes = x @ np.log(resampled[:, known]) / (x @ x)
    return {"value": float(x @ np.log(means) / (x @ x))} | _percentiles(slopes, values.shape[1])


def shadow_price(
    knobs: list[error_price.Knob],
    choices: list[error_price.Tradeoff],
    err_target: float,
    rng: np.random.Generator,
    *,
    of_members: bool = False,
) -> dict[str, dict[str, Any]]:
    """λ at which the error target just binds: the worth of a unit of error rate, in human wages per hour.

    0 if the target is slack, None if it cannot be met. `knob` names the policy's action that was moved, and the
    direction.
    """
    knob = error_price.best_knob(knobs, err_target)
    weights = _weights(len(knob.profit), rng, of_members)
    policy = error_price.knob_price(knob.profit.mean(0)[None], knob.err_rate.mean(0)[None], err_target)[0]
    resampled = error_price.knob_price(weights @ knob.profit, weights @ knob.err_rate, err_target)
    is_moved = np.isfinite(policy) and knob.err_rate[:, 0].mean() > err_target
    return {
        "policy": {"value": _finite(policy)}
        | _percentiles(resampled, len(weights[0]))
        | {"knob": str(knob) if is_moved else None},
        "oracle": {"value": error_price.oracle_price(choices, err_target), "low": None, "high": None, "knob": None},
    }


def _weights(count: int, rng: np.random.Generator, of_members: bool) -> np.ndarray:
    """Weights [B, count] of the values in B samples of their mean: bootstraps of episodes, or single members."""
    return np.eye(count) if of_members else bootstrap_weights(count, BOOTSTRAPS, rng)


def _today(model: OutcomeModel, steps: Steps) -> dict[str, dict[str, float | None]]:
    """Profit in $/h at today's prices, with intervals."""
    found = outcomes(model, steps, "price", 1.0)
    return {who: _mean(values, isinstance(model, LearnedOutcomes)) for who, values in found.items()}


def _percentiles(samples: np.ndarray, episodes: int) -> dict[str, float | None]:
    """Bounds of the middle 95%; None for a single episode, no samples or a sample that is not finite."""
    if episodes < 2 or not len(samples) or not np.isfinite(samples).all():
        return {"low": None, "high": None}
    low, high = percentiles95(samples)
    return {"low": low, "high": high}


def _mean(values: np.ndarray, of_members: bool) -> dict[str, float | None]:
    low, high = percentiles95(values) if of_members else interval95(values) or (None, None)
    return {"value": float(values.mean()), "low": low, "high": high}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@in_style
def _draw(table: pd.DataFrame, result: dict[str, Any]) -> Figure:
    figure, axes = new_figure(2, 2)
    name_judge(figure, result)
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
            x = table[table["curve"] == curve]["x"].to_numpy(float)
            ticks = np.geomspace(x.min(), x.max(), TICKS)
            ax.set_xticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
            ax.minorticks_off()
            ax.axhline(0, c=COLOURS["soft"], lw=0.8)
    axes[-1].set_yscale("symlog", linthresh=0.1)
    axes[0].legend()
    return figure
