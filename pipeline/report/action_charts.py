"""Every action of validation, a chart a context: two actions as dots in their plane, one as how often it was chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.report import figures
from pipeline.report.figures import Chart, Plane
from pipeline.report.summary_figures import SHOWN, ActionAxis, ContextFigures, largest
from pipeline.report.words import number_tick

ACTIONS_SHOWN = 400  # dots a chart; the download has more


@dataclass(frozen=True)
class ActionCharts:
    """The charts, how to read them, and whether they are dots in a plane."""

    charts: list[Chart]
    says: str
    in_plane: bool


def action_charts(validation: pd.DataFrame, contexts: list[ContextFigures], axes: list[ActionAxis]) -> ActionCharts:
    """A chart of every action for each of the largest contexts; none where the table lacks an action."""
    names = [axis.name for axis in axes]
    if not axes or not {"context", *names} <= set(validation.columns):
        return ActionCharts([], "", False)
    numbers = validation[names].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    table = validation.assign(**{name: numbers[name] for name in names}).dropna(subset=names)
    by_context = {str(name): steps for name, steps in table.groupby(table["context"].astype(str), sort=False)}
    charts = [
        _chart(context, by_context[context.name], axes, f"actions-{number}.csv")
        for number, context in enumerate((c for c in largest(contexts) if c.name in by_context), start=1)
    ]
    return ActionCharts(charts, _says(axes, len(contexts)), len(axes) > 1)


def _chart(context: ContextFigures, steps: pd.DataFrame, axes: list[ActionAxis], file: str) -> Chart:
    download = figures.csv_download(file, steps)
    oracle = [context.oracle_actions.get(axis.name) for axis in axes]
    known = [axis for axis, value in zip(axes, oracle, strict=True) if value is not None]
    means = ", ".join(f"mean {axis.label} {axis.text(float(steps[axis.name].mean()))}" for axis in axes)
    summary = f"{context.title}: {len(steps)} actions, {means}"
    if known:
        summary += "; the oracle’s " + ", ".join(
            f"{axis.label} {axis.text(context.oracle_actions[axis.name])}" for axis in known
        )
    if len(axes) == 1:
        return figures.histogram(
            context.title,
            axes[0].at(steps[axes[0].name].to_numpy()),
            _axis(axes[0]),
            mark=None if oracle[0] is None else float(axes[0].at(oracle[0])),
            summary=f"{summary}.",
            x_label=axes[0].label,
            download=download,
        )
    x, y = axes[:2]
    shown = steps.iloc[:: -(-len(steps) // ACTIONS_SHOWN)]
    ring = None
    if oracle[0] is not None and oracle[1] is not None:
        ring = (float(x.at(oracle[0])), float(y.at(oracle[1])))
    return figures.plane_chart(
        context.title,
        x.at(shown[x.name].to_numpy()),
        y.at(shown[y.name].to_numpy()),
        Plane(_axis(x), _axis(y)),
        ring=ring,
        summary=f"{summary}.",
        x_label=f"{x.label} →, {y.label} ↑",
        download=download,
    )


def _axis(axis: ActionAxis) -> list[tuple[float, str]]:
    """(percent of the axis, label) of its ends and its middle."""
    middle = (axis.low + axis.high) / 2
    return [(float(axis.at(value)), number_tick(value)) for value in (axis.low, middle, axis.high)]


def _says(axes: list[ActionAxis], num_contexts: int) -> str:
    if len(axes) == 1:
        says = (
            f"{axes[0].title} runs to the right; a bar is the share of actions that lie there. A narrow hill on the "
            "oracle’s line means that the policy knows this kind of work and acts on it; a wide or shifted one, that "
            "it is unsure or takes it for another."
        )
    else:
        says = (
            f"{axes[0].title} runs to the right, {axes[1].label} upwards. A tight cloud on the ring means that the "
            "policy knows this kind of work and acts on it; a wide or shifted one, that it is unsure or takes it for "
            "another."
        )
    if len(axes) > 2:
        says += (
            f" Of {len(axes)} actions, these are the task’s first two, {axes[0].label} and {axes[1].label}; each "
            "chart’s data have all."
        )
    if num_contexts > SHOWN:
        says += f" Of {num_contexts} contexts the {SHOWN} with the largest share of the work are drawn."
    return says
