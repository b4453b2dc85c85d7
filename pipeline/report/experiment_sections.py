"""The experiments of a run on its page: charts, their results in sentences, and the value of each demonstration."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import VtpError
from pipeline.experiments.output import LEARNED
from pipeline.report.experiment_charts import Key, charts_of
from pipeline.report.figures import Chart, Download, csv_download
from pipeline.report.run_files import Missing
from pipeline.report.tables import Cell, Table, cell
from pipeline.report.words import DASH, count, listed, number, number_tick, percent, usd
from pipeline.runs import RunDirectory
from pipeline.text_files import read_text
from pipeline.training.revenue_split import skill_in_words

VALUED = 200  # demonstrations in the table, the most valuable
SAME = 0.005  # $/h


@dataclass(frozen=True)
class Experiment:
    """Charts with their key, the answer in a sentence, more in `says`, how to read them in `shows`, and the data."""

    name: str
    title: str
    answer: str
    shows: str
    says: str
    charts: list[Chart]
    keys: list[Key]
    download: Download
    table: Table | None


@dataclass(frozen=True)
class Experiments:
    """shown: in the order of the page; gaining: demonstrations that are surely worth more than nothing."""

    shown: list[Experiment]
    value: Experiment | None
    gaining: list[str]
    estimator: str
    missing: dict[str, Missing]


KINDS = {
    "frontier": (
        "What can be done",
        "Each chart is a context. Lines join actions of equal output or equal error rate.",
    ),
    "elasticity": (
        "If prices or wages changed",
        "The policy as it is, the optimum, which adapts, and on request the policy retrained at every point. Intervals "
        "are over validation episodes, or over the ensemble if outcomes are learned from logs.",
    ),
    "spread": (
        "Who would have got the spread",
        "The spread is what an hour of work would be worth above the human wage.",
    ),
    "value": (
        "What each demonstration is worth",
        "The value of a demonstration is the profit that it adds to a policy learned from it and others, averaged over "
        "random orders of arrival, judged on held-out videos. Intervals are over orders and outcomes, or over orders "
        "and the logged videos that judge. The learner is simpler than the one that trained this policy.",
    ),
}


def read_experiments(
    run: RunDirectory, config: dict[str, Any], *, labelled: bool, summary: dict[str, Any] | None = None
) -> Experiments:
    """A run's experiments and the skill of its estimator; for missing ones, the commands that make them.

    labelled: whether the demonstrations have labels, without which they cannot be valued. summary: of the validation,
    for comparison.
    """
    missing: dict[str, Missing] = {}
    found: dict[str, Experiment] = {}
    gaining: list[str] = []
    for name in KINDS:
        if name == "value" and config.get("source") == "sim":
            continue  # there are no demonstrations
        try:
            result = json.loads(read_text(run.experiments / f"{name}.json"))
            table = pd.read_csv(io.StringIO(read_text(run.experiments / f"{name}.csv")), dtype={"name": str})
            found[name] = _experiment(name, result, table, summary or {})
            if name == "value":
                gaining = table.loc[table["low"] > 0, "name"].astype(str).tolist()
        except FileNotFoundError as error:
            if name == "value" and not labelled:
                missing[name] = Missing(
                    "The value of each demonstration is not known: the clips have no labels, so there is no outcome to "
                    "learn from. Name labels in the manifest.",
                    with_labels(config),
                )
                continue
            file = f"{run.experiments.name}/{Path(str(error.filename)).name}"
            missing[name] = Missing(f"{file} is missing.", _command(run, name, config))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
            file = f"{run.experiments.name}/{name}"
            missing[name] = Missing(f"{file} cannot be read ({reason}).", _command(run, name, config))
    value = found.pop("value", None)
    return Experiments(list(found.values()), value, gaining, _estimator(run, missing, config), missing)


def with_labels(config: dict[str, Any]) -> str:
    return f"vtp extract MANIFEST --out {shlex.quote(str(config.get('embeddings') or 'data/embeddings.h5'))}"


def value_command(run: RunDirectory, config: dict[str, Any]) -> str:
    embeddings = shlex.quote(str(config.get("embeddings") or "data/embeddings.h5"))
    return f"vtp experiment value --embeddings {embeddings} --out {shlex.quote(str(run.experiments))}"


def _command(run: RunDirectory, name: str, config: dict[str, Any]) -> str:
    return value_command(run, config) if name == "value" else f"vtp experiment {name} {shlex.quote(str(run))}"


def _experiment(name: str, result: dict[str, Any], table: pd.DataFrame, summary: dict[str, Any]) -> Experiment:
    if table.empty:
        raise ValueError("no rows")
    title, shows = KINDS[name]
    charts, keys = charts_of(name, result, table)
    answer, more = SENTENCES[name](result, summary)
    says = " ".join(filter(None, (more, _judge_says(result))))
    drawn = TABLES[name](result, table) if name in TABLES else None
    return Experiment(name, title, answer, shows, says, charts, keys, csv_download(f"{name}.csv", table), drawn)


def _is_learned(result: dict[str, Any]) -> bool:
    return result.get("outcomes") == LEARNED


def _judge_says(result: dict[str, Any]) -> str:
    """The source of outcomes; empty for results of earlier versions, which do not state it."""
    if result.get("outcomes") is None:
        return ""
    if not _is_learned(result):
        return "Outcomes are the simulator’s; nobody paid this money."
    judged_by = f" Policies were judged by {result['judged_by']}." if "judged_by" in result else ""
    return f"Outcomes were {str(result['judge']).rstrip('.')}.{judged_by} All money is hypothetical."


def _between(bounds: list[float] | None, show: Callable[[float], str]) -> str:
    return "" if bounds is None else f" (95% interval {show(bounds[0])} to {show(bounds[1])})"


def _frontier_says(result: dict[str, Any], _: dict[str, Any]) -> tuple[str, str]:
    best = result["optimum"]
    action = "action that is the same for all contexts" if len(result["contexts"]) > 1 else "action"
    held = f" with {_actions(result['held'])}" if result["held"] else ""
    points = result["grid"] ** len(result["axes"])
    counted = _between(result.get("analytic_count_ci95"), lambda value: number(value, 0))
    sampled = "sampling" if _is_learned(result) else "simulation"
    answer = (
        f"{result['analytic_count']:,} of {points:,} actions{held}{counted} would meet the service level of "
        f"{number_tick(result['min_mp'])} good units an hour with at most {percent(result['max_err'])} errors"
        f"{' according to the logs' if _is_learned(result) else ''}."
    )
    more = (
        f"In a {sampled} of {result['env_steps']:,} steps it is {result['monte_carlo_count']:,}. The best {action} is "
        f"{_actions(best['actions'])}: it would earn {usd(best['profit'])} an hour"
        f"{_between(best.get('profit_ci95'), usd)}."
    )
    return answer, more


def _actions(values: dict[str, float]) -> str:
    return listed([f"{name.replace('_', ' ')} {number_tick(round(value, 4))}" for name, value in values.items()])


def _elasticity_says(result: dict[str, Any], summary: dict[str, Any]) -> tuple[str, str]:
    def answers(curve: str) -> dict[str, Any]:
        return dict(result["elasticities"][curve]["policy"])

    answer = _responds("A 1% higher price", "profit", answers("price"))
    more = [
        _responds("1% more damage by an error", "profit", answers("damage")),
        _responds("A 1% higher human wage", "the spread", answers("human_wage")),
    ]
    if result["shadow_price"]["policy"]["value"] == 0:
        target = percent(result["error_target"], 0)
        more.append(f"The error target of {target} costs nothing: the policy keeps it anyway.")
    if result.get("retrained"):
        more.append(_retrained_says(result))
    if _is_learned(result):
        more.append(_today_says(result))
    elif "profit" in result and summary.get("context_mix") == "stationary":
        more.append(
            f"Contexts are weighted here by how often validation met them: at today’s prices the policy would earn "
            f"{usd(result['profit']['policy']['value'])} an hour; in the headline each context counts equally."
        )
    return answer, " ".join(more)


def _responds(cause: str, quantity: str, found: dict[str, float | None]) -> str:
    """An elasticity as a sentence, with a direction if its interval excludes zero."""
    value, low, high = (found[key] for key in ("value", "low", "high"))
    if value is None:
        return f"How {quantity} responds to {cause[0].lower()}{cause[1:]} is not defined: {quantity} is not positive."
    if low is None or high is None:
        return f"{cause} would {'raise' if value >= 0 else 'lower'} {quantity} by {number(abs(value))}%."
    if low < 0 < high:
        return (
            f"{cause} would change {quantity} by {number(value)}% (95% interval {number(low)}% to {number(high)}%, "
            "which contains zero)."
        )
    near, far = sorted((abs(low), abs(high)))
    verb = "raise" if value >= 0 else "lower"
    return f"{cause} would {verb} {quantity} by {number(abs(value))}% (95% interval {number(near)}% to {number(far)}%)."


def _today_says(result: dict[str, Any]) -> str:
    def one(who: str) -> str:
        earned = result["profit"][who]
        return f"{usd(earned['value'])}{_between([earned['low'], earned['high']], usd)}"

    return (
        f"At today’s prices the policy would have earned {one('policy')} an hour, and the optimum, which takes the "
        f"best actions according to the logs, {one('oracle')}."
    )


def _retrained_says(result: dict[str, Any]) -> str:
    work, over_range = result["retrained"], result["elasticities_over_range"]

    def compare(curve: str) -> str:
        values = (over_range[curve][who]["value"] for who in ("policy", "retrained", "oracle"))
        return ", ".join(DASH if value is None else f"{number(value)}%" for value in values)

    return (
        f"The policy was also retrained at every point by {work['updates']:,} updates ({count(work['seeds'], 'seed')}) "
        f"and judged, as the others, on {result['judged_on']}: over the whole range a 1% higher price would change "
        f"profit by {compare('price')}, and 1% more damage by {compare('damage')} (fixed, retrained, optimum)."
    )


def _spread_says(result: dict[str, Any], summary: dict[str, Any]) -> tuple[str, str]:
    answer = (
        f"Of {usd(result['spread_usd'])} over {count(result['episodes'], 'training episode')}, "
        f"{usd(result['rebate_usd'])} ({percent(result['customer_share'])}) would have gone to customers and "
        f"{usd(result['captured_usd'])} to the platform."
    )
    more = ""
    if result["hours"] > 0:
        more = f"That is {usd(result['spread_usd'] / result['hours'])} for each of {number(result['hours'], 0)} hours. "
    validated = summary.get("spread")
    if isinstance(validated, (int, float)):
        more += (
            f"The spread of {usd(float(validated))} an hour in the table of money differs: it is of the trained policy "
            "in validation, not of training, which explores. "
        )
    cost = result["customer_cost_usd"]
    return answer, (
        f"{more}Customers would have paid {usd(cost)} for work that would have cost them "
        f"{usd(cost + result['consumer_surplus_usd'])} in flawless human hands."
    )


def _value_says(result: dict[str, Any], _: dict[str, Any]) -> tuple[str, str]:
    none, everything = (
        f"{usd(result[name])}{_between(result.get(f'{name}_ci95'), usd)}"
        for name in ("profit_of_none", "profit_of_all")
    )
    total = result["demonstrations"]
    without = "no demonstration" if _is_learned(result) else "no demonstration (blind)"
    more = (
        f"A policy that learned from {without} would earn {none} an hour; from all {total:,}, {everything}. Together "
        f"the demonstrations would be paid {usd(result['paid_per_hour'])} an hour of robot work: at most what they "
        f"add, and at most {usd(result['spread_per_hour'])}, which is what the policy that learned from all would earn "
        f"above the human wage by this judge. Estimated from {count(result['orders'], 'random order')}, each stopped "
        f"within {usd(result['tolerance'])} of the full value ({result['policies_learned']:,} policies)."
    )
    return worth_in_words(result["worth_more_than_nothing"], total), more


def worth_in_words(worth: int, total: int) -> str:
    """A sentence on the number of demonstrations that are certainly worth more than nothing."""
    if total == 1:
        return (
            "The one demonstration is worth more than nothing (95% interval above zero)."
            if worth
            else "The one demonstration is not surely worth more than nothing (its 95% interval reaches zero)."
        )
    if worth == total:
        return f"All {total:,} are worth more than nothing (95% intervals above zero)."
    if worth == 0:
        return f"None of the {total:,} is surely worth more than nothing (all 95% intervals reach zero)."
    others = total - worth
    rest = (
        f"the intervals of the other {others:,} reach zero"
        if others > 1
        else "the interval of the other one reaches zero"
    )
    verb = "is" if worth == 1 else "are"
    return f"{worth:,} of {total:,} {verb} worth more than nothing (95% intervals above zero); {rest}."


SENTENCES: dict[str, Callable[[dict[str, Any], dict[str, Any]], tuple[str, str]]] = {
    "frontier": _frontier_says, "elasticity": _elasticity_says, "spread": _spread_says, "value": _value_says,
}  # fmt: skip


def _periods(result: dict[str, Any], _: pd.DataFrame) -> Table:
    columns: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("Good units /h", "mp", lambda value: number(value, 1)),
        ("Gain /h", "delta_mpl", lambda value: number(value, 1)),
        ("on the last three", "delta_mpl_trailing", lambda value: number(value, 1)),
        ("Worth $/h", "implied_wage", usd),
        ("Human wage $/h", "human_wage", usd),
        ("Parity", "wage_parity", number),
        ("Spread $", "spread_value", usd),
        ("Rebate $", "rebate", usd),
        ("Captured $", "captured_spread", usd),
        ("Customer would pay $", "customer_cost", usd),
        ("Customer’s surplus $", "consumer_surplus", usd),
    )
    rows = [
        [cell(f"{row['last_episode']:,}", row["last_episode"])]
        + [cell(show(row[key]), row[key]) for _, key, show in columns]
        for row in result["periods"]
    ]
    return Table(
        "Training by periods: average output in good units an hour, its gain over the period before and over the mean "
        "of the last three; rates in $ an hour; and dollars of the whole period. The customer’s surplus is what the "
        "good units would have cost in flawless human hands, less what would have been paid for them. Nobody paid it.",
        [("To episode", "number first")] + [(label, "number") for label, _, _ in columns],
        rows,
        csv_download("spread-periods.csv", pd.DataFrame(result["periods"])),
    )


def _valued(_: dict[str, Any], table: pd.DataFrame) -> Table:
    """One row per demonstration; prices only if some differ from the value, or from 0 if the value is negative."""
    is_priced = bool(((table["price"] - table["value"].clip(lower=0)).abs() >= SAME).any())
    intervals = [("value", "low", "high"), *([("price", "price_low", "price_high")] if is_priced else [])]
    rows = []
    for row in table.head(VALUED).to_dict("records"):
        cells = [Cell(str(row["name"]), str(row["name"])), cell(f"{row['clips']:,}", row["clips"])]
        for middle, low, high in intervals:
            cells.append(cell(f"{usd(row[middle])} [{usd(row[low])}, {usd(row[high])}]", row[middle]))
        rows.append([*cells, cell(usd(row["leave_one_out"]), row["leave_one_out"])])
    labels = ("Clips", "Value $/h", *(["Price $/h"] if is_priced else []), "Lost if left out $/h")
    prices = "" if is_priced else " Each would be paid its value, or nothing if the value is negative."
    first = f" The {VALUED} most valuable; the file has all." if len(table) > VALUED else ""
    return Table(
        f"Dollars per hour of robot work, with 95% intervals.{prices}{first}",
        [("Demonstration", "text")] + [(label, "number") for label in labels],
        rows,
        csv_download("value.csv", table),
    )


TABLES = {"spread": _periods, "value": _valued}


def _estimator(run: RunDirectory, missing: dict[str, Missing], config: dict[str, Any]) -> str:
    """The skill of the estimator of the customers' share, as text."""
    try:
        skill = run.read_estimator()
        if skill is not None:
            return skill_in_words(skill)
        reason = "is missing"
    except (VtpError, KeyError, TypeError):
        reason = "cannot be read"
    missing["estimator"] = Missing(
        f"{run.estimator.name} {reason}: the skill of the estimator of the customers’ share is not known.",
        f"vtp train --config {shlex.quote(str(run.config))}" if config else f"vtp train --out {shlex.quote(str(run))}",
    )
    return ""
