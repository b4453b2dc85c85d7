"""A table of the economic figures of the work, with itemised costs."""

from __future__ import annotations

from typing import Any

from pipeline.econ import PARITY_MARGIN
from pipeline.report.summary_figures import finite_values
from pipeline.report.words import listed, number, percent, usd

Rows = list[tuple[str, str, str]]


def costs_of(summary: dict[str, Any]) -> dict[str, float] | None:
    """Costs by item, in $/h; None if the summary does not itemise them."""
    costs = summary.get("costs_usd_per_hour")
    if not isinstance(costs, dict):
        return None
    return {item: cost for item, cost in finite_values(costs).items() if cost is not None}


def profit_in_words(costs: dict[str, float] | None) -> str:
    """A sentence that defines profit, with every cost that is included."""
    profit = "Profit is the price of good units less the damage of errors"
    if costs is None:
        return f"{profit} and less the costs of the hour."
    if not costs:
        return f"{profit}; the task has no hourly costs."
    items = listed([f"{item} ({usd(cost)} an hour)" for item, cost in costs.items()])
    return f"{profit} and less {items}; no other cost is included."


def economics_answer(summary: dict[str, Any], numbers: dict[str, float | None]) -> str:
    """A sentence on the value, the costs and the profit per hour."""
    worth, profit, human, costs = (
        implied_wage(numbers),
        numbers["profit_mean"],
        numbers["human_wage"],
        costs_of(summary),
    )
    if worth is None or profit is None:
        return ""
    if costs:
        says = (
            f"An hour of its work would be worth {usd(worth)}, cost {usd(sum(costs.values()))} and leave {usd(profit)}"
        )
    else:
        says = f"An hour of its work would be worth {usd(worth)} and leave {usd(profit)}"
    return f"{says}; a person is paid {usd(human)}." if human is not None else f"{says}."


def implied_wage(numbers: dict[str, float | None]) -> float | None:
    parity, human = numbers["wage_parity"], numbers["human_wage"]
    return parity * human if parity is not None and human is not None else None


def economics_rows(summary: dict[str, Any], numbers: dict[str, float | None], estimator: str) -> Rows:
    """(quantity, value, meaning) rows; numbers: of the summary. estimator: its skill as text."""
    costs = costs_of(summary)
    margin = percent(PARITY_MARGIN, 0)
    rebate_note = f" {estimator}" if estimator else ""
    if numbers["rebate"] == 0 and (numbers["captured"] or 0) > 0:
        rebate_note = f" It is zero here: no gain in output was attributed to the customer.{rebate_note}"
    return [
        (
            "Average output",
            f"{number(numbers['mp_mean'], 1)} good units an hour",
            "Good units over hours of work, on average; not what one more hour would add.",
        ),
        ("Error rate", percent(numbers["err_mean"]), "Share of attempts that went wrong."),
        (
            "Implied wage",
            f"{usd(implied_wage(numbers))} an hour",
            "What an hour of this work would be worth before costs: price × (attempts − errors) − damage × errors.",
        ),
        *(
            (f"− {item}", f"{usd(-cost)} an hour", f"Cost of {item}, whatever is done in the hour.")
            for item, cost in (costs or {}).items()
        ),
        ("= Profit", f"{usd(numbers['profit_mean'])} an hour", _less_costs(costs)),
        ("Human wage", f"{usd(numbers['human_wage'])} an hour", "What a person is paid for an hour of the same work."),
        (
            "Wage parity",
            number(numbers["wage_parity"]),
            "Implied wage over human wage; at 1 the robot’s hour would be worth a person’s.",
        ),
        (
            "Spread",
            f"{usd(numbers['spread'])} an hour",
            "Implied wage less human wage, of the trained policy in validation. It would be paid out only if wage "
            f"parity is above 1 by more than {margin}.",
        ),
        (
            "Rebate",
            f"{usd(numbers['rebate'])} an hour",
            f"The part of the spread that would go to the customer whose data taught the policy.{rebate_note}",
        ),
        ("Captured", f"{usd(numbers['captured'])} an hour", "The part of the spread that the platform would keep."),
    ]


def _less_costs(costs: dict[str, float] | None) -> str:
    if costs:
        return f"Implied wage less costs of {usd(sum(costs.values()))} an hour. No other cost is included."
    if costs is not None:
        return "Implied wage; the task has no hourly costs."
    return "Implied wage less costs, which this summary does not itemise."
