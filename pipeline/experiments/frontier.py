"""The frontier: which actions meet the service level, by formula and by simulated episodes, and where the policy sits.

The service level asks for an MP and an error rate. Each context has a frontier of its own; the scenario's is that of
one action held over all contexts, each as often, which is what one can do who does not see them. At most two actions
are varied, over their whole range; all others are held at the best constant action.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline import econ
from pipeline.config import FrontierConfig
from pipeline.errors import VtpError
from pipeline.experiments.frontier_figure import draw
from pipeline.experiments.output import output_folder, run_outcomes, save
from pipeline.outcomes import OutcomeModel, SimulatedOutcomes, blind, expected_worth, oracle
from pipeline.rl.rollouts import actions_of
from pipeline.runs import RunDirectory
from pipeline.tasks import EPISODE_STEPS, SECONDS_PER_HOUR, Task, load_task

EPISODES_A_CHUNK = 10  # each with a random stream of its own: the result does not depend on the number of threads
MAX_DRAWN = 1 << 22  # steps sampled at once by a thread, which bounds its memory
ALL = "all contexts"


class Surface(NamedTuple):
    """Attempts and good units an hour, and the error rate, over the points of a grid."""

    attempts: np.ndarray
    mp: np.ndarray
    err_rate: np.ndarray

    def of(self, context: int) -> Surface:
        return Surface(*(field[context] for field in self))


@dataclass(frozen=True)
class Grid:
    """Actions [P, A]: every combination of the points of one or two actions, by name; all others are held."""

    axes: dict[str, np.ndarray]
    held: dict[str, float]
    actions: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(points) for points in self.axes.values())


def run(cfg: FrontierConfig) -> dict[str, Any]:
    """Count the points that meet the service level, write the files and return the key numbers.

    `wall_s` is the time of both counts, drawing not included.
    """
    files = None if cfg.run is None else RunDirectory(cfg.run)
    folder = output_folder(cfg.out, files)
    if files:
        judged, steps = run_outcomes(files)
        task, policy = judged.task, policy_actions(judged, steps)
    else:
        task, policy = load_task(cfg.task).in_scenario(cfg.scenario), {}
    model = SimulatedOutcomes(task)
    contexts = np.arange(len(task.contexts))
    best, constant = oracle(model, contexts).actions, blind(model, contexts).actions[0]
    grid = grid_of(task, axes_of(task, cfg.axes), points=cfg.grid, held=constant)
    started = time.perf_counter()
    analytic = by_name(task, analytic_surface(model, grid.actions))
    sampled = by_name(task, sampled_surface(model, grid.actions, episodes=cfg.episodes, seed=cfg.seed))
    counts = {
        name: {
            "analytic_count": count_feasible(analytic[name], min_mp=cfg.min_mp, max_err=cfg.max_err),
            "monte_carlo_count": count_feasible(sampled[name], min_mp=cfg.min_mp, max_err=cfg.max_err),
        }
        for name in analytic
    }
    wall_s = time.perf_counter() - started

    by_context = {
        name: counts[name]
        | {
            "optimum": held_action(model, np.array([k]), best[k]),
            "policy": held_action(model, np.array([k]), policy[k]) if k in policy else None,
        }
        for k, name in enumerate(task.context_names)
    }
    result = {
        "task": task.name,
        "scenario": task.scenario,
        "actions": {name: [action.low, action.high] for name, action in task.actions.items()},
        "axes": list(grid.axes),
        "held": grid.held,
        "grid": cfg.grid,
        "points": len(grid.actions),
        "episodes": cfg.episodes,
        "env_steps": len(grid.actions) * len(contexts) * cfg.episodes * EPISODE_STEPS,
        "min_mp": cfg.min_mp,
        "max_err": cfg.max_err,
        **next(iter(counts.values())),
        "optimum": held_action(model, contexts, constant),
        "contexts": by_context,
        "wall_s": wall_s,
    }
    table = pd.concat([_table(name, grid, analytic[name], sampled[name], cfg) for name in analytic], ignore_index=True)
    save(folder, "frontier", table, draw(table, result), result)
    return result


def axes_of(task: Task, names: str | None) -> list[str]:
    """The actions to vary: those named, by default the first two; VtpError where a name is none of the task's."""
    if names is None:
        return list(task.action_names[:2])
    axes = [name.strip() for name in names.split(",")]
    if len(axes) > 2 or len(set(axes)) < len(axes) or not set(axes) <= set(task.actions):
        raise VtpError(
            f"axes {names!r} are not one or two actions of task {task.name}; "
            f"name two of {', '.join(task.actions)}, joined by a comma",
            code="axes-unknown",
        )
    return axes


