"""The figure of the frontier: one panel per context, over one or two actions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.experiments.output import COLOURS, LEARNED, in_style, name_judge, new_figure, plain

MAX_PANELS = 9  # further contexts appear only in the table
COLUMNS = 3
LETTERS_PER_INCH = 13  # in the heading
FEASIBLE = "#cfe6e4"
MARGIN = 0.03  # of an action's range, so that points at its ends are not cut off


@in_style
def draw(table: pd.DataFrame, result: dict[str, Any]) -> Figure:
    """table: a row per point and context; result: the key numbers of the frontier."""
    names = list(table["context"].unique())
    drawn = names[:MAX_PANELS]
    figure, panels = new_figure(min(len(drawn), COLUMNS), -(-len(drawn) // COLUMNS))
    name_judge(figure, result)
    for ax in panels[len(drawn) :]:
        ax.set_axis_off()
    is_surface = len(result["axes"]) == 2
    for ax, name in zip(panels, drawn, strict=False):
        own = result["contexts"].get(name, result)
        (_draw_surface if is_surface else _draw_line)(ax, table[table["context"] == name], result, own)
        ax.set_title(f"{plain(name, width=24)}: {own['analytic_count']:,} | {own['monte_carlo_count']:,}")
    policies = any(own["policy"] for own in result["contexts"].values())
    figure.legend(handles=_key(is_surface, policies), loc="outside lower left", ncols=3, fontsize=8)
    width = int(LETTERS_PER_INCH * figure.get_figwidth())
    heading = "\n".join(textwrap.fill(line, width) for line in _heading(result, len(drawn), len(names)))
    figure.suptitle(heading, fontsize=10, x=0.01, ha="left")
    return figure


def _heading(result: dict[str, Any], num_drawn: int, num_names: int) -> list[str]:
    """Lines on the points counted, the values of the held actions, and the contexts left out."""
    lines = [
        f"Points with MP ≥ {result['min_mp']:g}/h and error ≤ {100 * result['max_err']:.3g}% of "
        f"{result['points']:,}: {'expected from logs' if result['outcomes'] == LEARNED else 'analytic'} | Monte Carlo"
    ]
    if result["held"]:
        held = ", ".join(f"{name} {_short(value, result['actions'][name])}" for name, value in result["held"].items())
        lines.append(f"Held: {plain(held, width=150)}; marked points may have other values")
    if num_drawn < num_names:
        lines.append(f"The first {num_drawn - 1} of {num_names - 1} contexts are drawn; the table has all")
    return lines


def _short(value: float, bounds: list[float]) -> str:
    """A number rounded to a thousandth of its range."""
    digits = 3 - math.floor(math.log10(bounds[1] - bounds[0]))
    return f"{round(value, digits) + 0.0:g}"


def _key(is_surface: bool, policies: bool) -> list[Line2D]:
    ring = Line2D([], [], marker="o", ls="", ms=8, mfc="none", mew=2, c=COLOURS["oracle"], label="optimum")
    dot = Line2D([], [], marker="o", ls="", ms=6, c=COLOURS["human"], label="policy")
    if is_surface:
        dashes = Line2D([], [], ls="--", lw=1, c=COLOURS["second"], label="service level, Monte Carlo")
    else:
        dashes = Line2D([], [], ls="--", c=COLOURS["soft"], label="Monte Carlo")
    return [ring, dot, dashes] if policies else [ring, dashes]


def _draw_surface(ax: Axes, table: pd.DataFrame, result: dict[str, Any], own: dict[str, Any]) -> None:
    """The feasible region shaded, iso-MP and iso-error lines, and the region's edge by Monte Carlo."""
    x_name, y_name = result["axes"]
    x, y = table[x_name].unique(), table[y_name].unique()

    def over_grid(column: str) -> np.ndarray:
        return table[column].to_numpy(float).reshape(len(x), len(y)).T

    feasible, edge = over_grid("analytic_feasible"), over_grid("monte_carlo_feasible")
    if feasible.any():
        ax.contourf(x, y, feasible, levels=[0.5, 1.5], colors=[FEASIBLE])
    lines = (
        (over_grid("analytic_mp"), "%.4g/h", "policy"), (100 * over_grid("analytic_err_rate"), "%.3g%%", "human"),
    )  # fmt: skip
    for values, label, colour in lines:
        if np.ptp(values) > 0:
            ax.clabel(ax.contour(x, y, values, levels=6, colors=COLOURS[colour], linewidths=0.7), fmt=label, fontsize=6)
    if edge.any() and not edge.all():
        ax.contour(x, y, edge, levels=[0.5], colors=COLOURS["second"], linewidths=1, linestyles="--")
    _mark(ax, own, lambda actions: (actions[x_name], actions[y_name]))
    ax.set(
        xlabel=x_name, ylabel=y_name, xlim=_limits(result["actions"][x_name]), ylim=_limits(result["actions"][y_name])
    )


def _draw_line(ax: Axes, table: pd.DataFrame, result: dict[str, Any], own: dict[str, Any]) -> None:
    """MP and error rate over one action, in expectation and (dashed) by Monte Carlo; the feasible part is shaded."""
    (name,) = result["axes"]
    x, right = table[name].to_numpy(), ax.twinx()
    for kind, style in (("analytic", "-"), ("monte_carlo", "--")):
        ax.plot(x, table[f"{kind}_mp"], style, c=COLOURS["policy"])
        right.plot(x, 100 * table[f"{kind}_err_rate"], style, c=COLOURS["human"], lw=1.2)
    half = (x[1] - x[0]) / 2
    for start, end in _stretches(table["analytic_feasible"].to_numpy(bool)):
        ax.axvspan(x[start] - half, x[end] + half, color=FEASIBLE, lw=0, zorder=0)
    _mark(ax, own, lambda actions: (actions[name], np.interp(actions[name], x, table["analytic_mp"])))
    ax.set_ylabel("MP, good units per hour", color=COLOURS["policy"])
    right.set_ylabel("error rate, %", color=COLOURS["human"])
    right.spines["right"].set_visible(True)
    right.set_ylim(bottom=0)
    ax.set(xlabel=name, xlim=_limits(result["actions"][name]), ylim=(0, None))


def _mark(ax: Axes, own: dict[str, Any], place: Callable[[dict[str, float]], tuple[float, float]]) -> None:
    ax.plot(*place(own["optimum"]["actions"]), "o", ms=10, mfc="none", mew=2, c=COLOURS["oracle"])
    if own.get("policy"):
        ax.plot(*place(own["policy"]["actions"]), "o", ms=6, c=COLOURS["human"])


def _stretches(wanted: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of true values [n]."""
    changes = np.diff(np.concatenate([[0], wanted.astype(int), [0]]))
    return list(zip(np.flatnonzero(changes == 1).tolist(), (np.flatnonzero(changes == -1) - 1).tolist(), strict=True))


def _limits(bounds: list[float]) -> tuple[float, float]:
    room = MARGIN * (bounds[1] - bounds[0])
    return bounds[0] - room, bounds[1] + room
