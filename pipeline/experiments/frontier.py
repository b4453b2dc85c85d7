"""The frontier: which actions meet the service level, by formula and by simulated episodes, and where the policy sits.

The service level asks for an MP and an error rate. Each context has a frontier of its own; the scenario's is that of
one action held over all contexts, each as often, which is what one can do who does not see them.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline import econ
from pipeline.config import FrontierConfig
from pipeline.evaluate import blind, oracle
from pipeline.experiments.output import (
    COLOURS,
    in_style,
    new_figure,
    output_folder,
    save,
    scenario_of,
    validation_steps,
)
from pipeline.rl.envs import expected_work
from pipeline.synthetic import dynamics

EPISODES_A_CHUNK = 10  # each with a random stream of its own: the result does not depend on the number of threads
ALL = "all contexts"


class Surface(NamedTuple):
    """Attempts and good units an hour, and the error rate, over speed (rows) and care (columns)."""

    attempts: np.ndarray
    mp: np.ndarray
    err_rate: np.ndarray

    def of(self, context: int) -> Surface:
        return Surface(*(field[context] for field in self))


def run(cfg: FrontierConfig) -> dict[str, Any]:
    """Count the points that meet the service level, write the files and return the key numbers.

    `wall_s` is the time of both counts, drawing not included.
    """
    scenario = scenario_of(cfg.run) if cfg.run else dynamics.scenario(cfg.task, cfg.scenario)
    folder = output_folder(cfg.out, cfg.run)
    policy = policy_actions(validation_steps(cfg.run, scenario)) if cfg.run else {}
    started = time.perf_counter()
    axis = np.linspace(0, 1, cfg.grid)
    analytic = by_name(scenario, analytic_surface(scenario, axis))
    sampled = by_name(scenario, sampled_surface(scenario, axis, episodes=cfg.episodes, seed=cfg.seed))
    counts = {
        name: {
            "analytic_count": count_feasible(analytic[name], min_mp=cfg.min_mp, max_err=cfg.max_err),
            "monte_carlo_count": count_feasible(sampled[name], min_mp=cfg.min_mp, max_err=cfg.max_err),
        }
        for name in analytic
    }
    wall_s = time.perf_counter() - started

    best, constant = oracle(scenario).actions, blind(scenario).actions
    contexts = {
        name: counts[name]
        | {
            "optimum": held_action(scenario, np.array([k]), best[k]),
            "policy": held_action(scenario, np.array([k]), policy[k]) if k in policy else None,
        }
        for k, name in enumerate(scenario.context_names)
    }
    result = {
        "task": scenario.task,
        "scenario": scenario.name,
        "grid": cfg.grid,
        "episodes": cfg.episodes,
        "env_steps": cfg.grid**2 * len(scenario.contexts) * cfg.episodes * dynamics.EPISODE_STEPS,
        "min_mp": cfg.min_mp,
        "max_err": cfg.max_err,
        **next(iter(counts.values())),
        "optimum": held_action(scenario, np.arange(len(scenario.contexts)), constant[0]),
        "contexts": contexts,
        "wall_s": wall_s,
    }
    table = pd.concat([_table(name, axis, analytic[name], sampled[name], cfg) for name in analytic], ignore_index=True)
    save(folder, "frontier", table, _draw(axis, analytic, sampled, result), result)
    return result


def analytic_surface(scenario: dynamics.Scenario, axis: np.ndarray) -> Surface:
    """In expectation, for each context: [K, S, C] over an axis of S = C points."""
    context = np.arange(len(scenario.contexts))[:, None, None]
    attempts, err_rate, _ = expected_work(scenario, context, *_actions(axis))
    return Surface(attempts, attempts * (1 - err_rate), np.broadcast_to(err_rate, attempts.shape))


def sampled_surface(scenario: dynamics.Scenario, axis: np.ndarray, *, episodes: int, seed: int) -> Surface:
    """Means over simulated episodes of one hour for each context: [K, S, C]; every step of every episode is drawn.

    NumPy's generators let go of the interpreter while they draw, so threads are enough to use all processors.
    """
    context = np.arange(len(scenario.contexts))[:, None, None]
    rate, p_err = dynamics.dynamics(scenario, context, *_actions(axis))
    p_err = np.broadcast_to(p_err, rate.shape) if rate.ndim == 3 else p_err[None]
    rate = np.broadcast_to(rate, (len(scenario.contexts), len(axis), len(axis)))
    counts = [min(EPISODES_A_CHUNK, episodes - start) for start in range(0, episodes, EPISODES_A_CHUNK)]
    rngs = [np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(len(counts))]

    def sums(count: int, rng: np.random.Generator) -> np.ndarray:
        total = np.zeros((3, *rate.shape))
        for _ in range(count):
            attempts, errors = dynamics.sample_outcomes(rate, p_err, rng, (dynamics.EPISODE_STEPS, *rate.shape))
            attempts, errors = attempts.sum(0), errors.sum(0)
            hours = dynamics.EPISODE_STEPS / dynamics.STEPS_PER_HOUR
            mp = econ.marginal_product(attempts - errors, hours)
            total += np.stack([attempts / hours, mp, econ.error_rate(errors, attempts)])
        return total

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return Surface(*(sum(threads.map(sums, counts, rngs)) / episodes))


def _actions(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return axis[None, :, None], axis[None, None, :]


def by_name(scenario: dynamics.Scenario, surface: Surface) -> dict[str, Surface]:
    """The surface of every context, before them that of all together where there are more than one."""
    surfaces = {name: surface.of(k) for k, name in enumerate(scenario.context_names)}
    if len(surfaces) == 1:
        return surfaces
    attempts = surface.attempts.mean(0)
    err_rate = (surface.attempts * surface.err_rate).mean(0) / attempts
    return {ALL: Surface(attempts, surface.mp.mean(0), err_rate)} | surfaces


def count_feasible(surface: Surface, *, min_mp: float, max_err: float) -> int:
    """Points that meet the service level."""
    return int(_feasible(surface, min_mp, max_err).sum())


def _feasible(surface: Surface, min_mp: float, max_err: float) -> np.ndarray:
    return (surface.mp >= min_mp) & (surface.err_rate <= max_err)


def policy_actions(steps: pd.DataFrame) -> dict[int, np.ndarray]:
    """The policy's mean action [2] in each context that validation met."""
    return {int(k): rows[["speed", "care"]].to_numpy().mean(0) for k, rows in steps.groupby("context")}


