"""The frontier: which actions meet the service level, in expectation and in sampled episodes, and where the policy is.

The service level is a minimum MP and a maximum error rate. Each context has its own frontier; the frontier of the
scenario is for one action held over all contexts, equally frequent, as a policy that cannot see them would do. At most
two actions are varied, over their whole range; all others are held at the best constant action.

Expectations come from the simulator's formulas or from outcomes learned from logs. With logs, a context is the set of
its clips, and counts and profits have intervals over the ensemble.
"""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline import econ, processes
from pipeline.config import FrontierConfig
from pipeline.errors import VtpError
from pipeline.experiments.frontier_figure import draw
from pipeline.experiments.output import outcomes_from, output_folder, run_outcomes, save
from pipeline.outcomes import LearnedOutcomes, OutcomeModel, SimulatedOutcomes, best_action, blind, expected_worth
from pipeline.rl.rollouts import actions_of
from pipeline.runs import RunDirectory
from pipeline.stats import percentiles95
from pipeline.tasks import EPISODE_STEPS, SECONDS_PER_HOUR, Task, load_task

EPISODES_A_CHUNK = 10  # each has its own random stream, so the result does not depend on the number of threads
MAX_DRAWN = 1 << 22  # steps sampled at once per thread, to bound memory
MOST_KINDS = 64  # of rows per context; there are many if every clip has its own price
ALL = "all contexts"


class Surface(NamedTuple):
    """Attempts and good units per hour, and the error rate, at the points of a grid."""

    attempts: np.ndarray
    mp: np.ndarray
    err_rate: np.ndarray

    def of(self, context: int) -> Surface:
        return Surface(*(field[context] for field in self))


@dataclass(frozen=True)
class Grid:
    """Actions [P, A]: all combinations of the points of one or two named actions; the others are held constant."""

    axes: dict[str, np.ndarray]
    held: dict[str, float]
    actions: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(points) for points in self.axes.values())


class Work(NamedTuple):
    """The rows of K equally frequent contexts: n rows, the context of each and its share of that context."""

    rows: np.ndarray  # [n]
    context: np.ndarray  # [n] in [0, K)
    share: np.ndarray  # [n]
    num_contexts: int

    def of(self, context: int) -> Work:
        here = self.context == context
        return Work(self.rows[here], np.zeros(here.sum(), int), self.share[here], 1)

    @property
    def is_plain(self) -> bool:
        """Whether every context is one row."""
        return len(self.rows) == self.num_contexts

    def means(self, values: np.ndarray) -> np.ndarray:
        """Means [K, ...] of values [n, ...] over each context's rows."""
        shares = np.zeros((self.num_contexts, len(self.rows)))
        shares[self.context, np.arange(len(self.rows))] = self.share
        return np.tensordot(shares, values, axes=1)


def work_of(model: OutcomeModel) -> Work:
    """The kinds of rows in each of the model's contexts and their shares; a sample of rows if there are many kinds."""
    everything: list[tuple[np.ndarray, np.ndarray]] = []
    for context in range(len(model.task.contexts)):
        rows = np.flatnonzero(model.context == context)
        rows = rows[np.argsort(model.kind(rows), kind="stable")]
        if len(np.unique(model.kind(rows))) > MOST_KINDS:
            rows = rows[np.linspace(0, len(rows) - 1, MOST_KINDS).round().astype(int)]
        _, first, count = np.unique(model.kind(rows), return_index=True, return_counts=True)
        everything.append((rows[first], count / len(rows)))
    counts = [len(rows) for rows, _ in everything]
    rows, share = (np.concatenate(column) for column in zip(*everything, strict=True))
    return Work(rows, np.repeat(np.arange(len(counts)), counts), share, len(counts))


