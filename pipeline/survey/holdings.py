"""The logs of a context: steps, attempts, errors, profit, and the distribution of their actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline import econ
from pipeline.outcomes import LoggedSteps, Terms
from pipeline.survey.action_cells import CoverageMap, cells_of, coverage_maps
from pipeline.tasks import SECONDS_PER_HOUR, Task


@dataclass(frozen=True)
class Logged:
    """Logged values of an action, in its unit."""

    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Holdings:
    """What was logged of a context, or of all work.

    clips: all clips of the context, logged or not; share: their share of the data set. error_rate: per attempt, None
    without an attempt. profit_usd_per_hour: actual profit of the logged steps, None without a step. cells: of the box
    of actions; cells_logged: those with at least one step.
    """

    clips: int
    share: float
    steps: int
    videos: int
    attempts: int
    errors: int
    error_rate: float | None
    profit_usd_per_hour: float | None
    actions: dict[str, Logged]
    cells: int
    cells_logged: int
    coverage: tuple[CoverageMap, ...]


def holdings(task: Task, steps: LoggedSteps, terms: Terms, *, clips: int, all_clips: int) -> Holdings:
    """Summarise steps [n] at their prices `terms` [n]. clips: number of clips that could have been logged."""
    attempts, errors = float(steps.attempts.sum()), float(steps.errors.sum())
    unit = task.to_unit(steps.actions)
    counts = cells_of(task.num_actions).counts(unit)
    profit = None
    if steps.num_steps:
        value = econ.step_value(steps.attempts, steps.errors, terms.price_usd, terms.damage_usd).sum()
        profit = float(value / (terms.step_s.sum() / SECONDS_PER_HOUR) - task.total_costs_usd_per_hour)
    return Holdings(
        clips=clips,
        share=clips / all_clips,
        steps=steps.num_steps,
        videos=steps.num_videos,
        attempts=int(attempts),
        errors=int(errors),
        error_rate=errors / attempts if attempts else None,
        profit_usd_per_hour=profit,
        actions={
            name: Logged(float(values.mean()), float(values.std()), float(values.min()), float(values.max()))
            for name, values in zip(task.actions, steps.actions.T, strict=True)
            if len(values)
        },
        cells=len(counts),
        cells_logged=int(np.count_nonzero(counts)),
        coverage=coverage_maps(task, unit),
    )
