"""The charts of a run: learning curves from `metrics.csv`, actions from `validation.csv`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.report import figures
from pipeline.report.figures import Chart, Reference, Series
from pipeline.report.words import count, number_tick, percent_tick, usd, usd_tick

ACTIONS_SHOWN = 400  # dots a chart; the download has more
BAND = (0.1, 0.9)  # quantiles of the episodes in a window


@dataclass(frozen=True)
class Curve:
    """A learning curve: columns of `metrics.csv` and the labels of their lines, the policy's first.

    A `noisy` column is drawn as its rolling mean within the band that holds four in five of the same episodes;
    `behind` are further lines, `include` values that the axis holds.
    """

    title: str
    columns: Mapping[str, str]
    caption: str
    y_format: Callable[[float], str]
    noisy: bool = True
    behind: Sequence[Series] = ()
    references: Sequence[Reference] = ()
    include: Sequence[float] = (0.0,)
    label_gap: float = 9.0


def rolling_window(num_episodes: int) -> int:
    """Episodes of the rolling mean: a twentieth of the run, from 1 to 500."""
    return min(max(num_episodes // 20, 1), 500)


def learning_charts(
    metrics: pd.DataFrame, validations: pd.DataFrame, numbers: Mapping[str, float | None]
) -> tuple[list[Chart], list[str]]:
    """The charts of the curves that `metrics` has numbers for, and the titles of the others."""
    if metrics.empty:
        return [], []
    episode = _column(metrics, "episode")
    x = episode.to_numpy() if episode.notna().all() else np.arange(1.0, len(metrics) + 1)
    charts, absent = [], []
    for curve in _curves(metrics, validations, numbers, x):
        if any(_column(metrics, name).notna().any() for name in curve.columns):
            charts.append(_draw(curve, metrics, x))
        else:
            absent.append(curve.title)
    return charts, absent


def _column(metrics: pd.DataFrame, name: str) -> pd.Series:
    """A column as floats, all NaN where there is none of that name."""
    return metrics.get(name, pd.Series(np.nan, metrics.index)).astype(float)


def _curves(
    metrics: pd.DataFrame, validations: pd.DataFrame, numbers: Mapping[str, float | None], x: np.ndarray
) -> list[Curve]:
    references = [
        Reference(f"{label} {usd(numbers[key])}", numbers[key], style)
        for label, key, style in (
            ("oracle", "oracle_profit", "oracle"),
            ("blind", "blind_profit", "blind"),
            ("human", "human_wage", "human"),
        )
        if numbers[key] is not None
    ]
    caption, validated, target = [], [], []
    if numbers["oracle_profit"] is not None:
        caption.append("Oracle and blind are expected profits in validation; a lucky episode can lie above the oracle.")
    if {"episode", "profit_sampled"} <= set(validations.columns):
        sampled = validations.dropna(subset=["episode", "profit_sampled"]).astype(float)
        if len(sampled):
            caption.append("Points are validations without exploration; the best one chose the policy.")
            validated.append(
                Series("", sampled["episode"].to_numpy(), sampled["profit_sampled"].to_numpy(), "validation")
            )
    err_target = _column(metrics, "err_target")
    if err_target.notna().any():
        target.append(Series("target", x, err_target.to_numpy(), "target"))
    return [
        Curve(
            "Profit, $ an hour",
            {"profit": "policy"},
            " ".join(caption),
            usd_tick,
            behind=validated,
            references=references,
            label_gap=6.0,
        ),
        Curve(
            "Error rate",
            {"err_rate": "policy"},
            "Share of attempts that went wrong. The target falls as training goes on.",
            percent_tick,
            behind=target,
        ),
        Curve(
            "Price of errors, λ",
            {"lambda_dual": ""},
            "Rises while errors are above the target, falls to zero while they are below.",
            number_tick,
        ),
        Curve(
            "Temperature, α",
            {"alpha": ""},
            "How much SAC is paid for exploring; it is tuned to keep a set randomness.",
            number_tick,
            noisy=False,
        ),
        Curve(
            "Speed and care",
            {"mean_speed": "speed", "mean_care": "care"},
            "Mean action of each episode, from 0 to 1.",
            number_tick,
            include=(0.0, 1.0),
        ),
    ]


def _draw(curve: Curve, metrics: pd.DataFrame, x: np.ndarray) -> Chart:
    window = rolling_window(len(metrics))
    series, table, ends = list(curve.behind), {"episode": x}, []
    for i, (name, label) in enumerate(curve.columns.items()):
        line = table[name] = _column(metrics, name)
        low = high = None
        if curve.noisy:
            rolling = line.rolling(window, min_periods=1)
            line = table[f"{name}_mean_{window}"] = rolling.mean()
            low, high = (rolling.quantile(quantile).to_numpy() for quantile in BAND)
            table |= {f"{name}_low_{window}": low, f"{name}_high_{window}": high}
        series.append(Series(label, x, line.to_numpy(), "second" if i else "policy", low, high))
        known = line.dropna()
        if len(known):
            ends.append(f"{name} {known.iloc[0]:.3g} at the start and {known.iloc[-1]:.3g} at the end")
    table |= {s.style: s.y for s in curve.behind if len(s.y) == len(x) and s.style == "target"}
    return figures.line_chart(
        curve.title,
        series,
        caption=curve.caption,
        summary=f"{curve.title} over {count(len(x), 'training episode')}: {', '.join(ends)}.",
        y_format=curve.y_format,
        references=curve.references,
        include=curve.include,
        label_gap=curve.label_gap,
        download=figures.csv_download(f"{next(iter(curve.columns))}.csv", pd.DataFrame(table)),
    )


def action_charts(validation: pd.DataFrame, contexts: Mapping[str, Mapping[str, float | None]]) -> list[Chart]:
    """A chart of every action a context, in the order of `contexts`."""
    if not {"speed", "care"} <= set(validation.columns):
        return []
    table = validation.assign(
        speed=pd.to_numeric(validation["speed"], errors="coerce"),
        care=pd.to_numeric(validation["care"], errors="coerce"),
    ).dropna(subset=["speed", "care"])
    if "context" not in table:
        table = table.assign(context="every object")
    charts = []
    for name, steps in table.groupby(table["context"].astype(str), sort=False):
        means = contexts.get(name, {})
        oracle = (means.get("oracle_speed"), means.get("oracle_care"))
        shown = steps.iloc[:: -(-len(steps) // ACTIONS_SHOWN)]
        charts.append(
            figures.action_chart(
                name,
                shown["speed"].to_numpy(),
                shown["care"].to_numpy(),
                oracle=None if None in oracle else oracle,
                download=figures.csv_download(f"actions-{len(charts) + 1}.csv", steps),
            )
        )
    order = list(contexts)
    return sorted(charts, key=lambda chart: order.index(chart.title) if chart.title in order else len(order))
