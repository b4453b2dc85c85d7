"""The head of the page: who judged, what the policy would earn, beside what others would, and in four figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.outcomes.identification import FEWEST_EFFECTIVE, LEAST_OVERLAP
from pipeline.report import figures, verdict
from pipeline.report.curves import rolling_window
from pipeline.report.figures import Bar, Download, Style
from pipeline.report.run_files import RunFiles
from pipeline.report.summary_figures import capitalised, finite, finite_values
from pipeline.report.words import DASH, count, number, percent, usd
from pipeline.runs.judgement import Comparison, is_by_logs, over_logging_policy


@dataclass(frozen=True)
class Tile:
    """One figure of the headline."""

    figure: str
    label: str
    note: str


MEASURED = {  # what an episode is called, and how it was measured
    "closed loop from pixels": ("episode", "in closed loop from pixels, in scenes that training never saw"),
    "held-out logs": ("video", "held out from training, on their logs"),
    "held-out clips": ("video", "held out from training, on their stored clips"),
    "simulator": ("episode", "in the simulator, from its state"),
}
EARNERS: tuple[tuple[str, str, Style], ...] = (  # label, its number, style
    ("Oracle", "oracle_profit", "oracle"),
    ("This policy", "profit_mean", "policy"),
    ("Blind", "blind_profit", "blind"),
    ("Human wage", "human_wage", "human"),
)


def interval_of(summary: dict[str, Any], key: str) -> tuple[float, float] | None:
    bounds = summary.get(key)
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    low, high = finite(bounds[0]), finite(bounds[1])
    return None if low is None or high is None else (low, high)


def headline(files: RunFiles, numbers: dict[str, float | None]) -> tuple[str, list[str]]:
    title = verdict.title(files.summary)
    outcomes = str(files.summary.get("outcome_model") or "").rstrip(".")
    come_from = [f"Outcomes come from: {outcomes}."] if outcomes else []
    trained_on = str(files.summary.get("trained_on_outcomes") or "").rstrip(".")
    if come_from and trained_on and trained_on != outcomes:
        come_from = [f"Here outcomes come from: {outcomes}; in training they were {trained_on}."]
    if is_by_logs(files.summary):
        return title, verdict.of_logs(files.summary) + come_from
    if numbers["profit_mean"] is None:
        trained = files.metrics["profit"].dropna() if "profit" in files.metrics else pd.Series(dtype=float)
        lead = ["What it would earn in scenes that it has not been trained on is not known."]
        if len(trained):
            last = trained.tail(rolling_window(len(trained)))
            lead.append(
                f"In its last {count(len(last), 'training episode')} it would have earned {usd(float(last.mean()))} "
                "an hour, exploration included."
            )
        return title, lead

    bounds = interval_of(files.summary, "profit_ci95")
    lead = [
        f"95% interval {usd(bounds[0])} to {usd(bounds[1])}."
        if bounds
        else "There is no interval: that takes at least two validation episodes.",
        *verdict.beside(files.summary),
        *verdict.without_logs(files.summary),
    ]
    measured = str(files.summary.get("validation") or "")
    if measured:
        episodes = files.validation["episode"].nunique() if "episode" in files.validation else 0
        noun, how = MEASURED.get(measured, ("episode", measured))
        over = f"over {count(episodes, noun)} " if episodes else ""
        lead.append(f"Measured {over}{how}.")
    profit_changed, ratio_changed = (finite(files.changed.get(key)) for key in ("profit_mean", "oracle_ratio"))
    if profit_changed is not None:
        of_oracle = f", {percent(ratio_changed)} of the oracle" if ratio_changed is not None else ""
        lead.append(
            "In scenes with a light, a background and sizes that no demonstration shows it would be "
            f"{usd(profit_changed)}{of_oracle}."
        )
    return title, lead + come_from + verdict.mix(files.summary)


def bars_download(numbers: dict[str, float | None], interval: tuple[float, float] | None) -> Download:
    table = pd.DataFrame([{"who": label, "usd_per_hour": numbers[key]} for label, key, _ in EARNERS])
    if interval:
        table.loc[table["who"] == "This policy", ["low", "high"]] = interval
    return figures.csv_download("headline.csv", table)


def bars(numbers: dict[str, float | None], interval: tuple[float, float] | None) -> list[Bar]:
    known = [(label, value, style) for label, key, style in EARNERS if (value := numbers[key]) is not None]
    return figures.bars(known, usd, interval) if numbers["profit_mean"] is not None else []


def tiles_of_logs(summary: dict[str, Any]) -> list[Tile]:
    """What the logs say in four figures; dollars only if the logs can tell the policy from the one that made them."""
    over, against = over_logging_policy(summary), verdict.against_constant(summary)
    is_known = over is not None and over.is_known
    tiles = [
        _verdict_tile(found, other, over, with_dollars=is_known)
        for found, other in ((over, verdict.LOGGING_POLICY), (against, verdict.CONSTANT))
        if found is not None
    ]
    found = finite_values(summary.get("off_policy"))
    effective, largest, overlap = (found.get(name) for name in ("effective_steps", "largest_weight", "overlap"))
    if effective is not None:
        note = f"Logged steps with actions like the policy’s count as so many; {FEWEST_EFFECTIVE:g} are needed."
        tiles.append(Tile(number(effective, 1), "effective steps", f"{note} The largest weighs {percent(largest)}."))
    if overlap is not None:
        note = f"Share of hours where logs hold actions like the policy’s; {percent(LEAST_OVERLAP, 0)} are needed."
        tiles.append(Tile(percent(overlap, 0), "overlap with the logs", note))
    return tiles


def _verdict_tile(found: Comparison, other: str, over: Comparison | None, *, with_dollars: bool) -> Tile:
    if with_dollars and found.is_known and found.change is not None:
        note = f"{capitalised(found.beyond(other))}: {verdict.change_in_words(found)}."
        return Tile(usd(found.change[0], signed=True), f"an hour against {other}", note)
    reason = found.reason if found is over or over is None or found.reason != over.reason else "for the same reason"
    notes = {"not identified": reason, "not distinguishable": "the 95% interval of the change holds zero"}
    note = notes.get(found.verdict, "by how much is in the table below")
    return Tile(capitalised(found.verdict), f"against {other}", f"{capitalised(note).rstrip('.')}.")


def tiles(numbers: dict[str, float | None], ratio_interval: tuple[float, float] | None) -> list[Tile]:
    profit, oracle, blind = numbers["profit_mean"], numbers["oracle_profit"], numbers["blind_profit"]
    tiles = []
    if numbers["oracle_ratio"] is not None:
        tiles.append(
            Tile(
                percent(numbers["oracle_ratio"]),
                "of the oracle",
                "The oracle takes the best action for every kind of work"
                + (f" and would earn {usd(oracle)} an hour." if oracle is not None else ".")
                + (" 95% interval {} to {}.".format(*map(percent, ratio_interval)) if ratio_interval else ""),
            )
        )
    elif oracle is not None and oracle <= 0:
        note = f"There is no share of it to speak of: even the oracle would earn no more than {usd(oracle)} an hour."
        tiles.append(Tile(DASH, "of the oracle", note))
    if profit is not None and blind is not None:
        same = oracle is not None and abs(oracle - blind) < 0.005
        more = f" That is {percent(profit / blind - 1, 0)} more." if profit > blind > 0 else ""
        tiles.append(
            Tile(
                usd(profit - blind, signed=True),
                "an hour against blind",
                "With one kind of work there is nothing to see: blind is the oracle."
                if same
                else f"The best policy that cannot see would earn {usd(blind)} an hour.{more}",
            )
        )
    if numbers["wage_parity"] is not None:
        wage = numbers["human_wage"]
        tiles.append(
            Tile(
                f"{number(numbers['wage_parity'])}×",
                "the human wage" + (f" of {usd(wage)}" if wage is not None else ""),
                "Wage parity: what an hour of its work would be worth, before costs, over what a person is paid.",
            )
        )
    if numbers["err_mean"] is not None:
        units = numbers["mp_mean"]
        tiles.append(
            Tile(
                percent(numbers["err_mean"]),
                "errors",
                "Share of attempts that went wrong."
                + (f" It completes {number(units, 1)} good units an hour." if units is not None else ""),
            )
        )
    return tiles
