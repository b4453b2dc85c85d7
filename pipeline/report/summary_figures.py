"""Actions and contexts of a summary, read tolerantly: a summary of an earlier version has less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.figures import MARGIN, Axis
from pipeline.report.words import number, number_tick
from pipeline.tasks.task import UNNAMED

SHOWN = 8  # contexts with their own card and chart; tables have all


@dataclass(frozen=True)
class ActionAxis:
    """An action of the task on an axis over its bounds."""

    name: str
    low: float
    high: float

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")

    @property
    def title(self) -> str:
        return capitalised(self.label)

    @property
    def span(self) -> str:
        return f"{number_tick(self.low)} to {number_tick(self.high)}"

    def axis(self, margin: float = MARGIN) -> Axis:
        """The axis of a chart, with ticks at its ends and in the middle."""
        ticks = [(value, number_tick(value)) for value in (self.low, (self.low + self.high) / 2, self.high)]
        return Axis(self.label, self.low, self.high, ticks, margin=margin)

    def text(self, value: float | None) -> str:
        """The value as text, rounded to about a hundredth of the action's range."""
        return number(value, min(max(2 - math.floor(math.log10(self.high - self.low)), 0), 6))

    def at(self, value: float | np.ndarray) -> np.ndarray:
        """The position of values in percent of the axis; values outside are at its ends."""
        return 100 * np.clip((np.asarray(value, float) - self.low) / (self.high - self.low), 0.0, 1.0)


@dataclass(frozen=True)
class ContextFigures:
    """A policy's actions and profits in a context, in $/h; unknown ones are None or absent."""

    name: str
    title: str
    share: float | None
    actions: dict[str, float | None]
    optimum_actions: dict[str, float | None]
    profit: float | None
    optimum_profit: float | None
    blind_profit: float | None
    err: float | None


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def finite(value: Any) -> float | None:
    """`value` as a float; None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def finite_values(value: Any) -> dict[str, float | None]:
    """The numbers of a mapping by name, None for what is not finite; empty if `value` is not a mapping."""
    return {str(name): finite(x) for name, x in value.items()} if isinstance(value, dict) else {}


def read_axes(summary: dict[str, Any]) -> list[ActionAxis]:
    """The task's actions in its order; none if the summary lacks one of them or its bounds."""
    named = summary.get("actions")
    axes = []
    for name, bounds in named.items() if isinstance(named, dict) else ():
        low, high = map(finite, bounds) if isinstance(bounds, list) and len(bounds) == 2 else (None, None)
        if low is None or high is None or not low < high:
            return []
        axes.append(ActionAxis(str(name), low, high))
    return axes


def share_bounds(axes: Sequence[ActionAxis]) -> bool:
    return len({(axis.low, axis.high) for axis in axes}) == 1


def read_contexts(summary: dict[str, Any]) -> list[ContextFigures]:
    """The contexts that validation met, in the order of the summary."""
    value = summary.get("contexts")
    named = {str(name): row for name, row in value.items() if isinstance(row, dict)} if isinstance(value, dict) else {}
    return [
        ContextFigures(
            name,
            title_of(name, named),
            *(finite(row.get("share")), finite_values(row.get("actions")), finite_values(row.get("oracle_actions"))),
            *(finite(row.get(key)) for key in ("profit", "oracle_profit", "blind_profit", "err")),
        )
        for name, row in named.items()
    ]


def title_of(name: str, all_names: Sequence[str] | dict[str, Any]) -> str:
    """The name of a context on the page; the only context of a task without named contexts is called all work."""
    return "All work" if list(all_names) == [UNNAMED] else name


def largest(contexts: list[ContextFigures]) -> list[ContextFigures]:
    """The contexts to draw: all if they are few, else those with the largest share, the largest first."""
    if len(contexts) <= SHOWN:
        return contexts
    return sorted(contexts, key=lambda context: -(context.share or 0.0))[:SHOWN]
