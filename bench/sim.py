"""Simulator throughput in environment steps per second: dynamics, sampled outcome and context chain, as JSON.

The best of a few repeats is reported, because other load can only slow one down. For comparison: the same steps in a
plain Python loop, and steps of the training environment, which add reward and observation.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from pipeline.outcomes import SimulatedOutcomes
from pipeline.rl.envs import SimEnv
from pipeline.synthetic.dynamics import STAY_PROBABILITY
from pipeline.tasks import Task, load_task

TASK, SCENARIOS = "dishwashing", ("seed", "mixed")
NUM_ENVS = 16_384
ROUNDS = 20


def best_rate(steps: Callable[[], int], repeats: int) -> float:
    """Steps per second of the fastest of a few runs of `steps`, which returns its number of steps."""
    rates = []
    for _ in range(repeats):
        started = time.perf_counter()
        done = steps()
        rates.append(done / (time.perf_counter() - started))
    return max(rates)


def vectorised(task: Task, repeats: int) -> float:
    rng, model = np.random.default_rng(0), SimulatedOutcomes(task)
    context = model.initial_rows(NUM_ENVS, rng)
    actions = rng.random((ROUNDS, NUM_ENVS, task.num_actions))

    def steps() -> int:
        nonlocal context
        for action in actions:
            model.sample(context, action, rng)
            context = model.next_rows(context, rng)
        return ROUNDS * NUM_ENVS

    return best_rate(steps, repeats)


def training_env(task: Task, repeats: int) -> float:
    rng = np.random.default_rng(0)
    env = SimEnv(SimulatedOutcomes(task), NUM_ENVS, rng=rng)
    env.reset()
    actions = rng.random((ROUNDS, NUM_ENVS, task.num_actions))

    def steps() -> int:
        for action in actions:
            env.step(action)
        return ROUNDS * NUM_ENVS

    return best_rate(steps, repeats)


def plain_python(task: Task, repeats: int, *, num_steps: int = 20_000) -> float:
    """The same step for one environment, without numpy."""
    rng, simulator = random.Random(0), task.simulator
    kinds = [SimpleNamespace(**simulator.constants, **simulator.contexts[name]) for name in task.contexts]

    def steps() -> int:
        context = 0
        for _ in range(num_steps):
            speed, care = rng.random(), rng.random()
            kind = kinds[context]
            rate = kind.base_rate * (0.5 + 0.5 * speed) * (1 - kind.care_cost * care)
            p_err = min(kind.p_min + kind.k * speed**kind.q_s * (1 - care) ** kind.q_c, 0.5)
            attempts, product, floor = 0, rng.random(), math.exp(-rate)  # Knuth's Poisson
            while product > floor:
                attempts, product = attempts + 1, product * rng.random()
            sum(rng.random() < p_err for _ in range(max(attempts, 1)))
            if len(kinds) > 1 and rng.random() >= STAY_PROBABILITY:
                context = (context + rng.randrange(1, len(kinds))) % len(kinds)
        return num_steps

    return best_rate(steps, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=8, help="repeats, of which the best counts (default: 8)")
    repeats = parser.parse_args().repeats
    tasks = {name: load_task(TASK).in_scenario(name) for name in SCENARIOS}
    rates = {name: vectorised(task, repeats) for name, task in tasks.items()}
    slowest = min(rates.values())
    plain = plain_python(tasks["mixed"], repeats)
    result = {
        "env_steps_per_s": round(slowest),
        **{f"{name}_steps_per_s": round(rate) for name, rate in rates.items()},
        "training_env_steps_per_s": round(training_env(tasks["mixed"], repeats)),
        "plain_python_steps_per_s": round(plain),
        "ratio_to_plain_python": round(slowest / plain, 1),
        "num_envs": NUM_ENVS,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
