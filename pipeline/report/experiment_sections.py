"""The experiments of a run on its page: figures, what they say in a sentence, and what each demonstration is paid."""

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
from pipeline.report.figures import Download, csv_download
from pipeline.report.run_files import Missing
from pipeline.report.tables import Cell, Table, cell
from pipeline.report.themed import data_uri, themed
from pipeline.report.words import DASH, count, listed, number, percent, usd
from pipeline.runs import RunDirectory
from pipeline.text_files import read_text
from pipeline.training.revenue_split import skill_in_words

FIGURE_BYTES = 600_000  # of one figure before base64
VALUED = 200  # demonstrations in the table, the most valuable


@dataclass(frozen=True)
class Experiment:
    """A figure as a data URI, what it shows, its key numbers as a sentence, its data, and a table where it has one."""

    name: str
    title: str
    shows: str
    says: str
    uri: str
    download: Download
    table: Table | None


@dataclass(frozen=True)
class Experiments:
    shown: list[Experiment]
    value: Experiment | None
    estimator: str
    missing: dict[str, Missing]


KINDS = {
    "frontier": (
        "What can be done",
        "Actions that meet the service level are shaded; green lines are of output, red ones of error rates. The ring "
        "is the best action, the dot the policy’s mean one.",
    ),
    "elasticity": (
        "If prices or wages change",
        "The policy as it is, the oracle, which adapts, and on request the policy retrained at every point. "
        "Shaded are 95% intervals: over validation episodes, or if outcomes are learned from logs, over the ensemble.",
    ),
    "spread": (
        "Who would have got the spread",
        "What training episodes would have earned above the human wage, and who would have been paid it.",
    ),
    "value": (
        "What each demonstration is worth",
        "Profit that it adds to a policy learned from it and others, averaged over orders of arrival, judged on "
        "held-out videos. Lines are 95% intervals: of the luck of orders and outcomes, or if outcomes are learned from "
        "logs, of that of orders and of the logged videos that judge. The learner is simpler than the one that trained "
        "this policy.",
    ),
}


def read_experiments(run: RunDirectory, config: dict[str, Any], *, labelled: bool) -> Experiments:
    """What experiments left in a run, and training of its estimator; what lacks is said with the command for it.

    labelled: whether the demonstrations have labels, without which they cannot be valued.
    """
    missing: dict[str, Missing] = {}
    found: dict[str, Experiment] = {}
    for name, (title, shows) in KINDS.items():
        if name == "value" and config.get("source") == "sim":
            continue  # there are no demonstrations
        try:
            found[name] = _read(run.experiments, name, title, shows)
        except FileNotFoundError as error:
            if name == "value" and not labelled:
                missing[name] = Missing(
                    "What each demonstration is worth cannot be told: the clips have no labels, so there is no outcome "
                    "to learn from. Name labels in the manifest.",
                    with_labels(config),
                )
                continue
            file = f"{run.experiments.name}/{Path(str(error.filename)).name}"
            sentence = f"{file} is missing: there is no “{title.lower()}”."
            missing[name] = Missing(sentence, _command(run, name, config))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
            file = f"{run.experiments.name}/{name}"
            missing[name] = Missing(f"{file} cannot be read ({reason}).", _command(run, name, config))
    value = found.pop("value", None)
    return Experiments(list(found.values()), value, _estimator(run, missing, config), missing)


def with_labels(config: dict[str, Any]) -> str:
    return f"vtp extract MANIFEST --out {shlex.quote(str(config.get('embeddings') or 'data/embeddings.h5'))}"


def value_command(run: RunDirectory, config: dict[str, Any]) -> str:
    embeddings = shlex.quote(str(config.get("embeddings") or "data/embeddings.h5"))
    return f"vtp experiment value --embeddings {embeddings} --out {shlex.quote(str(run.experiments))}"


def _command(run: RunDirectory, name: str, config: dict[str, Any]) -> str:
    return value_command(run, config) if name == "value" else f"vtp experiment {name} {shlex.quote(str(run))}"


