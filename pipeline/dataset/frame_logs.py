"""Logs of data sets that have a value per frame: a clip's labels are made of the frames that it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.dataset.labels import logs_of
from pipeline.dataset.logs import Logs
from pipeline.errors import VtpError
from pipeline.tasks import Task

ROUNDING = 1e-6  # of the range of an action, which is recorded in 32 bits

_REDUCE: dict[str, Callable[[np.ndarray], float | str]] = {
    "mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min, "first": lambda v: v[0], "last": lambda v: v[-1],
}  # fmt: skip


@dataclass(frozen=True)
class FrameLogs:
    """The values of an episode's frames by label, and texts by label of its steps, which win over these.

    where: what it is called in errors.
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

    def of_clips(self, start_s: np.ndarray, end_s: np.ndarray, task: Task) -> Logs:
        """The logs of clips that show [start_s, end_s) since the episode's start; VtpError where a value cannot be."""
        if self.num_steps not in (None, len(start_s)):
            raise VtpError(
                f"{self.where} have {self.num_steps} steps and the video {len(start_s)} clips; use the clip settings "
                "that the labels were made for",
                code="labels-step",
            )
        if self.values and len(start_s) and self.fps * start_s[-1] > self._num_frames + 1:
            raise VtpError(
                f"{self.where} end after {self._num_frames / self.fps:.2f} s and the video shows a clip from "
                f"{start_s[-1]:.2f} s on; give both one length and one number of frames a second",
                code="labels-step",
            )
        columns = {"step": [str(step) for step in range(len(start_s))]}
        frames = list(zip(*self._frames(start_s, end_s), strict=True))
        for name, values in self.values.items():
            reduced = [_REDUCE[self.reduce[name]](values[first:end]) for first, end in frames]
            if name in task.actions:
                reduced = _rounded_into(reduced, task, name)
            columns[name] = ["" if value != value else str(value) for value in reduced]  # NaN is unknown
        if "successes" in columns:
            successes = columns.pop("successes")
            pairs = zip(columns["attempts"], successes, strict=True)
            columns["errors"] = [str(float(tried) - float(done)) if tried and done else "" for tried, done in pairs]
            if any(number.startswith("-") for number in columns["errors"]):
                raise VtpError(
                    f"{self.where} have more successes than attempts in a clip; correct the task's columns",
                    code="labels-more-successes-than-attempts",
                )
        return logs_of(columns | {name: list(texts) for name, texts in self.steps.items()}, task, self.where)

    def check(self, start_s: np.ndarray, end_s: np.ndarray, task: Task) -> list[Logs]:
        """The logs that are known before the clips are: of frames, if these will be the clips, and of steps.

        VtpError as in `of_clips`.
        """
        found = []
        if self.values:
            found.append(replace(self, steps={}).of_clips(start_s, end_s, task))
        if self.steps:
            found.append(logs_of({name: list(texts) for name, texts in self.steps.items()}, task, self.where))
        return found

    def num_unseen(self, name: str, start_s: np.ndarray, end_s: np.ndarray) -> int:
        """Frames with a value other than zero that none of the clips shows."""
        if name not in self.values or name in self.steps:
            return 0
        unseen = self.values[name] != 0
        for first, end in zip(*self._frames(start_s, end_s), strict=True):
            unseen[first:end] = False
        return int(unseen.sum())

    @property
    def _num_frames(self) -> int:
        return min(len(values) for values in self.values.values()) if self.values else 1

    def _frames(self, start_s: np.ndarray, end_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frames [first, end) that each clip shows; one at least."""
        num_frames = self._num_frames
        first = np.clip(np.floor(start_s * self.fps + 0.5).astype(int), 0, num_frames - 1)
        return first, np.clip(np.floor(end_s * self.fps + 0.5).astype(int), first + 1, num_frames)


def _rounded_into(values: list[float | str], task: Task, name: str) -> list[float | str]:
    """Values beyond a bound by no more than rounding are at the bound."""
    low, high = task.actions[name].low, task.actions[name].high
    slack = ROUNDING * max(abs(low), abs(high), high - low)
    inside = np.clip(np.asarray(values, float), low, high)
    is_near = np.abs(inside - np.asarray(values, float)) <= slack
    return np.where(is_near, inside, np.asarray(values, float)).tolist()
