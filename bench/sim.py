"""Simulator throughput: environment steps a second, each one dynamics, sampled outcome and context chain.

The best of a few repeats is reported, for other work on the machine only ever slows one down. Beside it stand the same
steps one at a time in a plain Python loop, and the training environment's step, which adds reward and observation.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable

import numpy as np

from pipeline.rl.envs import SimEnv
from pipeline.synthetic import dynamics

NUM_ENVS = 16_384
ROUNDS = 20
REPEATS = 8


def best_rate(steps: Callable[[], int]) -> float:
    """Steps a second of the fastest of a few runs of `steps`, which returns how many it did."""
    rates = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        done = steps()
        rates.append(done / (time.perf_counter() - started))
    return max(rates)


def vectorised(scenario: dynamics.Scenario) -> float:
    rng = np.random.default_rng(0)
    context = dynamics.initial_context(scenario, NUM_ENVS, rng)
    actions = rng.random((ROUNDS, NUM_ENVS, 2))

    def steps() -> int:
        nonlocal context
        for speed, care in actions.transpose(0, 2, 1):
            rate, p_err = dynamics.dynamics(scenario, context, speed, care)
            dynamics.sample_outcomes(rate, p_err, rng)
            context = dynamics.next_context(scenario, context, rng)
        return ROUNDS * NUM_ENVS

    return best_rate(steps)


def training_env(scenario: dynamics.Scenario) -> float:
    rng = np.random.default_rng(0)
    env = SimEnv(scenario, NUM_ENVS, rng=rng)
    env.reset()
    actions = rng.random((ROUNDS, NUM_ENVS, 2))

    def steps() -> int:
        for action in actions:
            env.step(action)
        return ROUNDS * NUM_ENVS

    return best_rate(steps)


def plain_python(scenario: dynamics.Scenario, *, num_steps: int = 20_000) -> float:
    """The same step, written for one environment without numpy."""
    rng = random.Random(0)

    def steps() -> int:
        context = 0
        for _ in range(num_steps):
            speed, care = rng.random(), rng.random()
            kind = scenario.contexts[context]
            rate = kind.base_rate * (0.5 + 0.5 * speed) * (1 - kind.care_cost * care)
            p_err = min(kind.p_min + kind.k * speed**scenario.q_s * (1 - care) ** scenario.q_c, 0.5)
            attempts, product, floor = 0, rng.random(), math.exp(-rate)  # Knuth's Poisson
            while product > floor:
                attempts, product = attempts + 1, product * rng.random()
            sum(rng.random() < p_err for _ in range(max(attempts, 1)))
            if len(scenario.contexts) > 1 and rng.random() >= dynamics.STAY_PROBABILITY:
                context = (context + rng.randrange(1, len(scenario.contexts))) % len(scenario.contexts)
        return num_steps

    return best_rate(steps)


if __name__ == "__main__":
    scenarios = {name: dynamics.scenario("dishwashing", name) for name in ("seed", "mixed")}
    rates = {name: vectorised(scenario) for name, scenario in scenarios.items()}
    slowest = min(rates.values())
    plain = plain_python(scenarios["mixed"])
    result = {
        "env_steps_per_s": round(slowest),
        **{f"{name}_steps_per_s": round(rate) for name, rate in rates.items()},
        "training_env_steps_per_s": round(training_env(scenarios["mixed"])),
        "plain_python_steps_per_s": round(plain),
        "ratio_to_plain_python": round(slowest / plain, 1),
        "num_envs": NUM_ENVS,
    }
    print(json.dumps(result))
