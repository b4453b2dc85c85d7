"""The experiments of a run on its page: figures, what they say in a sentence, and what each demonstration is paid."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.report.figures import Download, csv_download
from pipeline.report.files import Missing, finite
from pipeline.report.themed import data_uri, themed
from pipeline.report.words import count, number, percent, usd

FIGURE_BYTES = 600_000  # of one figure before base64
VALUED = 200  # demonstrations in the table, the most valuable


@dataclass(frozen=True)
class Experiment:
    """A figure as a data URI, what it shows, its key numbers as a sentence, and its data."""

    name: str
    title: str
    shows: str
    says: str
    uri: str
    download: Download


@dataclass(frozen=True)
class Valued:
    """A demonstration's row: name, clips, value and price with their intervals, as text and as sort keys."""

    name: str
    cells: list[tuple[str, float]]


@dataclass(frozen=True)
class Experiments:
    shown: list[Experiment]
    valued: list[Valued]
    value: Experiment | None
    estimator: str
    missing: dict[str, Missing]


KINDS = {
    "frontier": (
        "What can be done",
        "Speed and care that meet the service level are shaded; green lines join equal output, red ones equal error "
        "rates. The ring is the best action, the dot the policy’s mean one.",
    ),
    "elasticity": (
        "If prices or wages change",
        "The policy as it is, and the oracle, which adapts. Shaded are 95% intervals over validation episodes.",
    ),
    "spread": (
        "Who got the spread",
        "What training episodes earned above the human wage, and who was paid it.",
    ),
    "value": (
        "What each demonstration is worth",
        "Profit that it adds to a policy learned from it and others, averaged over orders of arrival, judged on "
        "held-out videos. Lines are 95% intervals of the luck of orders and outcomes, not of which videos were held "
        "out. The learner is simpler than the one that trained this policy.",
    ),
}


def read_experiments(run: Path, config: dict[str, Any]) -> Experiments:
    """What RUN/experiments and RUN/data_value.json hold; what they lack is said with the command that makes it."""
    missing: dict[str, Missing] = {}
    found: dict[str, Experiment] = {}
    for name, (title, shows) in KINDS.items():
        if name == "value" and config.get("source") == "sim":
            continue  # there are no demonstrations
        try:
            found[name] = _read(run / "experiments", name, title, shows)
        except FileNotFoundError as error:
            sentence = f"experiments/{Path(str(error.filename)).name} is missing: there is no “{title.lower()}”."
            missing[name] = Missing(sentence, _command(run, name, config))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            missing[name] = Missing(f"experiments/{name} cannot be read ({reason}).", _command(run, name, config))
    value = found.pop("value", None)
    valued = _valued(run / "experiments" / "value.csv") if value else []
    return Experiments(list(found.values()), valued, value, _estimator(run, missing, config), missing)


def _command(run: Path, name: str, config: dict[str, Any]) -> str:
    if name != "value":
        return f"vtp experiment {name} {shlex.quote(str(run))}"
    embeddings = shlex.quote(str(config.get("embeddings") or "data/embeddings.h5"))
    return f"vtp experiment value --embeddings {embeddings} --out {shlex.quote(str(run / 'experiments'))}"


def _read(folder: Path, name: str, title: str, shows: str) -> Experiment:
    result = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    table = pd.read_csv(folder / f"{name}.csv")
    image, kind = themed((folder / f"{name}.svg").read_text(encoding="utf-8")).encode(), "svg+xml"
    if len(image) > FIGURE_BYTES:
        image, kind = (folder / f"{name}.png").read_bytes(), "png"
    if len(image) > FIGURE_BYTES:
        raise ValueError(f"its figure has {len(image):,} bytes, more than {FIGURE_BYTES:,}")
    uri = data_uri(image, kind)
    return Experiment(name, title, shows, SENTENCES[name](result), uri, csv_download(f"{name}.csv", table))


