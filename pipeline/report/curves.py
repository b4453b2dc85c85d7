"""Learning curves from the training metrics of each episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.report import figures
from pipeline.report.figures import Chart, Reference, Series, Style
from pipeline.report.summary_figures import ActionAxis, capitalised, share_bounds
from pipeline.report.words import count, listed, number, number_tick, percent_tick, usd, usd_tick

MEAN = "mean_"  # prefix of the column of an action's mean
NO_ACTIONS = ("novelty", "weight")  # these means are of clips, not of actions
BAND = (0.1, 0.9)  # quantiles of the episodes in a window


@dataclass(frozen=True)
class Curve:
    """A learning curve: columns of the metrics and the labels of their lines, the policy's first.

    unit: of the vertical axis. A `noisy` column is drawn as its rolling mean within a band that contains four in five
    of the same episodes. behind: further lines. include: values that the axis must contain.
    """

    title: str
    unit: str
    columns: Mapping[str, str]
    caption: str
    y_text: Callable[[float], str]
    noisy: bool = True
    behind: Sequence[Series] = ()
    references: Sequence[Reference] = ()
    include: Sequence[float] = (0.0,)
    label_gap: float = 9.0


def rolling_window(num_episodes: int) -> int:
    """Episodes of the rolling mean: a twentieth of the run, from 1 to 500."""
    return min(max(num_episodes // 20, 1), 500)


def learning_charts(
    metrics: pd.DataFrame,
    validations: pd.DataFrame,
    numbers: Mapping[str, float | None],
    axes: Sequence[ActionAxis],
) -> tuple[list[Chart], list[str]]:
    """The charts of the curves that `metrics` has numbers for, and the titles of the others.

    axes: the task's actions; if unknown, they are taken from the names of the columns.
    """
    if metrics.empty:
        return [], []
    episode = _column(metrics, "episode")
    x = episode.to_numpy() if episode.notna().all() else np.arange(1.0, len(metrics) + 1)
    charts, absent = [], []
    for curve in [*_curves(metrics, validations, numbers, x), *_action_curves(metrics, axes)]:
        if any(_column(metrics, name).notna().any() for name in curve.columns):
            charts.append(_draw(curve, metrics, x))
        else:
            absent.append(curve.title)
    return charts, absent


def learning_answer(metrics: pd.DataFrame, validations: pd.DataFrame) -> str:
    """A sentence on the profit at the start and the end of training, and on its best validation."""
    profit = _column(metrics, "profit").dropna()
    if profit.empty:
        return ""
    window = rolling_window(len(profit))
    first, last = float(profit.head(window).mean()), float(profit.tail(window).mean())
    moved = "rose" if last - first >= 0.005 else "fell" if first - last >= 0.005 else "stayed"
    means = "" if window == 1 else f" (means of {window} episodes)"
    to = f"at {usd(last)}" if moved == "stayed" else f"from {usd(first)} to {usd(last)}"
    says = f"Over {count(len(metrics), 'episode')} profit {moved} {to} an hour{means}."
    if {"episode", "profit_sampled"} <= set(validations.columns):
        checked = validations.dropna(subset=["episode", "profit_sampled"])
        if len(checked):
            best = checked.loc[checked["profit_sampled"].astype(float).idxmax()]
            of = f"The best of {count(len(checked), 'validation')}" if len(checked) > 1 else "The validation"
            says += f" {of} came after episode {number(float(best['episode']), 0)}, at {usd(best['profit_sampled'])}."
    return says


def _column(metrics: pd.DataFrame, name: str) -> pd.Series:
    """A column as floats; all NaN if the table lacks it."""
    return metrics.get(name, pd.Series(np.nan, metrics.index)).astype(float)


def _curves(
    metrics: pd.DataFrame, validations: pd.DataFrame, numbers: Mapping[str, float | None], x: np.ndarray
) -> list[Curve]:
    compared: tuple[tuple[Style, str], ...] = (
        ("optimum", "oracle_profit"), ("blind", "blind_profit"), ("human", "human_wage"),
    )  # fmt: skip
    names = {"human": "wage"}
    references = [
        Reference(f"{names.get(who, who)} {usd(value)}", value, who)
        for who, key in compared
        if (value := numbers[key]) is not None
    ]
    caption, validated, target = [], [], []
    if numbers["oracle_profit"] is not None:
        caption.append(
            "Optimum and blind are expected profits in validation; a lucky episode can lie above the optimum."
        )
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
            "Profit",
            "$ an hour",
            {"profit": "policy"},
            " ".join(caption),
            usd_tick,
            behind=validated,
            references=references,
            label_gap=6.0,
        ),
        Curve(
            "Error rate",
            "% of attempts",
            {"err_rate": "policy"},
            "Share of attempts that went wrong, and its target.",
            percent_tick,
            behind=target,
        ),
        Curve(
            "Price of errors, λ",
            "human wages per unit of error rate",
            {"lambda_dual": ""},
            "It rises while errors are above the target and falls to zero while they are below.",
            number_tick,
        ),
        Curve(
            "Temperature, α",
            "reward per nat of entropy",
            {"alpha": ""},
            "The weight of exploration in SAC, tuned to keep a set randomness.",
            number_tick,
            noisy=False,
        ),
    ]


def _action_curves(metrics: pd.DataFrame, axes: Sequence[ActionAxis]) -> list[Curve]:
    """One curve if two actions have the same bounds; otherwise one per action, each on its own axis."""
    if not axes:
        names = [name.removeprefix(MEAN) for name in metrics.columns if name.startswith(MEAN)]
        return [
            Curve(
                capitalised(name.replace("_", " ")), "task’s unit", {MEAN + name: ""}, "Mean action of each episode.",
                number_tick, include=(),
            )
            for name in names if name not in NO_ACTIONS
        ]  # fmt: skip
    together = [list(axes)] if len(axes) == 2 and share_bounds(axes) else [[axis] for axis in axes]
    return [
        Curve(
            capitalised(listed([axis.label for axis in drawn])),
            "task’s unit",
            {MEAN + axis.name: axis.label if len(drawn) > 1 else "" for axis in drawn},
            f"Mean action of each episode, from {drawn[0].span}.",
            number_tick,
            include=(drawn[0].low, drawn[0].high),
        )
        for drawn in together
    ]


def _draw(curve: Curve, metrics: pd.DataFrame, x: np.ndarray) -> Chart:
    window = rolling_window(len(metrics))
    series, ends = list(curve.behind), []
    table: dict[str, np.ndarray | pd.Series] = {"episode": x}
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
            ends.append(f"{name} {curve.y_text(known.iloc[0])} at the start, {curve.y_text(known.iloc[-1])} at the end")
    table |= {s.style: s.y for s in curve.behind if s.y is not None and s.style == "target"}
    return figures.line_chart(
        curve.title,
        series,
        x=figures.axis_from_to("training episode", float(x.min()), float(x.max()), integer=True),
        y_label=curve.unit,
        caption=curve.caption,
        summary=f"{curve.title} over {count(len(x), 'training episode')}: {', '.join(ends)}.",
        y_text=curve.y_text,
        references=curve.references,
        include=curve.include,
        label_gap=curve.label_gap,
        download=figures.csv_download(f"{next(iter(curve.columns))}.csv", pd.DataFrame(table)),
    )