def held_action(scenario: dynamics.Scenario, contexts: np.ndarray, action: np.ndarray) -> dict[str, float]:
    """What one action [2] brings in expectation over contexts [n], each as often; rates an hour, profit in $/h."""
    attempts, err_rate, profit = expected_work(scenario, contexts, action[0], action[1])
    return {
        "speed": float(action[0]),
        "care": float(action[1]),
        "mp": float(np.mean(attempts * (1 - err_rate))),
        "err_rate": float(np.sum(attempts * err_rate) / np.sum(attempts)),
        "profit": float(np.mean(profit)),
    }


def _table(name: str, axis: np.ndarray, analytic: Surface, sampled: Surface, cfg: FrontierConfig) -> pd.DataFrame:
    """One row a point of the grid."""
    speed, care = np.meshgrid(axis, axis, indexing="ij")
    columns = {"context": name, "speed": speed.ravel(), "care": care.ravel()}
    for kind, surface in {"analytic": analytic, "monte_carlo": sampled}.items():
        columns[f"{kind}_mp"], columns[f"{kind}_err_rate"] = surface.mp.ravel(), surface.err_rate.ravel()
        columns[f"{kind}_feasible"] = _feasible(surface, cfg.min_mp, cfg.max_err).ravel().astype(int)
    return pd.DataFrame(columns)


@in_style
def _draw(
    axis: np.ndarray, analytic: dict[str, Surface], sampled: dict[str, Surface], result: dict[str, Any]
) -> Figure:
    figure, axes = new_figure(min(len(analytic), 3), -(-len(analytic) // 3))
    for ax in axes[len(analytic) :]:
        ax.set_axis_off()
    for ax, name in zip(axes, analytic, strict=False):
        own = result["contexts"].get(name, result)
        _draw_surface(ax, axis, analytic[name], sampled[name], result["min_mp"], result["max_err"])
        ax.plot(own["optimum"]["speed"], own["optimum"]["care"], "o", ms=10, mfc="none", mew=2, c=COLOURS["oracle"])
        if own.get("policy"):
            ax.plot(own["policy"]["speed"], own["policy"]["care"], "o", ms=6, c=COLOURS["human"])
        ax.set_title(f"{name}: {own['analytic_count']:,} | {own['monte_carlo_count']:,}")
    key = axes[-1]  # empty where the contexts leave room
    key.plot([], [], "o", ms=8, mfc="none", mew=2, c=COLOURS["oracle"], label="optimum")
    if any(own["policy"] for own in result["contexts"].values()):
        key.plot([], [], "o", ms=6, c=COLOURS["human"], label="policy")
    key.plot([], [], "--", c=COLOURS["second"], label="service level, Monte Carlo")
    key.legend(loc="center left" if len(axes) > len(analytic) else "lower left", fontsize=8)
    figure.suptitle(
        f"Points with MP ≥ {result['min_mp']:g}/h and error ≤ {result['max_err']:.0%} of "
        f"{result['grid'] ** 2:,}: analytic | Monte Carlo",
        fontsize=10, x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _draw_surface(
    ax: Axes, axis: np.ndarray, analytic: Surface, sampled: Surface, min_mp: float, max_err: float
) -> None:
    """The feasible region shaded, iso-MP and iso-error lines, and the region's edge as Monte Carlo has it."""
    ax.contourf(axis, axis, _feasible(analytic, min_mp, max_err).T, levels=[0.5, 1], colors=["#cfe6e4"])
    for values, label, colour in ((analytic.mp, "%.0f/h", "policy"), (100 * analytic.err_rate, "%.1f%%", "human")):
        lines = ax.contour(axis, axis, values.T, levels=6, colors=COLOURS[colour], linewidths=0.7)
        ax.clabel(lines, fmt=label, fontsize=6)
    edge = _feasible(sampled, min_mp, max_err).T
    if edge.any() and not edge.all():
        ax.contour(axis, axis, edge, levels=[0.5], colors=COLOURS["second"], linewidths=1, linestyles="--")
    ax.set(xlabel="speed", ylabel="care", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