def _frontier_says(result: dict[str, Any]) -> str:
    best = result["optimum"]
    action = "action that is the same for all" if len(result["contexts"]) > 1 else "action"
    return (
        f"{result['analytic_count']:,} of {result['grid'] ** 2:,} actions meet {number(result['min_mp'], 0)} good "
        f"units an hour and {percent(result['max_err'])} errors by formula, {result['monte_carlo_count']:,} in "
        f"{result['env_steps']:,} simulated steps. The best {action} "
        f"is speed {number(best['speed'])} and care {number(best['care'])}: {usd(best['profit'])} an hour."
    )


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
    )


def _spread_says(result: dict[str, Any]) -> str:
    return (
        f"Over {count(result['episodes'], 'episode')} and {number(result['hours'], 0)} hours of training "
        f"{usd(result['spread_usd'])} of spread was paid: {usd(result['rebate_usd'])} "
        f"({percent(result['customer_share'])}) to customers, {usd(result['captured_usd'])} to the platform."
    )


def _value_says(result: dict[str, Any]) -> str:
    return (
        f"Learned blind, {usd(result['profit_of_none'])} an hour; with all {result['demonstrations']} demonstrations "
        f"{usd(result['profit_of_all'])}. Of {result['demonstrations']}, {result['worth_more_than_nothing']} are worth "
        f"more than nothing for certain; the intervals of the others hold zero. Together they are paid "
        f"{usd(result['paid_per_hour'])} for an hour of robot work, at most what they add and at most the spread of "
        f"{usd(result['spread_per_hour'])}."
    )


SENTENCES = {
    "frontier": _frontier_says, "elasticity": _elasticity_says, "spread": _spread_says, "value": _value_says,
}  # fmt: skip


def _valued(path: Path) -> list[Valued]:
    rows = []
    for row in pd.read_csv(path, dtype={"name": str}).head(VALUED).to_dict("records"):
        cells = [(f"{row['clips']:,}", float(row["clips"]))]
        for middle, low, high in (("value", "low", "high"), ("price", "price_low", "price_high")):
            text = f"{usd(row[middle])} [{usd(row[low])}, {usd(row[high])}]"
            cells.append((text, float(row[middle])))
        cells.append((usd(row["leave_one_out"]), float(row["leave_one_out"])))
        rows.append(Valued(str(row["name"]), cells))
    return rows


def _estimator(run: Path, missing: dict[str, Missing], config: dict[str, Any]) -> str:
    """What the customers' share of the spread rests on, in words."""
    try:
        skill = json.loads((run / "data_value.json").read_text(encoding="utf-8"))["estimator"]
        r2, ranks = finite(skill["r2"]), finite(skill["rank_correlation"])
        if r2 is None or ranks is None:
            return (
                f"No skill is known of the estimator of the customers’ share: {skill['episodes']} episodes are too few."
            )
        (r2_low, r2_high), (low, high) = skill["r2_ci95"], skill["rank_correlation_ci95"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        again = shlex.quote(str(run / "config.yaml"))
        missing["estimator"] = Missing(
            f"data_value.json {reason}: the skill of the estimator of the customers’ share is not known.",
            f"vtp train --config {again}" if config else f"vtp train --out {shlex.quote(str(run))}",
        )
        return ""
    if r2_low > 0:
        verdict = "The estimator of the customers’ share has skill"
    elif low > 0:
        verdict = (
            "The estimator of the customers’ share ranks episodes better than chance, but no better than a constant"
        )
    else:
        verdict = "The estimator of the customers’ share has no skill: what it pays is not earned by what it knows"
    return (
        f"{verdict}. Asked before each of {count(skill['episodes'], 'episode')}, it explains "
        f"{percent(r2)} of the gains’ variance beyond a constant (95% interval {percent(r2_low)} to "
        f"{percent(r2_high)}); its rank correlation with them is {number(ranks)} ({number(low)} to {number(high)})."
    )
