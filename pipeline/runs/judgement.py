"""The judge of a policy's worth, and the logs' verdict as stored in a summary, read tolerantly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

LOGS, SIMULATED, CLOSED_LOOP = "Estimated from your logs", "Simulated", "Closed loop, simulated"
JUDGES = {  # by kind of validation
    "simulator": SIMULATED,
    "held-out clips": SIMULATED,
    "held-out logs": LOGS,
    "closed loop from pixels": CLOSED_LOOP,
}
BEYOND = {  # a verdict in words that end before the name of the other policy
    "better": "better than",
    "worse": "worse than",
    "not distinguishable": "not distinguishable from",
    "not identified": "not identified against",
}
KNOWN = ("better", "worse")  # verdicts that a headline may give in dollars


@dataclass(frozen=True)
class Comparison:
    """A policy compared with another by the logs. change: $/h with its 95% interval; None if not identified."""

    verdict: str
    change: tuple[float, float, float] | None = None
    reason: str = ""
    advice: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the policy is better or worse for certain, with a change in dollars."""
        return self.verdict in KNOWN and self.change is not None

    def beyond(self, other: str) -> str:
        """The verdict in words, such as: better than the logging policy."""
        return f"{BEYOND[self.verdict]} {other}"


NONE_LOGGED = Comparison(
    "not identified",
    reason="no held-out clip has logs of actions and outcomes",
    advice="hold out videos that have logs",
)


def judge_of(summary: dict[str, Any]) -> str:
    """The judge in a summary, or, from earlier versions, that of its validation; empty if neither is known."""
    return str(summary.get("judge") or JUDGES.get(str(summary.get("validation")), ""))


def is_by_logs(summary: dict[str, Any]) -> bool:
    return judge_of(summary) == LOGS


def over_logging_policy(summary: dict[str, Any]) -> Comparison | None:
    """The logs' verdict on the policy against the logging policy; None if there is none."""
    found = read_comparison(summary.get("off_policy"))
    return NONE_LOGGED if found is None and is_by_logs(summary) else found


def read_comparison(value: Any) -> Comparison | None:
    """A comparison stored in a summary; None if `value` is something else."""
    if not isinstance(value, dict) or value.get("verdict") not in BEYOND:
        return None
    change = read_estimate(value.get("change_usd_per_hour"))
    return Comparison(
        str(value["verdict"]), None if value["verdict"] == "not identified" else change,
        str(value.get("reason") or ""), str(value.get("advice") or ""),
    )  # fmt: skip


def read_estimate(value: Any) -> tuple[float, float, float] | None:
    """A value with the bounds of its interval, which are infinite if it has none; None if `value` is something else."""
    if not isinstance(value, list) or len(value) != 3 or (middle := _finite(value[0])) is None:
        return None
    low, high = (_finite(bound) for bound in value[1:])
    return middle, -math.inf if low is None else low, math.inf if high is None else high


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
