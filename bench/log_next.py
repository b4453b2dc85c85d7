"""Whether logging the steps that `vtp logs` requests helps, as JSON.

To simulated logs of the logger `human`, about as many steps as `vtp logs` requests are added: more of the same, uniform
ones, or the requested ones. `of_optimum`: profit of the best actions by the logs / optimum. `while_logging`: expected
profit of the added steps, in $/h.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from pipeline.config import parse_seeds
from pipeline.outcomes import (
    LearnedOutcomes,
    LoggedSteps,
    SimulatedOutcomes,
    expected_worth,
    logging_policy,
    oracle,
    simulate_logs,
)
from pipeline.survey.best_actions import best_of_contexts
from pipeline.survey.next_steps import suggestions
from pipeline.tasks import Task, load_task

TASKS = {"dishwashing": "mixed", "bin-picking": None}
ARMS = ("before", "human", "uniform", "asked for")


def logged(task: Task, logger: str, videos: int, steps: int, rng: np.random.Generator) -> LoggedSteps:
    logs = simulate_logs(task, logging_policy(logger, task), videos=videos, steps=steps, rng=rng)
    return _steps(task, logs.context.ravel(), logs.actions.reshape(-1, task.num_actions), logs, steps)


def _steps(task: Task, context: np.ndarray, actions: np.ndarray, outcomes: Any, steps: int) -> LoggedSteps:
    rows = np.arange(len(context))
    return LoggedSteps(rows, context, actions, outcomes.attempts.ravel(), outcomes.errors.ravel(), rows // steps)


def joined(first: LoggedSteps, more: LoggedSteps) -> LoggedSteps:
    """Both logs together; the second gets separate videos and rows."""
    return first.with_others(
        more._replace(rows=more.rows + first.num_steps, video=more.video + int(first.video.max()) + 1)
    )


def learned(task: Task, steps: LoggedSteps) -> LearnedOutcomes:
    assert task.step_s is not None
    return LearnedOutcomes(task, steps.context, steps.context, steps, step_s=task.step_s)


def asked_for(task: Task, first: LoggedSteps, steps: int, rng: np.random.Generator) -> LoggedSteps:
    """The steps requested after the first ones, in random order and in whole videos."""
    model = learned(task, first)
    wanted = suggestions(model, best_of_contexts(model, lambda name: None), 100)
    which = np.repeat(np.arange(len(wanted)), [one.steps for one in wanted])
    which = rng.permutation(np.resize(which, -(-len(which) // steps) * steps))
    context = np.array([task.context_names.index(wanted[one].context) for one in which])
    low, high = np.array([list(wanted[one].actions.values()) for one in which]).transpose(2, 0, 1)
    actions = low + rng.random(low.shape) * (high - low)
    return _steps(task, context, actions, SimulatedOutcomes(task).sample(context, actions, rng), steps)


def of_optimum(task: Task, steps: LoggedSteps) -> float:
    """Profit of the best actions by the logs in the simulator / optimum, with equally frequent contexts."""
    model, truth, contexts = learned(task, steps), SimulatedOutcomes(task), np.arange(len(task.contexts))
    rows = np.array([np.flatnonzero(model.context == one)[0] for one in contexts])
    earned = expected_worth(truth, contexts, oracle(model, rows).actions).profit.mean()
    return float(earned / oracle(truth, contexts).profit.mean())


def while_logging(task: Task, steps: LoggedSteps) -> float:
    """Expected profit of such steps, in $/h."""
    return float(expected_worth(SimulatedOutcomes(task), steps.context, steps.actions).profit.mean())


def one_seed(task: Task, seed: int, videos: int, steps: int) -> tuple[list[float], list[float]]:
    """For each arm, profit of its best actions / optimum; for each but the first, profit of its added steps."""
    rng = np.random.default_rng(seed)
    first = logged(task, "human", videos, steps, rng)
    asked = asked_for(task, first, steps, rng)
    more = [*(logged(task, logger, asked.num_videos, steps, rng) for logger in ("human", "uniform")), asked]
    ratios = [of_optimum(task, first)] + [of_optimum(task, joined(first, one)) for one in more]
    return ratios, [while_logging(task, one) for one in more]


def summary(names: tuple[str, ...], values: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean and standard error of values [seeds, arms]."""
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    return {
        name: {"mean": round(float(values[:, k].mean()), 3), "standard_error": round(float(error[k]), 3)}
        for k, name in enumerate(names)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-7")
    parser.add_argument("--videos", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    seeds = parse_seeds(args.seeds)
    if len(seeds) < 2:
        parser.error("give at least two seeds, for a standard error")
    found = {}
    for name, scenario in TASKS.items():
        task = load_task(name).in_scenario(scenario)
        ratios, earned = map(
            np.array, zip(*(one_seed(task, seed, args.videos, args.steps) for seed in seeds), strict=True)
        )
        found[name] = {"of_optimum": summary(ARMS, ratios), "while_logging": summary(ARMS[1:], earned)}
    print(json.dumps({"seeds": len(seeds), "tasks": found}, indent=2))


if __name__ == "__main__":
    main()
