"""The head of the page: the policy's profit, what it is compared with, who judged it, and its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.outcomes.identification import FEWEST_EFFECTIVE, LEAST_OVERLAP
from pipeline.report import figures, verdict
from pipeline.report.context_cards import LoggedProfits, where_it_loses
from pipeline.report.curves import rolling_window
from pipeline.report.figures import Bar, Download, Style
from pipeline.report.run_files import RunFiles
from pipeline.report.summary_figures import capitalised, finite, finite_values, read_contexts
from pipeline.report.words import DASH, count, number, number_tick, percent, usd
from pipeline.runs.judgement import Comparison, is_by_logs, over_logging_policy, read_estimate

Interval = tuple[float, float]


@dataclass(frozen=True)
class Tile:
    """One figure of the headline."""

    figure: str
    label: str
    note: str


@dataclass(frozen=True)
class Head:
    """The title, the sentences below it, and (question, answer) pairs."""

    title: str
    lead: list[str]
    answers: list[tuple[str, list[str]]]


MEASURED = {  # by kind of validation: the word for an episode, and the method
    "closed loop from pixels": ("episode", "in closed loop from pixels, in scenes that training never saw"),
    "held-out logs": ("video", "held out from training, on their logs"),
    "held-out clips": ("video", "held out from training, on their stored clips"),
    "simulator": ("episode", "in the simulator, from its state"),
}
AGAINST_WHAT, ACCORDING_TO_WHOM, HOW_SURE = "Against what?", "According to whom?", "How sure?"
OPTIMUM = "The optimum takes the best action in each context"
BLIND = "blind takes the best action that is the same for all, without looking"
LOGGING = "the logging policy made the logs, and its figure is what they earned"


def interval_of(summary: dict[str, Any], key: str) -> Interval | None:
    bounds = summary.get(key)
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    low, high = finite(bounds[0]), finite(bounds[1])
    return None if low is None or high is None else (low, high)


def headline(files: RunFiles, numbers: dict[str, float | None], logged: LoggedProfits, profit_says: str) -> Head:
    """The head of the page. profit_says: the definition of profit. logged: profits of the logged steps by context."""
    summary = files.summary
    title, by_logs = verdict.title(summary), is_by_logs(summary)
    if by_logs:
        return _of_logs(title, summary, logged)
    if numbers["profit_mean"] is None:
        return Head(title, _not_validated(files), [])
    bounds = interval_of(summary, "profit_ci95")
    lead = [_interval_says(bounds), where_it_loses(read_contexts(summary), logged)]
    others = [OPTIMUM, BLIND, *([LOGGING] if _logging_policy(summary) else [])]
    measured = str(summary.get("validation") or "")
    episodes = files.validation["episode"].nunique() if "episode" in files.validation else 0
    noun, how = MEASURED.get(measured, ("episode", measured))
    over = f"over {count(episodes, noun)} " if episodes else ""
    return Head(
        title,
        [sentence for sentence in lead if sentence],
        [
            (AGAINST_WHAT, [f"{'; '.join(others)}.", profit_says]),
            (
                ACCORDING_TO_WHOM,
                ([f"Measured {over}{how}."] if measured else [])
                + _outcomes_say(summary)
                + verdict.beside(summary, with_advice=False)
                + verdict.without_logs(summary),
            ),
            (HOW_SURE, [_one_run(summary, noun), *verdict.mix(summary), *_changed_scenes(files.changed)]),
        ],
    )


def _interval_says(bounds: Interval | None) -> str:
    if bounds is None:
        return "There is no interval: that takes at least two validation episodes."
    low, high = map(usd, bounds)
    return f"95% interval {low} to {high}." if low != high else "Every validation episode would earn the same."


def _of_logs(title: str, summary: dict[str, Any], logged: LoggedProfits) -> Head:
    """The head if logs are the judge: the verdict, without dollars if it is not identified."""
    compared, judged_on = verdict.of_logs(summary, with_advice=False), verdict.judged_on(summary)
    others = compared[1 : len(compared) - len(judged_on)]
    loses = where_it_loses(read_contexts(summary), logged, with_dollars=False)
    return Head(
        title,
        compared[:1],
        [
            (AGAINST_WHAT, [*others, f"The logging policy made the logs; {BLIND}."]),
            (ACCORDING_TO_WHOM, ["Your logs.", *judged_on, *_outcomes_say(summary)]),
            (HOW_SURE, [_one_run(summary, "video"), *([f"By the outcome model: {loses}"] if loses else [])]),
        ],
    )


def _outcomes_say(summary: dict[str, Any]) -> list[str]:
    outcomes = str(summary.get("outcome_model") or "").rstrip(".")
    if not outcomes:
        return []
    trained_on = str(summary.get("trained_on_outcomes") or "").rstrip(".")
    if trained_on and trained_on != outcomes:
        return [f"Here outcomes come from: {outcomes}; in training they were {trained_on}."]
    return [f"Outcomes come from: {outcomes}."]


def _one_run(summary: dict[str, Any], noun: str) -> str:
    """What the intervals do not cover."""
    seeds = summary.get("seeds")
    if isinstance(seeds, list) and len(seeds) > 1:
        data = "" if summary.get("source") == "sim" else ", on the same data"
        return f"Intervals are over {len(seeds)} random seeds of training{data}."
    of = f" (random seed {seeds[0]})" if isinstance(seeds, list) and len(seeds) == 1 else ""
    data = "" if summary.get("source") == "sim" else " or other data"
    return f"Intervals are over {noun}s of one training run{of}; another random seed{data} may give another policy."


def _changed_scenes(changed: dict[str, Any]) -> list[str]:
    profit, ratio = (finite(changed.get(key)) for key in ("profit_mean", "oracle_ratio"))
    if profit is None:
        return []
    of_optimum = f", {percent(ratio)} of the optimum" if ratio is not None else ""
    return [
        "In scenes with a light, a background and sizes that no demonstration shows it would earn "
        f"{usd(profit)}{of_optimum}."
    ]


def _not_validated(files: RunFiles) -> list[str]:
    trained = files.metrics["profit"].dropna() if "profit" in files.metrics else pd.Series(dtype=float)
    lead = ["Its profit in scenes that it was not trained on is not known."]
    if len(trained):
        last = trained.tail(rolling_window(len(trained)))
        lead.append(
            f"In its last {count(len(last), 'training episode')} it would have earned {usd(float(last.mean()))} "
            "an hour, exploration included."
        )
    return lead


def _logging_policy(summary: dict[str, Any]) -> tuple[float, float, float] | None:
    found = summary.get("off_policy")
    return read_estimate(found.get("logging_policy")) if isinstance(found, dict) else None


Earner = tuple[str, float, Style, Interval | None]


def earners(summary: dict[str, Any], numbers: dict[str, float | None]) -> list[Earner]:
    """The profits at the top of the page, in $/h; none if the policy's is unknown."""
    logging = _logging_policy(summary)
    logged: list[Earner] = (
        [] if logging is None else [("Logging policy, as logged", logging[0], "logging", logging[1:])]
    )
    if is_by_logs(summary):
        over, found = over_logging_policy(summary), summary.get("off_policy")
        policy = read_estimate(found.get("doubly_robust")) if isinstance(found, dict) else None
        if over is None or not over.is_known or policy is None:
            return []
        return [("This policy, doubly robust", policy[0], "policy", policy[1:]), *logged]
    profit = numbers["profit_mean"]
    if profit is None:
        return []
    known: tuple[tuple[str, str, Style], ...] = (
        ("Optimum", "oracle_profit", "optimum"),
        ("Blind", "blind_profit", "blind"),
    )
    best, blind = (
        [(label, value, style, None)] if (value := numbers[key]) is not None else [] for label, key, style in known
    )
    wage, policy_ci = numbers["human_wage"], interval_of(summary, "profit_ci95")
    human: list[Earner] = [] if wage is None else [("Human wage", wage, "human", None)]
    return [*best, ("This policy", profit, "policy", policy_ci), *blind, *logged, *human]