def run(cfg: FrontierConfig) -> dict[str, Any]:
    """Count the points that meet the service level, write the files and return the key numbers.

    `wall_s` is the time of both counts, without drawing.
    """
    files = None if cfg.run is None else RunDirectory(cfg.run)
    folder = output_folder(cfg, "frontier", run=files)
    if files:
        model, steps = run_outcomes(files)
        policy = policy_actions(model, steps)
        if isinstance(model, SimulatedOutcomes) and model.task.step_s is not None:
            model = SimulatedOutcomes(model.task)  # a context has the task's price, whatever prices its clips have
    else:
        model, policy = SimulatedOutcomes(load_task(cfg.task).in_scenario(cfg.scenario)), {}
    task, work = model.task, work_of(model)
    constant = blind(model, work.rows[:1]).actions[0]
    best = [best_held(model, work.of(k)) for k in range(len(task.contexts))]
    grid = grid_of(task, axes_of(task, cfg.axes), points=cfg.grid, held=constant)
    started = time.perf_counter()
    analytic = by_name(task, analytic_surface(model, grid.actions))
    sampled = by_name(task, sampled_surface(model, grid.actions, episodes=cfg.episodes, seed=cfg.seed))
    counts: dict[str, dict[str, Any]] = {
        name: {
            "analytic_count": count_feasible(analytic[name], min_mp=cfg.min_mp, max_err=cfg.max_err),
            "monte_carlo_count": count_feasible(sampled[name], min_mp=cfg.min_mp, max_err=cfg.max_err),
        }
        for name in analytic
    }
    for name, bounds in count_ci95(model, grid.actions, min_mp=cfg.min_mp, max_err=cfg.max_err).items():
        counts[name]["analytic_count_ci95"] = bounds
    wall_s = time.perf_counter() - started

    by_context = {
        name: counts[name]
        | {
            "optimum": held_action(model, work.of(k), best[k]),
            "policy": held_action(model, work.of(k), policy[k]) if k in policy else None,
        }
        for k, name in enumerate(task.context_names)
    }
    result = {
        "task": task.name,
        "scenario": task.scenario,
        **outcomes_from(model),
        "actions": {name: [action.low, action.high] for name, action in task.actions.items()},
        "axes": list(grid.axes),
        "held": grid.held,
        "grid": cfg.grid,
        "points": len(grid.actions),
        "episodes": cfg.episodes,
        "env_steps": len(grid.actions) * len(task.contexts) * cfg.episodes * EPISODE_STEPS,
        "min_mp": cfg.min_mp,
        "max_err": cfg.max_err,
        **next(iter(counts.values())),
        "optimum": held_action(model, work, constant),
        "contexts": by_context,
        "wall_s": wall_s,
    }
    table = pd.concat([_table(name, grid, analytic[name], sampled[name], cfg) for name in analytic], ignore_index=True)
    save(folder, "frontier", table, draw(table, result), result)
    return result


def axes_of(task: Task, names: str | None) -> list[str]:
    """The actions to vary: those named, by default the first two; VtpError if the task does not have them."""
    if names is None:
        return list(task.action_names[:2])
    axes = [name.strip() for name in names.split(",")]
    if len(axes) > 2 or len(set(axes)) < len(axes) or not set(axes) <= set(task.actions):
        raise VtpError(
            f"axes {names!r} are not one or two actions of task {task.name}; "
            f"name one or two of {', '.join(task.actions)}, joined by a comma",
            code="axes-unknown",
        )
    return axes


def grid_of(task: Task, names: list[str], *, points: int, held: np.ndarray) -> Grid:
    """All combinations of `points` values of each named action; the others are as in the action `held` [A]."""
    axes = {name: np.linspace(task.actions[name].low, task.actions[name].high, points) for name in names}
    actions = np.tile(held, (points ** len(names), 1))
    for name, values in zip(names, np.meshgrid(*axes.values(), indexing="ij"), strict=True):
        actions[:, task.action_names.index(name)] = values.ravel()
    others = {name: float(held[index]) for index, name in enumerate(task.action_names) if name not in axes}
    return Grid(axes, others, actions)


def analytic_surface(model: OutcomeModel, actions: np.ndarray) -> Surface:
    """Expected surface of each context: [K, P] over actions [P, A]."""
    work = work_of(model)
    found = expected_worth(model, work.rows[:, None], actions)
    shape = (len(work.rows), len(actions))
    attempts, mp, err_rate = (np.broadcast_to(field, shape) for field in (found.attempts, found.mp, found.err_rate))
    if work.is_plain:
        return Surface(attempts, mp, err_rate)
    mean = work.means(attempts)
    return Surface(mean, work.means(mp), np.asarray(econ.ratio(work.means(attempts * err_rate), mean)))


def count_ci95(
    model: OutcomeModel, actions: np.ndarray, *, min_mp: float, max_err: float
) -> dict[str, list[float] | None]:
    """95% intervals over the ensemble of the number of feasible actions; None if outcomes are not learned."""
    if not isinstance(model, LearnedOutcomes):
        return dict.fromkeys(by_name(model.task, analytic_surface(model, actions[:1])))
    work, surfaces = work_of(model), []
    for context in range(work.num_contexts):
        here = work.of(context)
        per_hour = SECONDS_PER_HOUR / model.terms(here.rows).step_s
        attempts, errors = (
            sum(
                share * rate * getattr(model.of_members(row, actions), name)
                for row, share, rate in zip(here.rows, here.share, per_hour, strict=True)
            )
            for name in ("attempts", "errors")
        )  # [M, P]
        surfaces.append(Surface(attempts, attempts - errors, np.asarray(econ.ratio(errors, attempts))))
    of_members = by_name(model.task, Surface(*(np.stack(field) for field in zip(*surfaces, strict=True))))
    return {name: percentiles95(_feasible(surface, min_mp, max_err).sum(-1)) for name, surface in of_members.items()}


