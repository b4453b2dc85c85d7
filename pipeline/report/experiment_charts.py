"""The experiments of a run as charts: elasticities, the spread, and the value of demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from pipeline.report.figures import Axis, Chart, Series, Style, axis_from_to, interval_chart, line_chart
from pipeline.report.frontier_charts import frontier_charts
from pipeline.report.words import count, number_tick, percent_tick, usd, usd_tick

DRAWN = 40  # demonstrations, the most valuable
ROW_PX = 19
MULTIPLIERS = (0.1, 0.125, 0.2, 0.25, 0.5, 0.7, 1, 1.4, 2, 4, 5, 8, 10)
MOST_TICKS = 5
WINDOW = 100  # episodes of the rolling mean, at most

Key = tuple[str, str]  # how a mark is drawn, what it stands for
KEYS: dict[str, list[Key]] = {
    "frontier": [
        ("area", "meets the service level"), ("line second dashed", "its edge, simulated"),
        ("line policy", "good units an hour"), ("line human", "error rate"), ("hoop", "best action"),
        ("dot human", "policy’s mean action"),
    ],
    "frontier of one action": [
        ("area", "meets the service level"), ("line policy", "good units an hour"), ("line human", "error rate"),
        ("line dashed", "simulated"), ("bar", "best action"), ("bar policy", "policy’s mean action"),
    ],
    "elasticity": [("line policy", "policy"), ("line optimum dashed", "optimum"), ("band", "95% interval")],
    "spread": [],
    "value": [("dot policy", "value"), ("line policy", "95% interval")],
}  # fmt: skip
RETRAINED: Key = ("line second", "policy, retrained")


def charts_of(name: str, result: dict[str, Any], table: pd.DataFrame) -> tuple[list[Chart], list[Key]]:
    """The charts of an experiment, and how to read their marks."""
    keys = KEYS["frontier of one action" if name == "frontier" and len(result["axes"]) == 1 else name]
    retrained = name == "elasticity" and result.get("retrained")
    return CHARTS[name](result, table), [*keys, *([RETRAINED] if retrained else [])]


CURVES: tuple[tuple[str, str, str, str, Callable[[float], str]], ...] = (
    ("price", "Profit and the price", "price, times today’s", "$ an hour", usd_tick),
    ("damage", "Profit and the damage of an error", "damage of an error, times today’s", "$ an hour", usd_tick),
    ("human_wage", "Spread and the human wage", "human wage, times today’s", "$ an hour", usd_tick),
    (
        "error_target",
        "Shadow price of errors, λ",
        "error target, % of attempts",
        "human wages per unit of error rate",
        number_tick,
    ),
)  # fmt: skip

WHO: tuple[tuple[str, Style], ...] = (("oracle", "optimum"), ("retrained", "second"), ("policy", "policy"))


def _elasticity(_: dict[str, Any], table: pd.DataFrame) -> list[Chart]:
    charts = []
    for curve, title, x_label, y_label, text in CURVES:
        rows = table[table["curve"] == curve]
        if rows.empty:
            continue
        of_target = curve == "error_target"
        x = (axis_of_percents if of_target else axis_of_multipliers)(x_label, rows["x"].to_numpy(float))
        charts.append(
            line_chart(
                title,
                [
                    _curve(rows[rows["who"] == who].sort_values("x"), style, is_dashed=style == "optimum")
                    for who, style in WHO
                    if (rows["who"] == who).any()
                ],
                x=x,
                y_label=y_label,
                y_text=text,
                y_scale="symlog" if of_target else "linear",
                include=(0.0,),
                summary=f"{title}, {y_label}, over {x_label}",
            )
        )
    return charts


def _curve(rows: pd.DataFrame, style: Style, *, is_dashed: bool) -> Series:
    x, y, low, high = (rows[column].to_numpy(float) for column in ("x", "value", "low", "high"))
    return Series("", x, y, style, low, high, is_dashed)


def axis_of_multipliers(label: str, x: np.ndarray) -> Axis:
    """A logarithmic axis from the lowest to the highest multiplier."""
    low, high = float(x.min()), float(x.max())
    if low == high:
        return axis_from_to(label, low, high)
    ticks = [one for one in MULTIPLIERS if low <= one <= high]
    while len(ticks) > MOST_TICKS:
        ticks = [one for one in ticks if one in (ticks[0], 1, ticks[-1])]
    return Axis(label, low, high, [(one, number_tick(one)) for one in ticks], scale="log")


def axis_of_percents(label: str, x: np.ndarray) -> Axis:
    axis = axis_from_to(label, float(np.nanmin(x)), float(np.nanmax(x)))
    return Axis(label, axis.low, axis.high, [(value, percent_tick(value)) for value, _ in axis.ticks])


def _spread(_: dict[str, Any], table: pd.DataFrame) -> list[Chart]:
    episode = table["episode"].to_numpy(float)
    x = axis_from_to("training episode", episode.min(), episode.max(), integer=True)
    window = min(max(len(table) // 20, 1), WINDOW)
    mean = table["spread"].rolling(window, min_periods=1).mean().to_numpy()
    nothing, rebate, everything = (
        column.to_numpy(float)
        for column in (0 * table["rebate_total"], table["rebate_total"], table["spread_value_total"])
    )
    share = table["customer_share_to_date"].to_numpy(float)
    smoothed = f"Mean of the last {window} episodes." if window > 1 else ""
    return [
        line_chart(
            "Spread over the human wage", [Series("", episode, mean, "policy")], x=x, y_label="$ an hour",
            y_text=usd_tick, include=(0.0,), caption=smoothed,
            summary=f"Spread from {usd(mean[0])} to {usd(mean[-1])} an hour",
        ),
        line_chart(
            "What would have been paid to date",
            [
                Series("platform", episode, None, "policy", rebate, everything),
                Series("customers", episode, None, "second", nothing, rebate),
            ],
            x=x, y_label="$ in all", y_text=usd_tick, include=(0.0,), label_gap=9.0,
            summary=f"To date {usd(everything[-1])}, of it {usd(rebate[-1])} to customers",
        ),
        line_chart(
            "Customers’ share to date", [Series("", episode, share, "second")], x=x, y_label="% of the spread",
            y_text=percent_tick, include=(0.0,), summary=f"Customers’ share {percent_tick(share[-1])} at the end",
        ),
    ]  # fmt: skip


def _value(_: dict[str, Any], table: pd.DataFrame) -> list[Chart]:
    rows = table.head(DRAWN)
    of = (
        f"the {len(rows)} most valuable of {len(table)}"
        if len(rows) < len(table)
        else count(len(rows), "demonstration")
    )
    title = f"Value of {of}"
    return [
        interval_chart(
            title,
            [(str(row["name"]), row["value"], row["low"], row["high"]) for row in rows.to_dict("records")],
            x_label="profit that it would add, $ an hour of robot work",
            x_text=usd_tick,
            row_px=ROW_PX,
            summary=f"{title}: {usd(rows['value'].max())} to {usd(rows['value'].min())} an hour",
        )
    ]


CHARTS: dict[str, Callable[[dict[str, Any], pd.DataFrame], list[Chart]]] = {
    "frontier": frontier_charts, "elasticity": _elasticity, "spread": _spread, "value": _value,
}  # fmt: skip
