"""What to do next: the contexts and clips to film or log, according to the run's data."""

from __future__ import annotations

from typing import Any

from pipeline.report import verdict
from pipeline.report.context_cards import CENT, LoggedProfits, losses, lost_by_context
from pipeline.report.experiment_sections import Experiments
from pipeline.report.logs_section import LogsSection
from pipeline.report.summary_figures import ContextFigures
from pipeline.report.words import count, listed, usd
from pipeline.runs.judgement import is_by_logs, over_logging_policy

NAMED = 3
FEWEST_EPISODES = 5


def what_next(
    summary: dict[str, Any],
    contexts: list[ContextFigures],
    *,
    logs: LogsSection | None,
    experiments: Experiments,
    is_simulated: bool,
) -> list[str]:
    """The steps as sentences, those about logs first. is_simulated: the policy learned in the simulator."""
    steps = _advice(summary)
    if logs is not None:
        steps += logs.log_next
    if not is_by_logs(summary):
        steps += _contexts(contexts, {} if logs is None else logs.logged_profit, is_simulated=is_simulated)
    if missed := summary.get("contexts_not_met"):
        names = listed([str(name) for name in missed]) if isinstance(missed, list) else str(missed)
        steps.append(f"Validate on {names}, which validation never met: more episodes, or held-out videos of it.")
    if experiments.gaining:
        named = experiments.gaining[:NAMED]
        more = len(experiments.gaining) - len(named)
        others = f" and {count(more, 'other')}" if more else ""
        steps.append(
            f"Film more like {', '.join(named) if others else listed(named)}{others}: "
            f"{'these are' if len(experiments.gaining) > 1 else 'it is'} surely worth more than nothing."
        )
    episodes = summary.get("episodes")
    if isinstance(episodes, int) and 0 < episodes < FEWEST_EPISODES and not is_by_logs(summary):
        steps.append(f"Validate on more than {count(episodes, 'episode')} (--episodes): few make a wide interval.")
    return steps


def _advice(summary: dict[str, Any]) -> list[str]:
    """What to do so that the logs distinguish the policy from others."""
    over, against = over_logging_policy(summary), verdict.against_constant(summary)
    others: dict[str, list[str]] = {}
    for one, other in ((over, verdict.LOGGING_POLICY), (against, "blind")):
        if one is not None and one.advice:
            others.setdefault(one.advice, []).append(f"from {other}")
    return [f"To tell the policy {listed(names)}: {advice}." for advice, names in others.items()]


def _contexts(contexts: list[ContextFigures], logged: LoggedProfits, *, is_simulated: bool) -> list[str]:
    """The context with the largest loss, and those in which blind or the logged steps earn more."""
    lost = lost_by_context(contexts)
    worst = max(lost, key=lost.__getitem__, default=None)
    steps = []
    if worst is not None and lost[worst] >= CENT:
        if len(lost) > 1:
            of = f"{usd(lost[worst])} of the {usd(sum(lost.values()))} an hour below the optimum is lost there"
            steps.append(f"{_more_of(worst, is_simulated)}: {of}.")
        else:
            more = "Train longer" if is_simulated else "Film or log more"
            steps.append(f"{more}: the policy lies {usd(lost[worst])} an hour below the optimum.")
    for context in contexts if len(contexts) > 1 else ():
        worse = [f"{usd(less)} an hour less than {other}" for other, less in losses(context, logged.get(context.name))]
        if worse and len(steps) < NAMED:
            steps.append(f"{_more_of(context.title, is_simulated)}: there it would earn {listed(worse)}.")
    return steps


def _more_of(context: str, is_simulated: bool) -> str:
    return f"Train longer on {context}" if is_simulated else f"Film or log more of {context}"
