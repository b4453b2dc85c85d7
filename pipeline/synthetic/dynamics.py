"""Dishwashing and bricklaying dynamics, vectorised over environments.

A step is one minute of work. Actions are speed and care, each in [0, 1]; what is worked on is the step's context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import VtpError

STEPS_PER_HOUR = 60
EPISODE_STEPS = 60
STAY_PROBABILITY = 0.8
MAX_ERROR_PROBABILITY = 0.5


@dataclass(frozen=True)
class Context:
    """What is worked on: base_rate in attempts a minute, prices in US dollars a unit."""

    name: str
    base_rate: float
    care_cost: float
    p_min: float
    k: float
    price_usd: float
    damage_usd: float


@dataclass(frozen=True)
class Scenario:
    """A task's contexts and the constants that they share."""

    task: str
    name: str
    contexts: tuple[Context, ...]
    q_s: float
    q_c: float
    energy_usd_per_hour: float
    human_wage_usd: float

    @cached_property
    def table(self) -> dict[str, np.ndarray]:
        """Each numeric field of the contexts as an array [K]."""
        fields = ("base_rate", "care_cost", "p_min", "k", "price_usd", "damage_usd")
        return {field: np.array([getattr(c, field) for c in self.contexts]) for field in fields}

    @property
    def context_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.contexts)


_PLATE = Context("plate", base_rate=2.0, care_cost=0.25, p_min=0.02, k=0.12, price_usd=0.30, damage_usd=1.00)
_DISHES = (
    Context("pan", base_rate=3.0, care_cost=0.50, p_min=0.001, k=0.01, price_usd=0.30, damage_usd=0.10),
    _PLATE,
    Context("glass", base_rate=2.0, care_cost=0.25, p_min=0.020, k=0.45, price_usd=0.45, damage_usd=4.00),
    Context("mug", base_rate=2.5, care_cost=0.40, p_min=0.005, k=0.05, price_usd=0.30, damage_usd=0.50),
)
_FACE = Context("face", base_rate=2.2, care_cost=0.30, p_min=0.015, k=0.14, price_usd=0.35, damage_usd=1.20)
_BRICKS = (
    Context("infill", base_rate=3.2, care_cost=0.50, p_min=0.001, k=0.01, price_usd=0.30, damage_usd=0.10),
    _FACE,
    Context("corner", base_rate=2.0, care_cost=0.25, p_min=0.020, k=0.40, price_usd=0.55, damage_usd=4.50),
    Context("paver", base_rate=2.8, care_cost=0.40, p_min=0.005, k=0.05, price_usd=0.30, damage_usd=0.50),
)
_TASKS = {
    "dishwashing": (_PLATE, _DISHES, dict(q_s=1.2, q_c=1.5, energy_usd_per_hour=0.10, human_wage_usd=18.0)),
    "bricklaying": (_FACE, _BRICKS, dict(q_s=1.4, q_c=1.5, energy_usd_per_hour=0.20, human_wage_usd=24.0)),
}


def scenario(task: str = "dishwashing", name: str = "seed") -> Scenario:
    """The scenario of that name: `seed` has one context, `mixed` four."""
    if task not in _TASKS:
        raise VtpError(f"task {task!r} is unknown; use one of {', '.join(_TASKS)}")
    if name not in ("seed", "mixed"):
        raise VtpError(f"scenario {name!r} is unknown; use seed or mixed")
    base, mixed, constants = _TASKS[task]
    return Scenario(task, name, (base,) if name == "seed" else mixed, **constants)


def dynamics(
    scenario: Scenario, context: ArrayLike, speed: ArrayLike, care: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Attempts a minute before the floor of one, and the error probability of an attempt (seed).

    rate  = base_rate · (0.5 + 0.5 s) · (1 − care_cost · c)
    p_err = clip(p_min + k · s^q_s · (1 − c)^q_c, 0, 0.5)

    context: integers in [0, K); speed, care: in [0, 1]; all broadcast.
    """
    speed, care = np.asarray(speed, float), np.asarray(care, float)
    if len(scenario.contexts) == 1:
        t = {field: column[0] for field, column in scenario.table.items()}
    else:
        t = {field: column[context] for field, column in scenario.table.items()}
    rate = t["base_rate"] * (0.5 + 0.5 * speed) * (1.0 - t["care_cost"] * care)
    p_err = t["p_min"] + t["k"] * speed**scenario.q_s * (1.0 - care) ** scenario.q_c
    return rate, np.minimum(p_err, MAX_ERROR_PROBABILITY)


def sample_outcomes(
    rate: ArrayLike, p_err: ArrayLike, rng: np.random.Generator, size: tuple[int, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sampled (attempts, errors) of one step: attempts = max(1, Poisson(rate)), errors ~ Binomial(attempts, p_err)."""
    attempts = np.maximum(rng.poisson(rate, size), 1)
    return attempts, rng.binomial(attempts, p_err)


def coupled_outcomes(
    rate: np.ndarray, p_err: np.ndarray, rng: np.random.Generator, draws: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(attempts, errors) [draws, N] distributed as those of `sample_outcomes`, by inversion; rate and p_err are [N].

    One uniform number for attempts and one for errors: with a generator of the same seed like actions meet like luck
    (common random numbers), so that policies that differ little are told apart by far fewer draws.
    """
    uniform = rng.random((2, draws, len(rate)))
    attempts = np.maximum(_invert(uniform[0], np.exp(-rate), lambda k: rate / k), 1)
    odds = p_err / (1 - p_err)
    errors = _invert(uniform[1], (1 - p_err) ** attempts, lambda k: odds * (attempts - k + 1) / k)
    return attempts, np.minimum(errors, attempts)  # the last one is a matter of rounding


def _invert(uniform: np.ndarray, first: np.ndarray, ratio: Callable[[int], np.ndarray]) -> np.ndarray:
    """The counts at which a distribution reaches the uniform numbers: p(0) is `first`, p(k) is ratio(k) · p(k − 1)."""
    count, k = np.zeros(uniform.shape, np.int64), 0
    mass = total = np.broadcast_to(first, uniform.shape)
    while (beyond := (uniform > total) & (mass > 0)).any():
        count += beyond
        k += 1
        mass = mass * ratio(k)
        total = total + mass
    return count


def expected_attempts(rate: ArrayLike) -> np.ndarray:
    """E[max(1, Poisson(rate))] = rate + e^(−rate)."""
    rate = np.asarray(rate, float)
    return rate + np.exp(-rate)


def initial_context(scenario: Scenario, num_envs: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform contexts [num_envs], the chain's stationary distribution."""
    return rng.integers(len(scenario.contexts), size=num_envs)


def next_context(scenario: Scenario, context: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One step of the Markov chain: stays with probability 0.8, else moves to another context, each as likely."""
    num_contexts = len(scenario.contexts)
    if num_contexts == 1:
        return context
    moved = (context + rng.integers(1, num_contexts, size=context.shape)) % num_contexts
    return np.where(rng.random(context.shape) < STAY_PROBABILITY, context, moved)
