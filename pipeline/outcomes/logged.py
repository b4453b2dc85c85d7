"""Logged steps: what was done on a clip and what came of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.errors import VtpError
from pipeline.tasks import Task


class LoggedSteps(NamedTuple):
    """n steps whose action and outcome were logged; those of a video may depend on each other.

    propensity: the density, per unit of each action, with which the action was chosen; where an action is cut at a
    bound, the probability of the bound takes the place of its density. None where it was not logged.
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
        """Those of the steps that an index or a mask names."""
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
        """These steps, then the others; propensities only where both have them."""
        columns = {
            name: np.concatenate([mine, getattr(others, name)])
            for name, mine in self._asdict().items()
            if mine is not None and getattr(others, name) is not None
        }
        return LoggedSteps(**columns)

    def check_learnable(self) -> None:
        """VtpError where these steps are too few to learn what actions bring."""
        if self.num_videos < 2:
            raise VtpError(
                f"{self.num_videos} logged videos cannot tell chance from cause, as the steps of one hang together; "
                "log two at least, or use --outcomes simulator if the task has one",
                code="logs-too-few-videos",
            )
        if not (self.attempts > 0).any():
            raise VtpError(
                f"none of {self.num_steps:,} logged steps has an attempt, so nothing tells how often attempts are "
                "errors; log steps with attempts",
                code="logs-no-attempts",
            )

    def tells_nothing(self) -> str | None:
        """Why what came of these steps cannot tell one action from another, for messages; None where it can."""
        if (self.errors == self.attempts).all():
            return f"all {self.attempts.sum():,.0f} logged attempts are errors, so nothing tells what avoids them"
        brought = np.column_stack([self.context, self.attempts, self.errors])
        if len(np.unique(brought, axis=0)) == len(np.unique(self.context)) < self.num_steps:
            return (
                f"every logged step of a context has the same attempts and errors (such as {self.attempts[0]:g} and "
                f"{self.errors[0]:g}), so nothing tells what actions change"
            )
        return None

    def check(self, task: Task) -> None:
        """VtpError where an action, a context or a propensity cannot be one of the task."""
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
                f"step {int(np.argmax(is_unknown))} has a context that is none of the {len(task.contexts)} of task "
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
