"""The verdict on a policy in sentences, for the head of a page and the output of commands.

The dollars of a validation are not real money, so sentences say what the policy would earn. If logs are the judge, a
headline has dollars only if they distinguish the policy from the logging policy.
"""

from __future__ import annotations

import math
from typing import Any

from pipeline.report.summary_figures import finite
from pipeline.report.words import count, listed, percent, usd
from pipeline.runs.judgement import Comparison, is_by_logs, over_logging_policy, read_comparison

LOGGING_POLICY, CONSTANT = "the logging policy", "blind (the best constant action)"
CLONE = "clone of the logging policy"  # as `deployed` of a summary
NOT_VALIDATED = "This policy has not been validated"
NOTHING_BEATS = "Nothing learned beats the logging policy by its lower bound"


def title(summary: dict[str, Any]) -> str:
    """The headline; without dollars if logs are the judge and the change is not identified."""
    over, is_clone = over_logging_policy(summary), summary.get("deployed") == CLONE
    profit = finite(summary.get("profit_mean"))
    if not is_by_logs(summary):
        if profit is None:
            return NOT_VALIDATED
        earns = f"{'earn' if profit >= 0 else 'lose'} {usd(abs(profit))} an hour"
        return (
            f"{NOTHING_BEATS}: acting as it does on average would {earns}" if is_clone else f"The policy would {earns}"
        )
    if is_clone:
        return f"{NOTHING_BEATS}, so the deployed policy acts as it does on average"
    assert over is not None
    if over.verdict == "not identified":
        return "The logs cannot tell what the policy would earn: not identified"
    if over.change is None or not over.is_known:
        return f"The policy is {over.beyond(LOGGING_POLICY)}"
    more = "more" if over.verdict == "better" else "less"
    return f"The policy would earn {usd(abs(over.change[0]))} an hour {more} than {LOGGING_POLICY}"


def of_logs(summary: dict[str, Any], *, with_advice: bool = True) -> list[str]:
    """The sentences below the headline if logs are the judge. with_advice: add what to do next."""
    over, against = over_logging_policy(summary), against_constant(summary)
    assert over is not None
    lead = [f"The policy is {compared(over, LOGGING_POLICY, with_advice=with_advice)}."]
    if against is not None:
        same = against.verdict == "not identified" and against.reason == over.reason
        ending = (
            "likewise not identified"
            if same
            else compared(against, CONSTANT, with_dollars=over.is_known, with_advice=with_advice)
        )
        lead.append(f"Against {CONSTANT} it is {ending}." if same else f"It is {ending}.")
    return lead + judged_on(summary)


def beside(summary: dict[str, Any], *, with_advice: bool = True) -> list[str]:
    """The logs' verdict if a simulator is the judge; empty without logs."""
    over, against = over_logging_policy(summary), against_constant(summary)
    if over is None:
        return []
    parts = [compared(over, LOGGING_POLICY, with_advice=with_advice)]
    if against is not None and against.verdict != "not identified":
        parts.append(compared(against, CONSTANT, with_advice=with_advice))
    return [f"The logs say: {'; '.join(parts)}."]


def without_logs(summary: dict[str, Any]) -> list[str]:
    """A sentence on the second policy of `vtp demo`, which is trained without logs."""
    found = summary.get("simulator_path")
    ratio = finite(found.get("oracle_ratio")) if isinstance(found, dict) else None
    if ratio is None:
        return []
    return [f"Trained on simulated outcomes instead of the logs, the policy reaches {ratio:.3f} of the optimum."]


def judged_on(summary: dict[str, Any]) -> list[str]:
    found = summary.get("off_policy")
    found = found if isinstance(found, dict) else {}
    steps, videos = found.get("num_steps"), found.get("num_videos")
    if not isinstance(steps, int) or not isinstance(videos, int):
        return []
    on = f"Judged on {count(steps, 'logged step')} of {count(videos, 'video')}"
    if found.get("same_videos"):
        return [f"{on}. The model has seen other clips of the same videos, so this may flatter the policy."]
    return [f"{on} held out from training."]


def mix(summary: dict[str, Any]) -> list[str]:
    """Sentences on the weights of contexts, if these are not the observed frequencies."""
    if summary.get("context_mix") != "stationary":
        return []
    contexts = summary.get("contexts")
    contexts, missed = contexts if isinstance(contexts, dict) else {}, summary.get("contexts_not_met")
    says = []
    met = [
        f"{name} {percent(share, 0)}"
        for name, row in contexts.items()
        if isinstance(row, dict) and (share := finite(row.get("share_of_steps"))) is not None
    ]
    if 1 < len(met) <= 6:
        says.append(f"Each context counts equally, as in the long run; of the validated steps they were {listed(met)}.")
    elif len(met) > 1:
        says.append("Each context counts equally, as in the long run.")
    if isinstance(missed, list) and missed:
        them = "it" if len(missed) == 1 else "them"
        says.append(f"Validation never met {listed([str(name) for name in missed])}: no figure includes {them}.")
    return says


def against_constant(summary: dict[str, Any]) -> Comparison | None:
    found = summary.get("off_policy")
    return read_comparison(found.get("against_blind")) if isinstance(found, dict) else None


def compared(found: Comparison, other: str, *, with_dollars: bool = True, with_advice: bool = True) -> str:
    """A comparison to follow "is": better than …, with its change; or the reason if unknown, and what to do next."""
    advice = f". Next: {found.advice}" if found.advice and with_advice else ""
    if found.verdict == "not identified":
        why = f": {found.reason}" if found.reason else ""
        return f"{found.beyond(other)}{why}{advice}"
    if found.is_known:
        return found.beyond(other) + (f", {change_in_words(found)}" if with_dollars else "")
    return f"{found.beyond(other)}: the 95% interval of the change contains zero{advice}"


def change_in_words(found: Comparison) -> str:
    if found.change is None:
        return found.verdict
    value, *bounds = found.change
    low, high = (usd(bound, signed=True) if math.isfinite(bound) else "unbounded" for bound in bounds)
    return f"{usd(value, signed=True)} an hour (95% interval {low} to {high})"


def text(summary: dict[str, Any]) -> list[str]:
    """The verdict as lines of text, below the line that names the judge and gives the title."""
    if is_by_logs(summary):
        return of_logs(summary)
    return beside(summary) + without_logs(summary) + mix(summary)