def grid_of(task: Task, names: list[str], *, points: int, held: np.ndarray) -> Grid:
    """Every combination of `points` values of each named action, the others as in the action `held` [A]."""
    axes = {name: np.linspace(task.actions[name].low, task.actions[name].high, points) for name in names}
    actions = np.tile(held, (points ** len(names), 1))
    for name, values in zip(names, np.meshgrid(*axes.values(), indexing="ij"), strict=True):
        actions[:, task.action_names.index(name)] = values.ravel()
    others = {name: float(held[index]) for index, name in enumerate(task.action_names) if name not in axes}
    return Grid(axes, others, actions)


def analytic_surface(model: SimulatedOutcomes, actions: np.ndarray) -> Surface:
    """In expectation, for each context: [K, P] over actions [P, A]."""
    contexts = np.arange(len(model.context))[:, None]
    found = expected_worth(model, contexts, actions)
    shape = (len(contexts), len(actions))
    return Surface(*(np.broadcast_to(field, shape) for field in (found.attempts, found.mp, found.err_rate)))


def sampled_surface(model: SimulatedOutcomes, actions: np.ndarray, *, episodes: int, seed: int) -> Surface:
    """Means over simulated episodes for each context: [K, P] over actions [P, A]; every step of every one is drawn.

    NumPy's generators let go of the interpreter while they draw, so threads are enough to use all processors.
    """
    counts = [min(EPISODES_A_CHUNK, episodes - start) for start in range(0, episodes, EPISODES_A_CHUNK)]
    rngs = [np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(len(counts))]
    hours = EPISODE_STEPS * model.terms(np.arange(len(model.context))).step_s / SECONDS_PER_HOUR
    at_once = max(MAX_DRAWN // EPISODE_STEPS, 1)

    def parts() -> Iterator[tuple[int, slice]]:
        for context in range(len(model.context)):
            for start in range(0, len(actions), at_once):
                yield context, slice(start, start + at_once)

    def sums(count: int, rng: np.random.Generator) -> np.ndarray:
        total = np.zeros((3, len(model.context), len(actions)))
        for _ in range(count):
            for context, part in parts():
                size = (EPISODE_STEPS, len(actions[part]))
                outcomes = model.sample_many(np.array(context), actions[part], rng, size)
                attempts, errors = outcomes.attempts.sum(0), outcomes.errors.sum(0)
                mp = econ.marginal_product(attempts - errors, hours[context])
                rates = attempts / hours[context], mp, econ.error_rate(errors, attempts)
                total[:, context, part] += np.stack(rates)
        return total

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        attempts, mp, err_rate = functools.reduce(np.add, threads.map(sums, counts, rngs)) / episodes
    return Surface(attempts, mp, err_rate)


def by_name(task: Task, surface: Surface) -> dict[str, Surface]:
    """The surface of every context, before them that of all together where there are more than one."""
    surfaces = {name: surface.of(k) for k, name in enumerate(task.context_names)}
    if len(surfaces) == 1:
        return surfaces
    attempts = surface.attempts.mean(0)
    err_rate = np.asarray(econ.ratio((surface.attempts * surface.err_rate).mean(0), attempts))
    return {ALL: Surface(attempts, surface.mp.mean(0), err_rate)} | surfaces


def count_feasible(surface: Surface, *, min_mp: float, max_err: float) -> int:
    """Points that meet the service level."""
    return int(_feasible(surface, min_mp, max_err).sum())


def _feasible(surface: Surface, min_mp: float, max_err: float) -> np.ndarray:
    return (surface.mp >= min_mp) & (surface.err_rate <= max_err)


def policy_actions(model: OutcomeModel, steps: pd.DataFrame) -> dict[int, np.ndarray]:
    """The policy's mean action [A] in each context that its validation steps met."""
    actions, context = actions_of(steps, model.task), model.context[steps["row"].to_numpy()]
    return {int(k): actions[context == k].mean(0) for k in np.unique(context)}


def held_action(model: SimulatedOutcomes, contexts: np.ndarray, action: np.ndarray) -> dict[str, Any]:
    """What one action [A] brings in expectation over contexts [n], each as often; rates an hour, profit in $/h."""
    found = expected_worth(model, contexts, action)
    errors = np.sum(found.attempts * found.err_rate)
    return {
        "actions": dict(zip(model.task.action_names, action.tolist(), strict=True)),
        "mp": float(np.mean(found.mp)),
        "err_rate": float(econ.ratio(errors, np.sum(found.attempts))),
        "profit": float(np.mean(found.profit)),
    }


def _table(name: str, grid: Grid, analytic: Surface, sampled: Surface, cfg: FrontierConfig) -> pd.DataFrame:
    """One row a point of the grid."""
    columns: dict[str, Any] = {"context": name}
    for axis, values in zip(grid.axes, np.meshgrid(*grid.axes.values(), indexing="ij"), strict=True):
        columns[axis] = values.ravel()
    for kind, surface in {"analytic": analytic, "monte_carlo": sampled}.items():
        columns[f"{kind}_mp"], columns[f"{kind}_err_rate"] = surface.mp, surface.err_rate
        columns[f"{kind}_feasible"] = _feasible(surface, cfg.min_mp, cfg.max_err).astype(int)
    return pd.DataFrame(columns)