def _read(folder: Path, name: str, title: str, shows: str) -> Experiment:
    result = json.loads(read_text(folder / f"{name}.json"))
    table = pd.read_csv(io.StringIO(read_text(folder / f"{name}.csv")), dtype={"name": str})
    image, kind = themed(read_text(folder / f"{name}.svg")).encode(), "svg+xml"
    if len(image) > FIGURE_BYTES:
        image, kind = (folder / f"{name}.png").read_bytes(), "png"
    if len(image) > FIGURE_BYTES:
        raise ValueError(f"its figure has {len(image):,} bytes, more than {FIGURE_BYTES:,}")
    uri = data_uri(image, kind)
    drawn = TABLES[name](result, table) if name in TABLES else None
    says = " ".join(filter(None, (SENTENCES[name](result).strip(), _judge_says(result))))
    return Experiment(name, title, shows, says, uri, csv_download(f"{name}.csv", table), drawn)


def _is_learned(result: dict[str, Any]) -> bool:
    return result.get("outcomes") == LEARNED


def _judge_says(result: dict[str, Any]) -> str:
    """Where outcomes come from; nothing of a result of an earlier version, which does not say."""
    if result.get("outcomes") is None:
        return ""
    if not _is_learned(result):
        return "Outcomes are the simulator’s."
    judged_by = f" Policies were judged by {result['judged_by']}." if "judged_by" in result else ""
    return f"Outcomes were {str(result['judge']).rstrip('.')}.{judged_by} All money is what would have been."


def _between(bounds: list[float] | None, show: Callable[[float], str]) -> str:
    return "" if bounds is None else f" (95% interval {show(bounds[0])} to {show(bounds[1])})"


def _frontier_says(result: dict[str, Any]) -> str:
    best = result["optimum"]
    action = "action that is the same for all" if len(result["contexts"]) > 1 else "action"
    held = f" with {_actions(result['held'])}" if result["held"] else ""
    points = result["grid"] ** len(result["axes"])
    by = "according to the logs" if _is_learned(result) else "by formula"
    in_steps = "sampled" if _is_learned(result) else "simulated"
    counted = _between(result.get("analytic_count_ci95"), lambda value: number(value, 0))
    return (
        f"{result['analytic_count']:,} of {points:,} actions{held}{counted} meet {number(result['min_mp'], 0)} good "
        f"units an hour and {percent(result['max_err'])} errors {by}, {result['monte_carlo_count']:,} in "
        f"{result['env_steps']:,} {in_steps} steps. The best {action} is {_actions(best['actions'])}: "
        f"{usd(best['profit'])} an hour{_between(best.get('profit_ci95'), usd)}."
    )


def _actions(values: dict[str, float]) -> str:
    named = [f"{name.replace('_', ' ')} {value:.3g}".replace("-", "−") for name, value in values.items()]
    return listed(named)


def _elasticity_says(result: dict[str, Any]) -> str:
    def one(curve: str) -> str:
        e = result["elasticities"][curve]["policy"]
        if e["value"] is None:
            return "not defined, for it is not positive"
        if e["low"] is None:
            return number(e["value"])
        return f"{number(e['value'])} (95% interval {number(e['low'])} to {number(e['high'])})"

    price = result["shadow_price"]["policy"]["value"]
    target = percent(result["error_target"], 0)
    slack = f"The error target of {target} costs the policy nothing: it keeps it as it is." if price == 0 else ""
    return (
        f"For each percent, profit answers to the price with {one('price')} percent and to the damage of an error with "
        f"{one('damage')}; the spread answers to the human wage with {one('human_wage')}. {slack}"
        + (_retrained_says(result) if result.get("retrained") else "")
        + (_best_by_logs_says(result) if _is_learned(result) else "")
    )


def _best_by_logs_says(result: dict[str, Any]) -> str:
    def one(who: str) -> str:
        earned = result["profit"][who]
        return f"{usd(earned['value'])}{_between([earned['low'], earned['high']], usd)}"

    return (
        f" At today’s prices the policy would have earned {one('policy')} an hour, and the oracle, which takes the "
        f"best actions according to the logs, {one('oracle')}."
    )


def _retrained_says(result: dict[str, Any]) -> str:
    work, over_range = result["retrained"], result["elasticities_over_range"]

    def compare(curve: str) -> str:
        values = (over_range[curve][who]["value"] for who in ("policy", "retrained", "oracle"))
        return ", ".join(DASH if value is None else number(value) for value in values)

    return (
        f" The policy was also retrained at every point by {work['updates']:,} updates "
        f"({count(work['seeds'], 'seed')}) and judged, as the others, on {result['judged_on']}: "
        f"over the whole range profit answers to the price with {compare('price')} and to damage with "
        f"{compare('damage')} (fixed, retrained, oracle)."
    )


