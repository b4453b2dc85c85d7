"""Logged steps: what was done on a clip and what came of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.errors import VtpError
from pipeline.tasks import Task


class LoggedSteps(NamedTuple):
    """n steps whose action and outcome were logged; steps of a video may depend on each other.

    propensity: the density, per unit of each action, with which the action was chosen; if an action is clipped to a
    bound, the probability of the bound replaces its density. None if it was not logged.
    """

    rows: np.ndarray  # [n] clips of the data set
    context: np.ndarray  # [n] index into the task's contexts
    actions: np.ndarray  # [n, A] in the task's units
    attempts: np.ndarray  # [n]
    errors: np.ndarray  # [n]
    video: np.ndarray  # [n] index of the video
    propensity: np.ndarray | None = None  # [n]

    @property
    def num_steps(self) -> int:
        return len(self.rows)

    @property
    def num_videos(self) -> int:
        return len(np.unique(self.video))

    def take(self, which: np.ndarray) -> LoggedSteps:
        """The steps that an index or a mask selects."""
        return LoggedSteps(
            self.rows[which],
            self.context[which],
            self.actions[which],
            self.attempts[which],
            self.errors[which],
            self.video[which],
            None if self.propensity is None else self.propensity[which],
        )

    def with_others(self, others: LoggedSteps) -> LoggedSteps:
        """These steps, then the others; propensities only if both have them."""
        columns = {
            name: np.concatenate([mine, getattr(others, name)])
            for name, mine in self._asdict().items()
            if mine is not None and getattr(others, name) is not None
        }
        return LoggedSteps(**columns)

    def check_learnable(self) -> None:
        """VtpError if these steps are too few to learn outcomes from."""
        if self.num_videos < 2:
            raise VtpError(
                f"the number of logged videos ({self.num_videos}) is below 2, and steps of one video depend on each "
                "other; log more videos, or use --outcomes simulator if the task has one",
                code="logs-too-few-videos",
            )
        if not (self.attempts > 0).any():
            raise VtpError(
                f"none of {self.num_steps:,} logged steps has an attempt, so error rates are unknown; log steps with "
                "attempts",
                code="logs-no-attempts",
            )

    def tells_nothing(self) -> str | None:
        """Why the outcomes of these steps do not distinguish actions, for messages; None if they do."""
        if (self.errors == self.attempts).all():
            return f"all {self.attempts.sum():,.0f} logged attempts are errors, so nothing shows what avoids them"
        brought = np.column_stack([self.context, self.attempts, self.errors])
        if len(np.unique(brought, axis=0)) == len(np.unique(self.context)) < self.num_steps:
            return (
                f"every logged step of a context has the same attempts and errors (such as {self.attempts[0]:g} and "
                f"{self.errors[0]:g}), so the logs show no effect of actions"
            )
        return None

    def check(self, task: Task) -> None:
        """VtpError if an action, a context or a propensity is not valid in the task."""
        shape = (self.num_steps, task.num_actions)
        if self.actions.shape != shape:
            raise VtpError(
                f"logged actions have shape {self.actions.shape}, not {shape}; give each of the {task.num_actions} "
                f"actions of task {task.name} for each step",
                code="logs-other-shape",
            )
        is_outside = ~((self.actions >= task.low) & (self.actions <= task.high))  # NaN is outside too
        if is_outside.any():
            step, action = np.argwhere(is_outside)[0]
            name = list(task.actions)[action]
            raise VtpError(
                f"step {step} has {name} {self.actions[step, action]:g}, outside [{task.low[action]:g}, "
                f"{task.high[action]:g}]; correct the logs or leave the step out",
                code="logs-action-outside",
            )
        is_unknown = (self.context < 0) | (self.context >= len(task.contexts))
        if is_unknown.any():
            raise VtpError(
                f"step {int(np.argmax(is_unknown))} has a context that is not one of the {len(task.contexts)} of task "
                f"{task.name}; leave out steps without one",
                code="logs-unknown-context",
            )
        if self.propensity is not None:
            is_bad = ~(np.isfinite(self.propensity) & (self.propensity > 0))
            if is_bad.any():
                step = int(np.argmax(is_bad))
                raise VtpError(
                    f"step {step} has propensity {self.propensity[step]:g}; a density is finite and above 0: correct "
                    "it, or leave propensities out to have them estimated",
                    code="logs-bad-propensity",
                )