def bars(found: list[Earner]) -> list[Bar]:
    return figures.bars([(label, value, style, _closed(interval)) for label, value, style, interval in found], usd)


def _closed(interval: Interval | None) -> Interval | None:
    """The interval if both its bounds are known."""
    return None if interval is None or any(finite(bound) is None for bound in interval) else interval


def bars_download(found: list[Earner]) -> Download:
    table = pd.DataFrame(
        [
            {"who": label, "usd_per_hour": value}
            | dict(zip(("low", "high"), _closed(interval) or (None, None), strict=True))
            for label, value, _, interval in found
        ],
        columns=["who", "usd_per_hour", "low", "high"],
    )
    return figures.csv_download("headline.csv", table)


def tiles_of_logs(summary: dict[str, Any]) -> list[Tile]:
    """The logs' verdict in four figures; dollars only if the logs distinguish the policy from the logging policy."""
    over, against = over_logging_policy(summary), verdict.against_constant(summary)
    is_known = over is not None and over.is_known
    tiles = [
        _verdict_tile(found, other, over, with_dollars=is_known)
        for found, other in ((over, verdict.LOGGING_POLICY), (against, "blind"))
        if found is not None
    ]
    found = finite_values(summary.get("off_policy"))
    effective, largest, overlap = (found.get(name) for name in ("effective_steps", "largest_weight", "overlap"))
    if effective is not None:
        note = f"Worth of the logged steps with actions like the policy’s; {number_tick(FEWEST_EFFECTIVE)} are needed."
        tiles.append(Tile(number(effective, 1), "effective steps", f"{note} The largest weighs {percent(largest)}."))
    if overlap is not None:
        note = f"Share of hours in which logs have actions like the policy’s; {percent(LEAST_OVERLAP, 0)} are needed."
        tiles.append(Tile(percent(overlap, 0), "overlap with the logs", note))
    return tiles