def sampled_surface(model: OutcomeModel, actions: np.ndarray, *, episodes: int, seed: int) -> Surface:
    """Means over sampled episodes for each context: [K, P] over actions [P, A]; every step is sampled.

    NumPy's generators release the interpreter lock while they draw, so threads use all processors.
    """
    counts = [min(EPISODES_A_CHUNK, episodes - start) for start in range(0, episodes, EPISODES_A_CHUNK)]
    rngs = [np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(len(counts))]
    work, at_once = work_of(model), max(MAX_DRAWN // EPISODE_STEPS, 1)
    step_s = model.terms(work.rows).step_s

    def steps_of(context: int, rng: np.random.Generator) -> np.ndarray:
        """Number of an episode's steps on each row of the context, [n]."""
        share = np.where(work.context == context, work.share, 0.0)
        return EPISODE_STEPS * share.astype(int) if work.is_plain else rng.multinomial(EPISODE_STEPS, share)

    def sums(count: int, rng: np.random.Generator) -> np.ndarray:
        total = np.zeros((3, work.num_contexts, len(actions)))
        for _ in range(count):
            for context in range(work.num_contexts):
                steps = steps_of(context, rng)
                hours = steps @ step_s / SECONDS_PER_HOUR
                for start in range(0, len(actions), at_once):
                    part = slice(start, start + at_once)
                    attempts, errors = np.zeros((2, len(actions[part])), int)
                    for row in np.flatnonzero(steps):
                        size = (int(steps[row]), len(actions[part]))
                        outcomes = model.sample_many(work.rows[row], actions[part], rng, size)
                        attempts, errors = attempts + outcomes.attempts.sum(0), errors + outcomes.errors.sum(0)
                    mp = econ.marginal_product(attempts - errors, hours)
                    total[:, context, part] += np.stack([attempts / hours, mp, econ.error_rate(errors, attempts)])
        return total

    with ThreadPoolExecutor(processes.num_processors()) as threads:
        attempts, mp, err_rate = functools.reduce(np.add, threads.map(sums, counts, rngs)) / episodes
    return Surface(attempts, mp, err_rate)


def by_name(task: Task, surface: Surface) -> dict[str, Surface]:
    """The surface of every context, preceded by that of all contexts together if there are several."""
    surfaces = {name: surface.of(k) for k, name in enumerate(task.context_names)}
    if len(surfaces) == 1:
        return surfaces
    attempts = surface.attempts.mean(0)
    err_rate = np.asarray(econ.ratio((surface.attempts * surface.err_rate).mean(0), attempts))
    return {ALL: Surface(attempts, surface.mp.mean(0), err_rate)} | surfaces


def count_feasible(surface: Surface, *, min_mp: float, max_err: float) -> int:
    """Number of points that meet the service level."""
    return int(_feasible(surface, min_mp, max_err).sum())


def _feasible(surface: Surface, min_mp: float, max_err: float) -> np.ndarray:
    return (surface.mp >= min_mp) & (surface.err_rate <= max_err)


def policy_actions(model: OutcomeModel, steps: pd.DataFrame) -> dict[int, np.ndarray]:
    """The policy's mean action [A] in each context of its validation steps."""
    actions, context = actions_of(steps, model.task), model.context[steps["row"].to_numpy()]
    return {int(k): actions[context == k].mean(0) for k in np.unique(context)}


def best_held(model: OutcomeModel, work: Work) -> np.ndarray:
    """The action [A] that earns most when held on all rows of one context."""

    def profit(actions: np.ndarray) -> np.ndarray:
        earned = (expected_worth(model, row, actions).profit for row in work.rows)
        return sum(share * values for share, values in zip(work.share, earned, strict=True))

    return best_action(model.task, profit)


def held_action(model: OutcomeModel, work: Work, action: np.ndarray) -> dict[str, Any]:
    """Expected results of one action [A], with equally frequent contexts; rates per hour, profit in $/h."""
    found = expected_worth(model, work.rows, action)
    attempts, errors = work.means(found.attempts), work.means(found.attempts * found.err_rate)
    held = {
        "actions": dict(zip(model.task.action_names, action.tolist(), strict=True)),
        "mp": float(np.mean(work.means(found.mp))),
        "err_rate": float(econ.ratio(np.sum(errors), np.sum(attempts))),
        "profit": float(np.mean(work.means(found.profit))),
        "profit_ci95": None,
    }
    if isinstance(model, LearnedOutcomes):
        of_members = model.profit_of_members(work.rows, action).T  # [n, M]
        held["profit_ci95"] = percentiles95(work.means(of_members).mean(0))
    return held


def _table(name: str, grid: Grid, analytic: Surface, sampled: Surface, cfg: FrontierConfig) -> pd.DataFrame:
    """One row per point of the grid."""
    columns: dict[str, Any] = {"context": name}
    for axis, values in zip(grid.axes, np.meshgrid(*grid.axes.values(), indexing="ij"), strict=True):
        columns[axis] = values.ravel()
    for kind, surface in {"analytic": analytic, "monte_carlo": sampled}.items():
        columns[f"{kind}_mp"], columns[f"{kind}_err_rate"] = surface.mp, surface.err_rate
        columns[f"{kind}_feasible"] = _feasible(surface, cfg.min_mp, cfg.max_err).astype(int)
    return pd.DataFrame(columns)
