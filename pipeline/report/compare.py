"""Compare runs in one table with intervals, as CSV and as a page."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import files
from pipeline.config import CompareConfig
from pipeline.errors import VtpError
from pipeline.kept_inputs import keep_inputs
from pipeline.report.figures import csv_download
from pipeline.report.summary_figures import finite
from pipeline.report.templates import render
from pipeline.report.words import DASH, listed, number, percent, usd
from pipeline.runs import RunDirectory
from pipeline.runs.judgement import LOGS, judge_of, over_logging_policy
from pipeline.writer_lock import one_writer

NUMBERS = (
    "profit_mean", "oracle_profit", "blind_profit", "oracle_ratio", "blind_ratio", "mp_mean", "err_mean", "wage_parity",
    "spread", "rebate", "captured",
)  # fmt: skip
INTERVALS = {"profit": "profit_ci95", "oracle_ratio": "oracle_ratio_ci95"}


def run(cfg: CompareConfig) -> list[dict[str, Any]]:
    """Write OUT/compare.csv and OUT/compare.html; returns one row per run, in the order given."""
    page = RunDirectory(cfg.out).compare_page
    keep_inputs(
        cfg, [page, page.with_suffix(".csv")], reads=[file for run in cfg.runs for file in RunDirectory(run).read]
    )
    rows = [read_row(path) for path in cfg.runs]
    for row in rows:
        row |= difference(row, rows[0])
    path = RunDirectory(cfg.out).compare_page
    with one_writer(path.with_name(f".{path.stem}.lock"), path):
        _write(path, rows)
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pd.DataFrame(rows)
    with files.atomic_path(path.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)
    worlds = sorted({f"{row['task']} {row['scenario']}".strip() + f", {row['validation']}" for row in rows})
    fields = {
        "heads": HEADS, "rows": [_cells(row) for row in rows], "worlds": worlds, "judges": judges_say(rows),
    }  # fmt: skip
    page = render("compare.html", fields | {"download": csv_download(path.with_suffix(".csv").name, table)})
    files.write_text(path, page)


def judges_say(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences on the judges of the runs, whether they differ, and which profits are expectations."""
    runs_of: dict[str, list[str]] = {}
    for row in rows:
        runs_of.setdefault(row["judge"] or "Judge not known", []).append(row["run"])
    if len(runs_of) == 1:
        says = [f"{judge}." for judge in runs_of]
    else:
        by_judge = "; ".join(f"{judge}: {listed(runs)}" for judge, runs in runs_of.items())
        says = [
            f"The runs have different judges: {by_judge}. "
            "Figures of a simulator and of logs cannot be subtracted, so a run with another judge than the first has "
            "no difference from it."
        ]
    if LOGS in runs_of:
        says.append(
            "If logs are the judge, the verdict is the change over the logging policy; profit, spread and shares of "
            "the optimum are expectations of the outcome model learned from the logs, not measured or paid."
        )
    return says


def read_row(path: Path) -> dict[str, Any]:
    """A run's figures from its summary; None for missing ones."""
    run = RunDirectory(path)
    summary = run.read_summary()
    lacking = [key for key in ("source", "task", "scenario", "validation", "episodes") if key not in summary]
    if lacking or not isinstance(summary["episodes"], int):
        raise VtpError(
            f"{run.latest.summary} is not a summary of a run: it has no {'number of ' if not lacking else ''}"
            f"{(lacking or ['episodes'])[0]}; "
            f"make it with: vtp evaluate {shlex.quote(str(path))}",
            code="summary-bad",
        )
    row: dict[str, Any] = {"run": str(path)} | {
        key: str(summary[key]) for key in ("source", "task", "scenario", "validation")
    }
    row["judge"] = judge_of(summary)
    row |= _over_logging_policy(summary)
    row |= {"episodes": summary["episodes"]} | {key: finite(summary.get(key)) for key in NUMBERS}
    for name, key in INTERVALS.items():
        bounds = summary.get(key)
        low, high = map(finite, bounds) if isinstance(bounds, list) and len(bounds) == 2 else (None, None)
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def _over_logging_policy(summary: dict[str, Any]) -> dict[str, Any]:
    """The logs' verdict and change over the logging policy; None without logs, or if not identified."""
    found = over_logging_policy(summary)
    change = None if found is None else found.change
    value, low, high = (None, None, None) if change is None else map(finite, change)
    return {
        "verdict": None if found is None else found.verdict, "change": value, "change_low": low, "change_high": high,
    }  # fmt: skip


def difference(row: dict[str, Any], first: dict[str, Any]) -> dict[str, float | None]:
    """Difference from the first run's profit in $/h, its interval as if the runs were independent.

    None if the judges differ.
    """
    names = ("profit_difference", "profit_difference_low", "profit_difference_high")
    if row is first or row["judge"] != first["judge"] or row["profit_mean"] is None or first["profit_mean"] is None:
        return dict.fromkeys(names)
    value = row["profit_mean"] - first["profit_mean"]
    if None in (row["profit_low"], row["profit_high"], first["profit_low"], first["profit_high"]):
        return dict(zip(names, (value, None, None), strict=True))
    half = math.hypot(*((r["profit_high"] - r["profit_low"]) / 2 for r in (row, first)))
    return dict(zip(names, (value, value - half, value + half), strict=True))


HEADS = [("Run", "text"), ("Judge", "text"), ("Over the logging policy", "text"), ("Source", "text")] + [
    (label, "number")
    for label in (
        "Episodes", "Profit $/h", "Difference from the first", "Of the optimum", "Ratio to blind", "Errors", "Parity",
        "Spread $/h", "Rebate $/h", "Captured $/h",
    )
]  # fmt: skip


def _cells(row: dict[str, Any]) -> list[tuple[str, float | str]]:
    """(text, sort key) of every column."""

    def between(value: str, low: float | None, high: float | None, show: Any) -> str:
        return value if low is None or high is None else f"{value} [{show(low)}, {show(high)}]"

    texts = [
        (between(usd(row["profit_mean"]), row["profit_low"], row["profit_high"], usd), row["profit_mean"]),
        (
            between(
                usd(row["profit_difference"], signed=True), row["profit_difference_low"],
                row["profit_difference_high"], usd,
            ),
            row["profit_difference"],
        ),
        (
            between(percent(row["oracle_ratio"]), row["oracle_ratio_low"], row["oracle_ratio_high"], percent),
            row["oracle_ratio"],
        ),
        (f"{number(row['blind_ratio'])}×" if row["blind_ratio"] is not None else DASH, row["blind_ratio"]),
        (percent(row["err_mean"]), row["err_mean"]),
        (number(row["wage_parity"]), row["wage_parity"]),
        *((usd(row[key]), row[key]) for key in ("spread", "rebate", "captured")),
    ]  # fmt: skip
    change = between(usd(row["change"], signed=True), row["change_low"], row["change_high"], usd)
    cells = [
        (row["run"], row["run"]), (row["judge"] or DASH, row["judge"]),
        (
            DASH if row["verdict"] is None
            else row["verdict"] if row["change"] is None else f"{row['verdict']}, {change}",
            "" if row["change"] is None else row["change"],
        ),
        (row["source"], row["source"]), (f"{row['episodes']:,}", row["episodes"]),
    ]  # fmt: skip
    return cells + [(text, "" if key is None else key) for text, key in texts]
