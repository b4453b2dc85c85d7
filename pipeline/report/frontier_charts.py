"""The frontier as charts: for each context the actions that meet the service level, over two actions or over one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures import (
    SIZE,
    Axis,
    Chart,
    Note,
    Series,
    Style,
    box_path,
    dots_path,
    line_chart,
    line_path,
    ring_paths,
    x_ticks,
    y_ticks,
)  # fmt: skip
from pipeline.report.summary_figures import ActionAxis
from pipeline.report.words import count, number_tick, percent_tick

MAX_PANELS = 9  # further contexts are only in the table
MARGIN = 0.03  # of an axis, so that points at its ends are not cut off
LINES = 4  # of equal output, and as many of equal error rate
APART = 14.0  # distance between labels if there is room, in percent of a chart
PLACES = (0.5, 0.3, 0.7, 0.15, 0.85)  # possible positions of a label on its line


def frontier_charts(result: dict[str, Any], table: pd.DataFrame) -> list[Chart]:
    """One chart per context, or two if only one action varies. table: a row per point and context."""
    names = list(table["context"].unique())[:MAX_PANELS]
    axes = [ActionAxis(name, *result["actions"][name]) for name in result["axes"]]
    charts = []
    for name in names:
        rows, own = table[table["context"] == name], result["contexts"].get(name, result)
        if len(axes) == 2:
            charts.append(_surface(str(name), rows, own, axes[0], axes[1]))
        else:
            charts += _lines(str(name), rows, own, axes[0])
    return charts


def _surface(name: str, rows: pd.DataFrame, own: dict[str, Any], first: ActionAxis, second: ActionAxis) -> Chart:
    """The actions that meet the service level, lines of equal output and of equal error rate, and two policies."""
    x, y = first.axis(MARGIN), second.axis(MARGIN)
    xs, ys = rows[first.name].unique(), rows[second.name].unique()

    def over_grid(column: str) -> np.ndarray:
        return rows[column].to_numpy(float).reshape(len(xs), len(ys)).T

    paths = [("feasible", _cells(over_grid("analytic_feasible") > 0, x, y, xs, ys))]
    marks = [own["optimum"], *([own["policy"]] if own.get("policy") else [])]
    places = [(float(x.at(one["actions"][first.name])), float(y.down(one["actions"][second.name]))) for one in marks]
    notes: list[Note] = []
    taken = [(across / 10, down / 10) for across, down in places]
    for column, text, style in (
        ("analytic_mp", number_tick, "policy"), ("analytic_err_rate", percent_tick, "human"),
    ):  # fmt: skip
        values = over_grid(column)
        if np.ptp(values) == 0:
            continue
        levels = MaxNLocator(LINES, steps=[1, 2, 2.5, 5, 10]).tick_values(values.min(), values.max())
        for level, segments in _contours(xs, ys, values, [one for one in levels if values.min() < one < values.max()]):
            drawn = [(x.at(segment[:, 0]), y.down(segment[:, 1])) for segment in segments]
            paths.append((f"level {style}", "".join(line_path(*one) for one in drawn)))
            at = _free_place(max(drawn, key=lambda one: len(one[0])), taken)
            notes.append(Note(*at, text(level), style))
            taken.append(at)
    sampled = over_grid("monte_carlo_feasible")
    if sampled.any() and not sampled.all():
        ((_, segments),) = _contours(xs, ys, sampled, [0.5])
        edge = "".join(line_path(x.at(one[:, 0]), y.down(one[:, 1])) for one in segments)
        paths.append(("level second dashed", edge))
    paths += ring_paths(*places[0])
    for across, down in places[1:]:
        paths.append(("policy-dot", dots_path(np.array([across]), np.array([down]))))
    return Chart(
        name,
        _counted(own),
        f"{name}: {_counted(own)}",
        paths,
        x_ticks(x),
        y_ticks(y),
        [],
        x.label,
        y.label,
        None,
        notes,
    )


def _counted(own: dict[str, Any]) -> str:
    counts = (own["analytic_count"], own["monte_carlo_count"])
    return (
        f"{count(counts[0], 'action')} (simulation: {counts[1]:,})"
        if counts[0] != counts[1]
        else count(counts[0], "action")
    )


def _cells(wanted: np.ndarray, x: Axis, y: Axis, xs: np.ndarray, ys: np.ndarray) -> str:
    """A box around each run of wanted points [y, x] in a column, with half a step on every side, within the bounds."""
    step = [(values[-1] - values[0]) / max(len(values) - 1, 1) / 2 for values in (xs, ys)]
    boxes = []
    for column, at in enumerate(xs):
        left, right = x.at(np.clip([at - step[0], at + step[0]], x.low, x.high))
        for start, end in stretches(wanted[:, column]):
            bottom, top = y.down(np.clip([ys[start] - step[1], ys[end] + step[1]], y.low, y.high))
            boxes.append(box_path(left, right, top, bottom))
    return "".join(boxes)


def _contours(
    xs: np.ndarray, ys: np.ndarray, values: np.ndarray, levels: Sequence[float]
) -> Iterable[tuple[float, list[np.ndarray]]]:
    """Each level with its lines [n, 2] where values [y, x] cross it; levels that are never crossed are left out."""
    if not len(levels):
        return []
    found = Figure().subplots().contour(xs, ys, values, levels=levels)
    lines = ([one for one in segments if len(one) > 1] for segments in found.allsegs)
    return [(float(level), segments) for level, segments in zip(levels, lines, strict=True) if segments]


def _free_place(line: tuple[np.ndarray, np.ndarray], taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The first position on the line, in percent, that is far enough from those taken, else the farthest."""
    places = []
    for part in PLACES:
        index = int(part * (len(line[0]) - 1))
        x, y = (float(np.clip(axis[index] / 10, 6, 94)) for axis in line)
        distance = min((max(abs(x - other_x), 2 * abs(y - other_y)) for other_x, other_y in taken), default=100.0)
        if distance >= APART:
            return x, y
        places.append((distance, (x, y)))
    return max(places)[1]


