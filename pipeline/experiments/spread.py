"""Spread: what a run's training episodes earned above the human wage, its split and the customer's surplus.

Training samples outcomes from the simulator or from a model learned from logs: no real money was paid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline import econ
from pipeline.config import SpreadConfig
from pipeline.errors import VtpError
from pipeline.experiments.output import (
    COLOURS,
    LEARNED,
    SIMULATED,
    in_style,
    name_judge,
    new_figure,
    output_folder,
    save,
)
from pipeline.runs import RunDirectory, load_metadata

COLUMNS = (
    "episode", "time_h", "completed", "mp_h", "w_hat_r", "w_h", "spread", "spread_value", "rebate", "captured_spread",
)  # fmt: skip
DOLLARS = ("spread_value", "rebate", "captured_spread", "customer_cost", "consumer_surplus")
TRAILING_PERIODS = 3
DRAWN = 1000  # points per line


def run(cfg: SpreadConfig) -> dict[str, Any]:
    """Write the table and the figure; return the key numbers. Episodes with missing numbers are left out."""
    files = RunDirectory(cfg.run)
    folder = output_folder(cfg, "spread", run=files)
    metrics = files.read_metrics()
    lacking = [name for name in COLUMNS if name not in metrics]
    remedy = f"train it again with: {files.train_command}"
    if lacking:
        raise VtpError(f"{files.metrics} lacks {', '.join(lacking)}; {remedy}", code="metrics-columns")
    numbers = metrics[list(COLUMNS)].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    known = numbers.dropna()
    if known.empty:
        raise VtpError(f"every episode in {files.metrics} lacks a number; {remedy}", code="metrics-all-gaps")
    table = accumulate(known)
    result = (
        key_numbers(table)
        | _outcomes_of(files)
        | {
            "episodes_left_out": len(numbers) - len(known),
            "periods": by_period(table, cfg),
            "estimator": files.read_estimator(),
        }
    )
    save(folder, "spread", table, _draw(table, result), result)
    return result


def _outcomes_of(files: RunDirectory) -> dict[str, str | None]:
    """The source of the training's outcomes; None if the run has no policy file, which records it."""
    if not (files.best.is_file() or files.last.is_file()):
        return {"outcomes": None, "judge": None}
    metadata = load_metadata(files.path)
    return {"outcomes": LEARNED if metadata.outcomes == "logged" else SIMULATED, "judge": metadata.outcome_model}


def accumulate(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per episode, with the customer's cost and surplus, dollars to date and the customers' share of them.

    The share is in [0, 1], and 0 before the first dollar.
    """
    price_usd = econ.ratio(metrics["w_h"], metrics["mp_h"])  # cost per unit of flawless human work
    cost = econ.customer_cost(metrics["w_hat_r"], metrics["time_h"], metrics["rebate"])
    surplus = econ.consumer_surplus(metrics["completed"], price_usd, cost)
    totals = metrics[["spread_value", "rebate", "captured_spread"]].cumsum().add_suffix("_total")
    share = econ.share(totals["rebate_total"].to_numpy(), totals["spread_value_total"].to_numpy())
    accounts = metrics.assign(customer_cost=cost, consumer_surplus=surplus)
    return accounts.join(totals).assign(customer_share_to_date=share)


def by_period(table: pd.DataFrame, cfg: SpreadConfig) -> list[dict[str, float]]:
    """The periods of training: rates per hour, and dollars over the whole period.

    MP is compared with the previous period and with the mean of the last three. Wage parity uses the wage index, which
    starts at the run's human wage; payments are those that training recorded at the run's human wage.
    """
    periods = [table.iloc[rows] for rows in np.array_split(np.arange(len(table)), min(cfg.periods, len(table)))]
    market = [period["w_h"].mean() if cfg.market_wage is None else cfg.market_wage for period in periods]
    wages = econ.wage_index(table["w_h"].iloc[0], market, smoothing=cfg.wage_smoothing, inflation=cfg.inflation)
    rows = []
    earlier: list[float] = []
    for period, wage in zip(periods, wages.tolist(), strict=True):
        hours = float(period["time_h"].sum())
        mp = float(econ.marginal_product(period["completed"].sum(), hours))
        implied_wage = econ.ratio((period["w_hat_r"] * period["time_h"]).sum(), hours)
        rows.append(
            {
                "first_episode": int(period["episode"].iloc[0]),
                "last_episode": int(period["episode"].iloc[-1]),
                "hours": hours,
                "mp": mp,
                "delta_mpl": econ.delta_mpl(mp, earlier, window=1),
                "delta_mpl_trailing": econ.delta_mpl(mp, earlier, window=TRAILING_PERIODS),
                "implied_wage": implied_wage,
                "human_wage": wage,
                "wage_parity": econ.wage_parity(implied_wage, wage),
                **{name: float(period[name].sum()) for name in DOLLARS},
            }
        )
        earlier.append(mp)
    return rows


def key_numbers(table: pd.DataFrame) -> dict[str, Any]:
    """Dollars over the whole training, the customers' share, the share of paid episodes and the first of them."""
    paid = table["spread_value"] > 0
    last = table.iloc[-1]
    return {
        "episodes": len(table),
        "hours": float(table["time_h"].sum()),
        "spread_per_hour": float(
            econ.marginal_product((table["spread"] * table["time_h"]).sum(), table["time_h"].sum())
        ),
        "spread_usd": float(last["spread_value_total"]),
        "rebate_usd": float(last["rebate_total"]),
        "captured_usd": float(last["captured_spread_total"]),
        "customer_share": float(last["customer_share_to_date"]),
        "platform_share": 1.0 - float(last["customer_share_to_date"]),
        "customer_cost_usd": float(table["customer_cost"].sum()),
        "consumer_surplus_usd": float(table["consumer_surplus"].sum()),
        "episodes_paid": float(paid.mean()),
        "first_episode_paid": int(table["episode"][paid].iloc[0]) if paid.any() else None,
    }


@in_style
def _draw(table: pd.DataFrame, result: dict[str, Any]) -> Figure:
    figure, (spread, dollars, share) = new_figure(3)
    name_judge(figure, result)
    thin = table.iloc[:: -(-len(table) // DRAWN)]
    window = min(max(len(table) // 20, 1), 100)
    spread.plot(thin["episode"], table["spread"].rolling(window, min_periods=1).mean()[thin.index], c=COLOURS["policy"])
    spread.axhline(0, c=COLOURS["human"], lw=1, ls="--")
    spread.set(title="Spread, $ per hour", xlabel=f"training episode (mean of the last {window})")
    dollars.stackplot(
        thin["episode"], thin["rebate_total"], thin["captured_spread_total"],
        colors=[COLOURS["second"], "#8fc4c5"], labels=["rebate to customers", "captured by the platform"],
    )  # fmt: skip
    dollars.legend(loc="upper left", fontsize=7)
    top = 1.05 * max(table["spread_value_total"].iloc[-1], 1.0)
    dollars.set(title="Split to date, $", xlabel="training episode", ylim=(0, top))
    share.plot(thin["episode"], thin["customer_share_to_date"], c=COLOURS["second"])
    share.set(title="Customers' share to date", xlabel="training episode", ylim=(0, 1))
    for ax in (spread, dollars, share):
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.xaxis.set_major_formatter("{x:,.0f}")
    dollars.yaxis.set_major_formatter("{x:,.0f}")
    return figure
