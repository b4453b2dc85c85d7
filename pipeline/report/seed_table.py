"""A table of the random seeds of one training."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pipeline.report.figures import csv_download
from pipeline.report.summary_figures import capitalised, finite
from pipeline.report.tables import Cell, Table, cell
from pipeline.report.words import DASH, percent, usd


def seeds_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of each random seed; none for a run of one seed."""
    found = summary.get("by_seed")
    return [one for one in found if isinstance(one, dict) and "seed" in one] if isinstance(found, list) else []


def seeds_answer(seeds: list[dict[str, Any]]) -> str:
    profits = [profit for one in seeds if (profit := finite(one.get("profit_mean"))) is not None]
    if not profits:
        return ""
    return f"{len(seeds)} random seeds would earn {usd(min(profits))} to {usd(max(profits))} an hour."


def seed_table(seeds: list[dict[str, Any]]) -> Table:
    rows = []
    for one in seeds:
        profit, ratio, err = (finite(one.get(key)) for key in ("profit_mean", "oracle_ratio", "err_mean"))
        verdict = str(one.get("verdict") or "")
        rows.append(
            [
                cell(str(one.get("seed")), finite(one.get("seed"))), cell(usd(profit), profit),
                cell(percent(ratio), ratio), cell(percent(err), err), Cell(capitalised(verdict) or DASH, verdict),
            ]
        )  # fmt: skip
    return Table(
        "Each random seed’s policy in validation, and what held-out logs say of it against the logging policy.",
        [
            ("Seed", "number first"), ("Profit $/h", "number"), ("Of the optimum", "number"), ("Errors", "number"),
            ("By the logs", "text"),
        ],
        rows,
        csv_download("seeds.csv", pd.DataFrame(seeds)),
    )  # fmt: skip