def _spread_says(result: dict[str, Any]) -> str:
    return (
        f"Over {count(result['episodes'], 'episode')} and {number(result['hours'], 0)} hours of training "
        f"{usd(result['spread_usd'])} of spread would have been paid: {usd(result['rebate_usd'])} "
        f"({percent(result['customer_share'])}) to customers, {usd(result['captured_usd'])} to the platform. Customers "
        f"would have paid {usd(result['customer_cost_usd'])} for work that would have cost them "
        f"{usd(result['customer_cost_usd'] + result['consumer_surplus_usd'])} in flawless human hands."
    )


def _value_says(result: dict[str, Any]) -> str:
    none, everything = (
        f"{usd(result[name])}{_between(result.get(f'{name}_ci95'), usd)}"
        for name in ("profit_of_none", "profit_of_all")
    )
    learned = "Without a demonstration" if _is_learned(result) else "Learned blind"
    return (
        f"{learned}, {none} an hour; with all {result['demonstrations']} demonstrations "
        f"{everything}. Of {result['demonstrations']}, {result['worth_more_than_nothing']} are worth "
        f"more than nothing for certain; the intervals of the others hold zero. Together they would have been paid "
        f"{usd(result['paid_per_hour'])} for an hour of robot work, at most what they add and at most the spread of "
        f"{usd(result['spread_per_hour'])}. The budget was {result['orders']:,} orders of arrival, cut where within "
        f"{usd(result['tolerance'])} of what all data earns: {result['policies_learned']:,} policies."
    )


SENTENCES = {
    "frontier": _frontier_says, "elasticity": _elasticity_says, "spread": _spread_says, "value": _value_says,
}  # fmt: skip


def _periods(result: dict[str, Any], _: pd.DataFrame) -> Table:
    columns: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("Good units /h", "mp", lambda value: number(value, 1)),
        ("Gain", "delta_mpl", lambda value: number(value, 1)),
        ("on the last three", "delta_mpl_trailing", lambda value: number(value, 1)),
        ("Worth $/h", "implied_wage", usd),
        ("Human wage $/h", "human_wage", usd),
        ("Parity", "wage_parity", number),
        ("Spread", "spread_value", usd),
        ("Rebate", "rebate", usd),
        ("Captured", "captured_spread", usd),
        ("Customer would pay", "customer_cost", usd),
        ("Customer’s surplus", "consumer_surplus", usd),
    )
    rows = [
        [cell(f"{row['last_episode']:,}", row["last_episode"])]
        + [cell(show(row[key]), row[key]) for _, key, show in columns]
        for row in result["periods"]
    ]
    return Table(
        "Training by periods: rates an hour, gains in them on the period before and on the mean of the last three, and "
        "dollars of the whole period. A customer’s surplus is what the good units would have cost in flawless human "
        "hands, less what would have been paid for them. Nobody paid any of it.",
        [("To episode", "number first")] + [(label, "number") for label, _, _ in columns],
        rows,
        csv_download("spread-periods.csv", pd.DataFrame(result["periods"])),
    )


def _valued(_: dict[str, Any], table: pd.DataFrame) -> Table:
    rows = []
    for row in table.head(VALUED).to_dict("records"):
        cells = [Cell(str(row["name"]), str(row["name"])), cell(f"{row['clips']:,}", row["clips"])]
        for middle, low, high in (("value", "low", "high"), ("price", "price_low", "price_high")):
            cells.append(cell(f"{usd(row[middle])} [{usd(row[low])}, {usd(row[high])}]", row[middle]))
        rows.append([*cells, cell(usd(row["leave_one_out"]), row["leave_one_out"])])
    labels = ("Clips", "Value", "Price", "Missed if left out")
    return Table(
        "Dollars for an hour of robot work, with 95% intervals.",
        [("Demonstration", "text")] + [(label, "number") for label in labels],
        rows,
        csv_download("value.csv", table),
    )


TABLES = {"spread": _periods, "value": _valued}


def _estimator(run: RunDirectory, missing: dict[str, Missing], config: dict[str, Any]) -> str:
    """What the customers' share of the spread rests on, in words."""
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