def _verdict_tile(found: Comparison, other: str, over: Comparison | None, *, with_dollars: bool) -> Tile:
    if with_dollars and found.is_known and found.change is not None:
        note = f"{capitalised(found.beyond(other))}: {verdict.change_in_words(found)}."
        return Tile(usd(found.change[0], signed=True), f"an hour against {other}", note)
    reason = found.reason if found is over or over is None or found.reason != over.reason else "for the same reason"
    notes = {"not identified": reason, "not distinguishable": "the 95% interval of the change contains zero"}
    note = notes.get(found.verdict, "the change is in the table of estimates below")
    return Tile(capitalised(found.verdict), f"against {other}", f"{capitalised(note).rstrip('.')}.")


def tiles(numbers: dict[str, float | None], ratio_interval: Interval | None) -> list[Tile]:
    profit, optimum, blind = numbers["profit_mean"], numbers["oracle_profit"], numbers["blind_profit"]
    tiles = []
    if numbers["oracle_ratio"] is not None:
        between = "95% interval {} to {}.".format(*map(percent, ratio_interval)) if ratio_interval else ""
        earns = f"The optimum would earn {usd(optimum)} an hour." if optimum is not None else ""
        tiles.append(Tile(percent(numbers["oracle_ratio"]), "of the optimum", f"{between} {earns}".strip()))
    elif optimum is not None and optimum <= 0:
        note = f"It has no share of the optimum: even that would earn no more than {usd(optimum)} an hour."
        tiles.append(Tile(DASH, "of the optimum", note))
    if profit is not None and blind is not None:
        same = optimum is not None and abs(optimum - blind) < 0.005
        more = f" That is {percent(profit / blind - 1, 0)} more." if profit > blind > 0 else ""
        tiles.append(
            Tile(
                usd(profit - blind, signed=True),
                "an hour against blind",
                "With one context there is nothing to see: blind is the optimum."
                if same
                else f"Without looking, {usd(blind)} an hour could be earned.{more}",
            )
        )
    if numbers["wage_parity"] is not None:
        wage = numbers["human_wage"]
        tiles.append(
            Tile(
                f"{number(numbers['wage_parity'])}×",
                "the human wage" + (f" of {usd(wage)}" if wage is not None else ""),
                "Wage parity: the worth of an hour of its work, before costs, over what a person is paid.",
            )
        )
    if numbers["err_mean"] is not None:
        units = numbers["mp_mean"]
        tiles.append(
            Tile(
                percent(numbers["err_mean"]),
                "errors",
                "Share of attempts that went wrong."
                + (f" Average output: {number(units, 1)} good units an hour." if units is not None else ""),
            )
        )
    return tiles
