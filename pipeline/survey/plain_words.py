"""A survey in sentences, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.survey.best_actions import Fitted, Learned
from pipeline.survey.log_survey import LogSurvey
from pipeline.survey.next_steps import Suggestion
from pipeline.survey.short_numbers import short_number
from pipeline.tasks.task import UNNAMED

ALIKE = {0.3: "hardly alike", 1.0: "a little alike", 3.0: "alike", 10.0: "much alike", 100.0: "nearly the same"}


def actions_in_words(actions: dict[str, float]) -> str:
    """Such as: speed 0.9, care 1."""
    return ", ".join(f"{name.replace('_', ' ')} {short_number(value)}" for name, value in actions.items())


def suggestion_in_words(one: Suggestion, usd: Callable[[float], str]) -> str:
    """Such as: log about 100 steps of glass at speed 0.9 to 1, care 0.9 to 1: ... usd: how dollars are written."""
    ranges = ", ".join(
        f"{name.replace('_', ' ')} {short_number(low)} to {short_number(high)}"
        for name, (low, high) in one.actions.items()
    )
    so_far = f"{one.logged_steps:,} there so far" if one.logged_steps else "none there so far"
    work = "" if one.context == UNNAMED else f" of {one.context}"
    return (
        f"log about {one.steps:,} steps{work} at {ranges}: {so_far}; they would earn about "
        f"{usd(one.profit_usd_per_hour)}/h and are expected to add {usd(one.gain_usd_per_hour)}/h"
    )


LOG_NEXT = "What to log next, and what it is expected to add to the profit of the best actions, per hour of all work"
NOTHING_TO_LOG = "no further steps are expected to improve the best actions by a cent an hour"


def doubt_in_words(learned: Learned) -> list[str]:
    """A sentence if the interval of the best actions' gain contains 0, else none."""
    low, high = learned.gain_ci95
    return (
        ["the interval contains 0: these logs do not show that the best actions earn more"] if low <= 0 <= high else []
    )


def fit_in_words(learned: Learned) -> list[str]:
    """How attempts and errors were fitted, one sentence each."""
    return [_fitted("attempts", learned.attempts), _fitted("errors", learned.errors)]


def _fitted(name: str, one: Fitted) -> str:
    effects = "each action has its own effect" if one.is_product else "the effect of an action depends on the others"
    varies = f"; their variance is mean + {short_number(one.dispersion, 2)} · mean²" if one.dispersion else ""
    alike = ALIKE.get(one.prior_shape, "alike")
    return f"{name}: {effects}; contexts are {alike} (prior shape {short_number(one.prior_shape)}){varies}"


def logged_in_words(survey: LogSurvey) -> str:
    """The number of logged steps, of videos and of steps per split, and whether propensities were logged."""
    everything = survey.all
    splits = ", ".join(f"{count:,} {split}" for split, count in survey.steps_by_split.items())
    unlogged = everything.clips - everything.steps
    return (
        f"{everything.steps:,} logged steps of {everything.videos:,} videos ({splits})"
        + (f", {unlogged:,} clips without a log" if unlogged else "")
        + (", propensities logged" if survey.has_propensity else ", no propensities")
    )
