"""The simulator: outcomes of actions in each context of a task by the formulas of its file, vectorised.

Outside this package, only `outcomes/simulated` uses it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import VtpError
from pipeline.tasks import Formula, Task

SECONDS_PER_MINUTE = 60.0
STAY_PROBABILITY = 0.8
MAX_INVERTED_RATE = 50.0  # attempts per step up to which counts are found one by one
MAX_INVERTED_ERROR = 0.9


class Dynamics:
    """A task's simulator; VtpError if it has none."""

    def __init__(self, task: Task):
        simulator = task.simulator
        if simulator is None:
            raise VtpError(
                f"task {task.name} has no simulator, so the outcomes of its actions are unknown; add a `simulator` "
                "section to its file, see docs/tasks.md",
                code="task-no-simulator",
            )
        self.task = task
        self.min_attempts = simulator.min_attempts
        rows = [{**simulator.constants, **simulator.contexts.get(name, {})} for name in task.contexts]
        names = {name for row in rows for name in row}
        self._attempts, self._errors = (
            Formula(text, names | set(task.actions))
            for text in (simulator.attempts_per_minute, simulator.error_probability)
        )
        # The formulas do not use parameters that some contexts lack.
        self._parameters = {
            name: np.array([row[name] for row in rows]) for name in names if all(name in row for row in rows)
        }

    def __call__(
        self, context: int | np.ndarray, actions: np.ndarray, step_s: ArrayLike | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean attempts per step, before the minimum, and error probability per attempt; both broadcast.

        context: integers in [0, K). actions: [..., A] in the task's units. step_s: seconds per step (default: the
        task's).
        """
        actions = np.asarray(actions, float)
        if step_s is None:
            step_s = self.step_s
        if len(self.task.contexts) == 1:
            values = {name: column[0] for name, column in self._parameters.items()}
        else:
            values = {name: column[context] for name, column in self._parameters.items()}
        values |= {name: actions[..., index] for index, name in enumerate(self.task.actions)}
        rate = np.maximum(self._attempts(values), 0.0) * (np.asarray(step_s) / SECONDS_PER_MINUTE)
        return rate, np.clip(self._errors(values), 0.0, 1.0)

    @property
    def step_s(self) -> float:
        """Seconds per simulated step; VtpError if the task leaves the length to the clips."""
        if self.task.step_s is None:
            raise VtpError(
                f"task {self.task.name} has no step_s (seconds per simulated step); add it to its file",
                code="task-no-step-s",
            )
        return self.task.step_s

    def expected_attempts(self, rate: ArrayLike) -> np.ndarray:
        """E[max(m, Poisson(rate))] for m = min_attempts, 0 or 1: rate + m · e^(−rate)."""
        rate = np.asarray(rate, float)
        return rate + np.exp(-rate) if self.min_attempts else rate

    def sample(
        self,
        rate: float | np.ndarray,
        p_err: float | np.ndarray,
        rng: np.random.Generator,
        size: tuple[int, ...] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sampled (attempts, errors) of one step: max(m, Poisson(rate)) and Binomial(attempts, p_err)."""
        attempts = np.maximum(rng.poisson(rate, size), self.min_attempts)
        return attempts, rng.binomial(attempts, p_err)

    def sample_coupled(
        self, rate: np.ndarray, p_err: np.ndarray, rng: np.random.Generator, draws: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """(attempts, errors) [draws, N] with the distribution of `sample`, by inversion; rate and p_err are [N].

        Each draw uses one uniform number for attempts and one for errors. With equal generators, similar actions get
        similar outcomes (common random numbers), so comparing similar policies takes far fewer draws.
        """
        uniform = rng.random((2, draws, len(rate)))
        if rate.max(initial=0) > MAX_INVERTED_RATE or p_err.max(initial=0) > MAX_INVERTED_ERROR:
            import scipy.stats  # takes half a second

            attempts = np.maximum(scipy.stats.poisson.ppf(uniform[0], rate), self.min_attempts).astype(np.int64)
            return attempts, np.maximum(scipy.stats.binom.ppf(uniform[1], attempts, p_err), 0).astype(np.int64)
        attempts = np.maximum(_invert(uniform[0], np.exp(-rate), lambda k: rate / k), self.min_attempts)
        odds = p_err / (1 - p_err)
        errors = _invert(uniform[1], (1 - p_err) ** attempts, lambda k: odds * (attempts - k + 1) / k)
        return attempts, np.minimum(errors, attempts)  # rounding can give one error too many


def _invert(uniform: np.ndarray, first: np.ndarray, ratio: Callable[[int], np.ndarray]) -> np.ndarray:
    """Counts at which a cumulative distribution reaches `uniform`: p(0) is `first`, p(k) is ratio(k) · p(k − 1)."""
    count, k = np.zeros(uniform.shape, np.int64), 0
    mass = total = np.broadcast_to(first, uniform.shape)
    while (beyond := (uniform > total) & (mass > 0)).any():
        count += beyond
        k += 1
        mass = mass * ratio(k)
        total = total + mass
    return count


def initial_context(num_contexts: int, num_envs: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform contexts [num_envs], the chain's stationary distribution."""
    return rng.integers(num_contexts, size=num_envs)


def next_context(num_contexts: int, context: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One step of the Markov chain: stay with probability 0.8, else move to another context, all equally likely."""
    if num_contexts == 1:
        return context
    moved = (context + rng.integers(1, num_contexts, size=context.shape)) % num_contexts
    return np.where(rng.random(context.shape) < STAY_PROBABILITY, context, moved)