def _lines(name: str, rows: pd.DataFrame, own: dict[str, Any], action: ActionAxis) -> list[Chart]:
    """Output and error rate over one action, expected and (dashed) sampled; actions that meet the level are shaded."""
    axis = action.axis(MARGIN)
    x = rows[action.name].to_numpy(float)
    half = (x[1] - x[0]) / 2
    shaded = ""
    for start, end in stretches(rows["analytic_feasible"].to_numpy() > 0):
        left, right = axis.at(np.clip([x[start] - half, x[end] + half], axis.low, axis.high))
        shaded += box_path(left, right, 0, SIZE)
    best, chosen = own["optimum"]["actions"][action.name], (own.get("policy") or {}).get("actions")
    marks = [("ref optimum mark", f"M{float(axis.at(best)):.0f} 0V{SIZE}")]
    if chosen:
        marks.append(("ref policy mark", f"M{float(axis.at(chosen[action.name])):.0f} 0V{SIZE}"))
    quantities: tuple[tuple[str, str, Any, Style], ...] = (
        ("mp", "good units an hour", number_tick, "policy"),
        ("err_rate", "errors, % of attempts", percent_tick, "human"),
    )  # fmt: skip
    return [
        line_chart(
            name,
            [
                Series("", x, rows[f"monte_carlo_{key}"].to_numpy(float), style, is_dashed=True),
                Series("", x, rows[f"analytic_{key}"].to_numpy(float), style),
            ],
            x=axis,
            y_label=y_label,
            y_text=text,
            caption=_counted(own),
            summary=f"{name}: {y_label} over {action.label}",
            include=(0.0,),
            behind=[("feasible", shaded), *marks],
        )
        for key, y_label, text, style in quantities
    ]


def stretches(wanted: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of true values [n]."""
    changes = np.diff(np.concatenate([[0], wanted.astype(int), [0]]))
    return list(zip(np.flatnonzero(changes == 1).tolist(), (np.flatnonzero(changes == -1) - 1).tolist(), strict=True))
