"""Logs of data sets with one value per frame: a clip's labels are computed from the frames that it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.labels import logs_of, number_of
from pipeline.dataset.logs import Logs
from pipeline.errors import VtpError
from pipeline.tasks import Task

ROUNDING = 1e-6  # of the range of an action, which is recorded in 32 bits

_REDUCE: dict[str, Callable[[np.ndarray], float | str]] = {
    "mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min, "first": lambda v: v[0], "last": lambda v: v[-1],
}  # fmt: skip


@dataclass(frozen=True)
class FrameLogs:
    """The values of an episode's frames by label, and the texts of its steps by label, which override them.

    where: its name in errors.
    """

    where: str
    fps: float
    values: Mapping[str, np.ndarray]  # [F] each
    reduce: Mapping[str, str]
    steps: Mapping[str, list[str]]  # [clips] each, or none

    @property
    def num_steps(self) -> int | None:
        """Number of clips that the steps label; None if no step is labelled."""
        return len(self.steps["step"]) if self.steps else None

    @property
    def num_frames(self) -> int:
        """Number of frames that have values; 0 if none has."""
        return min((len(values) for values in self.values.values()), default=0)

    def of_clips(self, start_s: np.ndarray, end_s: np.ndarray, task: Task) -> Logs:
        """The logs of clips that show [start_s, end_s) since the episode's start; VtpError if a value is invalid."""
        if self.num_steps not in (None, len(start_s)):
            raise VtpError(
                f"{self.where} have {self.num_steps} steps and the video {len(start_s)} clips; use the clip settings "
                "that the labels were made for",
                code="labels-step",
            )
        columns = {"step": [str(step) for step in range(len(start_s))]}
        frames = list(zip(*self._frames(start_s, end_s), strict=True))
        for name, values in self.values.items():
            reduce = _REDUCE[self.reduce[name]]
            reduced = [reduce(values[first:end]) if first < end else math.nan for first, end in frames]
            if name in task.actions:
                reduced = _rounded_into(reduced, task, name)
            columns[name] = ["" if value != value else str(value) for value in reduced]  # NaN is unknown
        columns |= self._sorted_steps()
        successes = columns.pop("successes", None)
        if successes is not None and "errors" not in columns:
            pairs = zip(columns["attempts"], successes, strict=True)
            errors = [number_of(tried) - number_of(done) for tried, done in pairs]
            if any(number < 0 for number in errors):
                raise VtpError(
                    f"{self.where} have more successes than attempts in a clip; correct the task's columns",
                    code="labels-more-successes-than-attempts",
                )
            columns["errors"] = ["" if number != number else str(number) for number in errors]
        return logs_of(columns, task, self.where)

    def _sorted_steps(self) -> dict[str, list[str]]:
        """The steps' texts in order of step, like clips; other texts are rejected by the check of labels."""
        numbers = np.array([number_of(text) for text in self.steps.get("step", [])])
        order = np.argsort(numbers, kind="stable")
        return {name: [texts[row] for row in order] for name, texts in self.steps.items()}

    def check(self, start_s: np.ndarray, end_s: np.ndarray, task: Task) -> list[Logs]:
        """The logs known before decoding: all if these will be the clips, else only those of the steps.

        Empty without a clip. VtpError as in `of_clips`.
        """
        if self.num_steps not in (None, len(start_s)):
            return [logs_of(self._sorted_steps(), task, self.where)]
        return [self.of_clips(start_s, end_s, task)] if len(start_s) else []

    def num_unseen(self, name: str, start_s: np.ndarray, end_s: np.ndarray) -> int:
        """Number of frames with a known value other than zero that no clip shows."""
        if name not in self.values or name in self.steps:
            return 0
        unseen = np.nan_to_num(self.values[name]) != 0
        for first, end in zip(*self._frames(start_s, end_s), strict=True):
            unseen[first:end] = False
        return int(unseen.sum())

    def _frames(self, start_s: np.ndarray, end_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frames [first, end) that each clip shows: at least one, but none if it starts after the last frame."""
        first, end = (np.floor(times_s * self.fps + 0.5).astype(int) for times_s in (start_s, end_s))
        is_there = start_s * self.fps < self.num_frames - 1e-6
        first = np.where(is_there, np.minimum(first, self.num_frames - 1), self.num_frames)
        return first, np.minimum(np.maximum(end, first + 1), self.num_frames)


def _rounded_into(values: list[float | str], task: Task, name: str) -> list[float | str]:
    """Set values beyond a bound by no more than rounding to the bound."""
    low, high = task.actions[name].low, task.actions[name].high
    slack = ROUNDING * max(abs(low), abs(high), high - low)
    inside = np.clip(np.asarray(values, float), low, high)
    is_near = np.abs(inside - np.asarray(values, float)) <= slack
    return np.where(is_near, inside, np.asarray(values, float)).tolist()
