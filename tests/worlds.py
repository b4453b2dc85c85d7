"""Tasks that tests work in: the built-in ones, and random ones that a generator or hypothesis makes up."""

import numpy as np

from pipeline.outcomes import SimulatedOutcomes
from pipeline.tasks import Task, load_task

PLATES = load_task("dishwashing").in_scenario("plates")
DISHES = load_task("dishwashing").in_scenario("mixed")
BRICKS = load_task("bricklaying").in_scenario("mixed")
FACES = load_task("bricklaying").in_scenario("faces")
PARTS = load_task("bin-picking")
PAN, PLATE, GLASS, MUG = range(4)
BUILT_IN = {"plates": PLATES, "dishes": DISHES, "bricks": BRICKS, "faces": FACES, "parts": PARTS}


def rows_of(model):
    """Every row of an outcome model."""
    return np.arange(len(model.context))


def grasping(**changes):
    """A small valid task as a dictionary: two contexts, one action in [1, 5], a simulator without a floor."""
    settings = {
        "name": "grasping",
        "step_s": 30.0,
        "human_wage_usd": 20.0,
        "costs_usd_per_hour": {"energy": 0.5, "robot": 1.5},
        "actions": {"force": {"low": 1.0, "high": 5.0}},
        "contexts": {"egg": {"price_usd": 0.5, "damage_usd": 2.0}, "nut": {"price_usd": 0.1}},
        "simulator": {
            "attempts_per_minute": "rate * (1.2 - 0.1 * force)",
            "error_probability": "max(slip - 0.1 * force, 0.01)",
            "constants": {"rate": 4.0},
            "contexts": {"egg": {"slip": 0.5}, "nut": {"slip": 0.2}},
        },
    }
    return settings | changes


def random_task(rng, num_actions, num_contexts=None, *, step_s=None, min_attempts=None):
    """A task of random bounds, prices and formulas: smooth peaks, ridges, kinks, plateaus, optima at the bounds."""
    num_contexts = num_contexts or int(rng.integers(1, 5))
    names = ["speed", "care", "grip", "angle"][:num_actions]
    low = rng.uniform(-5, 5, num_actions)
    high = low + 10 ** rng.uniform(-1, 1.5, num_actions)
    unit = [f"((({name}) - {a!r}) / {b - a!r})" for name, a, b in zip(names, low.tolist(), high.tolist(), strict=True)]
    rates, errors = [], []
    for number, u in enumerate(unit):
        match rng.integers(6):
            case 0:  # more is faster, and worse
                rates.append(f"(0.4 + 0.6 * {u})")
                errors.append(f"k{number} * abs({u})**2")
            case 1:  # more is slower, and better
                rates.append(f"(1 - 0.5 * {u})")
                errors.append(f"k{number} * (1 - min(max({u}, 0), 1))**1.5")
            case 2:  # a best point inside
                errors.append(f"k{number} * 4 * ({u} - b{number})**2")
            case 3:  # a kink
                errors.append(f"k{number} * abs({u} - b{number})")
            case 4:  # a plateau with a narrow dip
                errors.append(f"k{number} * (1 - exp(-(({u} - b{number}) / 0.08)**2))")
            case _:  # a ridge along the diagonal, with the action before
                errors.append(f"k{number} * 4 * ({u} - {unit[number - 1] if number else '0.3'})**2")
    rate = " * ".join(["base", *rates])
    contexts = [f"thing{k}" for k in range(num_contexts)]
    parameters = {
        name: {"base": float(rng.uniform(1, 60))}
        | {f"k{a}": float(10 ** rng.uniform(-2.5, -0.3)) for a in range(num_actions)}
        | {f"b{a}": float(rng.uniform(0, 1)) for a in range(num_actions)}
        for name in contexts
    }
    return Task.model_validate(
        {
            "name": "made up",
            "step_s": step_s or float(rng.choice([1.0, 10.0, 60.0, 90.0])),
            "human_wage_usd": float(rng.uniform(10, 40)),
            "costs_usd_per_hour": {"all": float(rng.uniform(0, 8))},
            "actions": {n: {"low": a, "high": b} for n, a, b in zip(names, low.tolist(), high.tolist(), strict=True)},
            "contexts": {
                name: {"price_usd": float(rng.uniform(0.01, 2)), "damage_usd": float(rng.choice([0, 0.1, 1, 8]))}
                for name in contexts
            },
            "simulator": {
                "attempts_per_minute": rate,
                "error_probability": f"min({' + '.join(errors)} + 0.002, 0.95)",
                "contexts": parameters,
                "min_attempts": int(rng.integers(2)) if min_attempts is None else min_attempts,
            },
        }
    )


def random_outcomes(seed, num_actions, num_contexts=None, **settings):
    return SimulatedOutcomes(random_task(np.random.default_rng(seed), num_actions, num_contexts, **settings))


def grid_of(task, points):
    """A grid of actions [points^A, A], bounds included."""
    axes = [np.linspace(action.low, action.high, points) for action in task.actions.values()]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, task.num_actions)
