"""Charts of all validation actions, one per context: a scatter plot of two actions, or a histogram of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.report import figures
from pipeline.report.figures import Chart
from pipeline.report.summary_figures import SHOWN, ActionAxis, ContextFigures, largest
from pipeline.report.words import count

ACTIONS_SHOWN = 400  # dots per chart; the download has more


@dataclass(frozen=True)
class ActionCharts:
    """The charts, how to read them, whether they are scatter plots, and their distance from the optimum in words."""

    charts: list[Chart]
    says: str
    in_plane: bool
    answer: str


def action_charts(validation: pd.DataFrame, contexts: list[ContextFigures], axes: list[ActionAxis]) -> ActionCharts:
    """A chart of all actions for each of the largest contexts; none if the table lacks an action."""
    names = [axis.name for axis in axes]
    if not axes or not {"context", *names} <= set(validation.columns):
        return ActionCharts([], "", False, "")
    numbers = validation[names].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    table = validation.assign(**{name: numbers[name] for name in names}).dropna(subset=names)
    by_context = {str(name): steps for name, steps in table.groupby(table["context"].astype(str), sort=False)}
    charts = [
        _chart(context, by_context[context.name], axes, f"actions-{number}.csv")
        for number, context in enumerate((c for c in largest(contexts) if c.name in by_context), start=1)
    ]
    return ActionCharts(charts, _says(axes, len(contexts)), len(axes) > 1, _answer(len(table), contexts, axes))


def _answer(num_actions: int, contexts: list[ContextFigures], axes: list[ActionAxis]) -> str:
    """The number of actions, and the context whose mean action is farthest from the optimum."""
    says = f"{count(num_actions, 'action')} in {count(len(contexts), 'context')}."
    off = [
        (abs(float(axis.at(policy)) - float(axis.at(optimum))), context, axis, policy, optimum)
        for context in contexts
        for axis in axes
        if (policy := context.actions.get(axis.name)) is not None
        and (optimum := context.optimum_actions.get(axis.name)) is not None
    ]
    if not off:
        return says
    _, context, axis, policy, optimum = max(off, key=lambda one: one[0])
    of = "" if context.title != context.name else f" of {context.name}"
    return (
        f"{says} Farthest from the optimum is the mean {axis.label}{of}: {axis.text(policy)} where "
        f"{axis.text(optimum)} is best."
    )


def _chart(context: ContextFigures, steps: pd.DataFrame, axes: list[ActionAxis], file: str) -> Chart:
    download = figures.csv_download(file, steps)
    best = [context.optimum_actions.get(axis.name) for axis in axes]
    known = [axis for axis, value in zip(axes, best, strict=True) if value is not None]
    means = ", ".join(f"mean {axis.label} {axis.text(float(steps[axis.name].mean()))}" for axis in axes)
    summary = f"{context.title}: {len(steps)} actions, {means}"
    if known:
        summary += "; optimum " + ", ".join(
            f"{axis.label} {axis.text(context.optimum_actions[axis.name])}" for axis in known
        )
    if len(axes) == 1:
        return figures.histogram(
            context.title,
            [("policy", _within(steps, axes[0]))],
            axes[0].axis(),
            mark=best[0],
            y_label="share of actions, %",
            summary=f"{summary}.",
            download=download,
        )
    x, y = axes[:2]
    shown = steps.iloc[:: -(-len(steps) // ACTIONS_SHOWN)]
    return figures.plane_chart(
        context.title,
        (_within(shown, x), _within(shown, y)),
        (x.axis(), y.axis()),
        ring=None if best[0] is None or best[1] is None else (best[0], best[1]),
        summary=f"{summary}.",
        download=download,
    )


def _within(steps: pd.DataFrame, axis: ActionAxis) -> np.ndarray:
    return np.clip(steps[axis.name].to_numpy(), axis.low, axis.high)


def _says(axes: list[ActionAxis], num_contexts: int) -> str:
    if len(axes) == 1:
        says = (
            f"{axes[0].title} runs to the right; a bar is the share of actions that lie there. A narrow hill on the "
            "optimum’s line means that the policy recognises this context and acts on it; a wide or shifted one, that "
            "it is unsure or takes it for another."
        )
    else:
        says = (
            f"{axes[0].title} runs to the right, {axes[1].label} upwards. A tight cloud on the ring means that the "
            "policy recognises this context and acts on it; a wide or shifted one, that it is unsure or takes it for "
            "another."
        )
    says += " Actions are in the task’s own units."
    if len(axes) > 2:
        says += (
            f" Of {len(axes)} actions, these are the task’s first two, {axes[0].label} and {axes[1].label}; each "
            "chart’s data have all."
        )
    if num_contexts > SHOWN:
        says += f" Of {num_contexts} contexts the {SHOWN} with the largest share of the work are drawn."
    return says
