"""What the work is worth, quantity by quantity."""

from __future__ import annotations

from typing import Any

from pipeline.econ import PARITY_MARGIN
from pipeline.report.summary_figures import finite_values
from pipeline.report.words import number, percent, usd

Rows = list[tuple[str, str, str]]


def economics_rows(summary: dict[str, Any], numbers: dict[str, float | None], estimator: str) -> Rows:
    """(quantity, value, meaning) rows; numbers: those of the summary. estimator: what the rebate rests on, in words."""
    parity, human = numbers["wage_parity"], numbers["human_wage"]
    wage = parity * human if parity is not None and human is not None else None
    costs = {item: cost for item, cost in finite_values(summary.get("costs_usd_per_hour")).items() if cost is not None}
    margin = percent(PARITY_MARGIN, 0)
    rebate_note = f" {estimator}" if estimator else ""
    if numbers["rebate"] == 0 and (numbers["captured"] or 0) > 0:
        rebate_note = f" It is zero here: no gain in output was attributed to the customer.{rebate_note}"
    return [
        (
            "Marginal product",
            f"{number(numbers['mp_mean'], 1)} an hour",
            "Good units that one more hour of work makes.",
        ),
        ("Error rate", percent(numbers["err_mean"]), "Share of attempts that went wrong."),
        (
            "Implied wage",
            f"{usd(wage)} an hour",
            "What an hour of this work would be worth: price × (attempts − errors) − damage × errors.",
        ),
        *((f"Cost of {item}", f"{usd(cost)} an hour", "Whatever is done in the hour.") for item, cost in costs.items()),
        ("Profit", f"{usd(numbers['profit_mean'])} an hour", _less_costs(summary, costs)),
        ("Human wage", f"{usd(human)} an hour", "What a person is paid for an hour of the same work."),
        (
            "Wage parity",
            number(parity),
            "Implied wage over human wage; at 1 the robot’s hour would be worth a person’s.",
        ),
        (
            "Spread",
            f"{usd(numbers['spread'])} an hour",
            f"Implied wage less human wage. It would be paid out only where parity is above 1 by more than {margin}.",
        ),
        (
            "Rebate",
            f"{usd(numbers['rebate'])} an hour",
            f"The part of the spread that would go to the customer whose data taught the policy.{rebate_note}",
        ),
        ("Captured", f"{usd(numbers['captured'])} an hour", "The part of the spread that the platform would keep."),
    ]


def _less_costs(summary: dict[str, Any], costs: dict[str, float]) -> str:
    if costs:
        items = ", ".join(f"{item} {usd(cost)}" for item, cost in costs.items())
        return f"Implied wage less costs of {usd(sum(costs.values()))} an hour: {items}."
    if isinstance(summary.get("costs_usd_per_hour"), dict):
        return "Implied wage; the task has no costs by the hour."
    return "Implied wage less costs, which this summary does not itemise."
