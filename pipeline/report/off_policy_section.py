"""The section on off-policy evaluation: all estimates, the support by the logs, and other policies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.outcomes.identification import FEWEST_EFFECTIVE, LARGEST_WEIGHT, LEAST_OVERLAP
from pipeline.report import verdict
from pipeline.report.figures import csv_download
from pipeline.report.summary_figures import capitalised, finite, finite_values
from pipeline.report.tables import Cell, Table, cell
from pipeline.report.words import DASH, number, number_tick, percent, usd
from pipeline.runs.judgement import Comparison, over_logging_policy, read_comparison, read_estimate

ESTIMATES = (  # label, key of a summary's off_policy
    ("The logging policy: mean of what was logged", "logging_policy"),
    ("This policy, direct: the outcome model’s expectation", "direct"),
    ("This policy, weighted: logged steps with similar actions", "weighted"),
    ("This policy, doubly robust: the model, corrected by those steps", "doubly_robust"),
)
SENSITIVITY = (
    ("Change at half the bandwidth", "change_at_half_bandwidth"),
    ("Change at double the bandwidth", "change_at_double_bandwidth"),
)
INTERVAL_HEADS = [("Estimate", "text"), ("$ an hour", "number"), ("95% interval", "number")]


@dataclass(frozen=True)
class OffPolicySection:
    answer: str
    says: list[str]
    estimates: Table
    support: list[tuple[str, str, str]]  # quantity, value, meaning
    policies: Table
    caution: list[tuple[str, str, str]]


def off_policy_section(summary: dict[str, Any], config: dict[str, Any]) -> OffPolicySection | None:
    """The section; None without off-policy evaluation. config: the settings of training."""
    found, over = summary.get("off_policy"), over_logging_policy(summary)
    if not isinstance(found, dict) or over is None:
        return None
    answer, *says = verdict.of_logs(summary, with_advice=False)
    return OffPolicySection(
        answer,
        says,
        _estimates(found, over, verdict.against_constant(summary)),
        _support(found),
        _policies(found, over),
        _caution(summary, config),
    )


def _estimates(found: dict[str, Any], over: Comparison, against: Comparison | None) -> Table:
    rows = [(label, read_estimate(found.get(key)), "") for label, key in ESTIMATES]
    rows.append((f"Change over {verdict.LOGGING_POLICY}, doubly robust", over.change, over.verdict))
    rows += [(label, read_estimate(found.get(key)), "") for label, key in SENSITIVITY]
    if against is not None:
        rows.append((f"Change over {verdict.CONSTANT}, doubly robust", against.change, against.verdict))
    caption = (
        "What the policy would earn by each estimate. Direct figures are the outcome model’s expectation; their "
        "interval does not cover the model’s own mistakes."
    )
    if over.verdict == "not identified":
        caption += " The change is not identified, so none of these figures can be relied on."
    table = pd.DataFrame([{"estimate": label, **_columns(estimate)} for label, estimate, _ in rows])
    cells = [
        [Cell(label, label), *_cells(estimate, instead, signed=label.startswith("Change"))]
        for label, estimate, instead in rows
    ]
    return Table(caption, INTERVAL_HEADS, cells, csv_download("estimates.csv", table))


def _policies(found: dict[str, Any], over: Comparison) -> Table:
    others = found.get("policies")
    named = {"this policy": over} | {
        str(name): other
        for name, value in (others.items() if isinstance(others, dict) else ())
        if (other := read_comparison(value)) is not None
    }
    table = pd.DataFrame(
        [
            {"policy": name, "verdict": one.verdict, **_columns(one.change), "reason": one.reason}
            for name, one in named.items()
        ]
    )
    rows = [
        [
            Cell(capitalised(name), name),
            Cell(capitalised(one.verdict), one.verdict),
            *_cells(one.change, "", signed=True),
        ]
        for name, one in named.items()
    ]
    return Table(
        "Other policies learned from the same logs, each against the logging policy on the same held-out steps: change "
        "in dollars an hour, doubly robust. A policy is “better” or “worse” only if the 95% interval excludes zero.",
        [("Policy", "text"), ("Against the logging policy", "text"), *INTERVAL_HEADS[1:]],
        rows,
        csv_download("policies.csv", table),
    )


def _columns(estimate: tuple[float, float, float] | None) -> dict[str, float | None]:
    values = (None, None, None) if estimate is None else tuple(x if math.isfinite(x) else None for x in estimate)
    return dict(zip(("usd_per_hour", "low", "high"), values, strict=True))


def _cells(estimate: tuple[float, float, float] | None, instead: str, *, signed: bool) -> list[Cell]:
    if estimate is None:
        return [cell(instead or DASH, None), cell(DASH, None)]
    value, low, high = estimate
    known = math.isfinite(low) and math.isfinite(high)
    between = f"{usd(low, signed=signed)} to {usd(high, signed=signed)}" if known else "unbounded"
    return [cell(usd(value, signed=signed), value), cell(between, high - low if known else None)]


def _support(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    numbers = finite_values(found)
    return [
        (
            "Effective steps",
            number(numbers.get("effective_steps"), 1),
            f"Equally weighted steps with as much information (Kish); {number_tick(FEWEST_EFFECTIVE)} are needed.",
        ),
        (
            "Largest weight",
            percent(numbers.get("largest_weight")),
            f"Of a single step, as a share of all weights; {percent(LARGEST_WEIGHT, 0)} at most.",
        ),
        (
            "Overlap",
            percent(numbers.get("overlap")),
            f"Share of hours in which logs have actions like the policy’s; {percent(LEAST_OVERLAP, 0)} are needed.",
        ),
        (
            "Propensities",
            str(found.get("propensities") or DASH),
            "How likely the logging policy was to choose each action: logged with it, or estimated from the logs.",
        ),
        ("Held-out videos", number(numbers.get("num_videos"), 0), _seen(found)),
        ("Held-out steps", number(numbers.get("num_steps"), 0), "Logged clips of those videos."),
    ]


def _seen(found: dict[str, Any]) -> str:
    if found.get("same_videos"):
        return "The model has seen other clips of the same videos."
    return "The outcome model has seen none of them."


def _caution(summary: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, str, str]]:
    value = summary.get("provenance")
    provenance = finite_values(value) if isinstance(value, dict) else {}
    kappa, unsupported = provenance.get("kappa"), provenance.get("unsupported")
    if kappa is None or unsupported is None:
        return []
    given = finite(config.get("kappa")) is not None and finite(config.get("unsupported")) is not None
    chosen = (
        "given as a setting"
        if given
        else "chosen by cross-validation on the logs, by a lower bound on the gain over the logging policy"
    )
    gain, least = (provenance.get(name) for name in ("fold_gain_usd_per_hour", "fold_gain_lower_bound"))
    return [
        (
            "Caution, κ",
            number_tick(kappa),
            f"Standard deviations subtracted from what the outcome model expects; {chosen}.",
        ),
        (
            "Unsupported",
            number_tick(unsupported),
            f"Human wages subtracted if no similar action was logged; {chosen}.",
        ),
        (
            "Gain in cross-validation",
            f"{usd(gain, signed=True)} an hour",
            f"Over the logging policy; its lower bound is {usd(least, signed=True)} an hour. The learned policy is "
            "deployed only if this bound is above zero, otherwise a clone of the logging policy.",
        ),
    ]
