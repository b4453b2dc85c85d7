"""Logs of simulated demonstrations without video: actions and outcomes of each step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.outcomes.logged import LoggedSteps
from pipeline.outcomes.logging_policy import LoggingPolicy
from pipeline.outcomes.simulated import SimulatedOutcomes
from pipeline.tasks import Task


class SimulatedLogs(NamedTuple):
    """Logs of V videos of S steps each, in a task of A actions."""

    context: np.ndarray  # [V, S] int64, numbers of the task's contexts
    actions: np.ndarray  # [V, S, A] float64, in the task's units
    attempts: np.ndarray  # [V, S] int64
    errors: np.ndarray  # [V, S] int64
    propensity: np.ndarray  # [V, S] float64, as `LoggingPolicy.propensity`

    def to_steps(self) -> LoggedSteps:
        """All V · S steps, video by video; their rows count them."""
        videos, steps = self.context.shape
        count = videos * steps
        return LoggedSteps(
            rows=np.arange(count),
            context=self.context.reshape(count),
            actions=self.actions.reshape(count, -1),
            attempts=self.attempts.reshape(count).astype(float),
            errors=self.errors.reshape(count).astype(float),
            video=np.repeat(np.arange(videos), steps),
            propensity=self.propensity.reshape(count),
        )


def simulate_logs(
    task: Task, policy: LoggingPolicy, *, videos: int, steps: int, rng: np.random.Generator
) -> SimulatedLogs:
    """Simulate one episode of `steps` steps per video, in which `policy` chooses the actions.

    VtpError if the task has no simulator, or no step_s.
    """
    model = SimulatedOutcomes(task)
    context = model.initial_rows(videos, rng)
    actions = policy.draw(context, rng)
    rows = []
    for _ in range(steps):
        outcomes = model.sample(context, actions, rng)
        rows.append((context, actions, outcomes.attempts, outcomes.errors))
        context = model.next_rows(context, rng)
        is_new = rng.random(videos) >= policy.hold_probability
        actions = actions.copy()
        actions[is_new] = policy.draw(context[is_new], rng)
    contexts, logged, attempts, errors = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    return SimulatedLogs(contexts, logged, attempts, errors, policy.propensity(contexts, logged))
