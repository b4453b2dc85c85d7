"""Weaknesses of logs to know before relying on them: one line each, with a code for scripts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.survey.best_actions import Learned
from pipeline.survey.holdings import Holdings
from pipeline.survey.short_numbers import short_number
from pipeline.tasks import Task
from pipeline.tasks.task import UNNAMED

FEW_STEPS, FEW_VIDEOS = 20, 2
FEW_ALIKE = 10  # logged steps like the best action, below which its profit is mostly prior
NAMED = 6  # contexts in one line
SURE = 0.05
NO_VARIATION = 1e-9  # of an action's range


@dataclass(frozen=True)
class Remark:
    """A weakness of the logs of these contexts, or of all logs if `contexts` is empty."""

    code: str
    contexts: list[str]
    text: str


def remarks(
    task: Task, everything: Holdings, contexts: dict[str, Holdings], learned: Learned | None, *, absent: list[str]
) -> list[Remark]:
    """All weaknesses that were found. absent: contexts of the task that no clip shows."""
    logged = {name: one for name, one in contexts.items() if one.steps}
    found = [
        *_of(absent, "no-clips", lambda names: f"no clip shows {names}, so nothing is known there"),
        *_of(
            [name for name, one in contexts.items() if not one.steps],
            "no-logs",
            lambda names: f"no step of {names} was logged; the figures there are inferred from other contexts",
        ),
        *_of(
            [name for name, one in logged.items() if one.steps < FEW_STEPS or one.videos < FEW_VIDEOS],
            "few-logs",
            lambda names: (
                f"few steps of {names} were logged (fewer than {FEW_STEPS} steps or {FEW_VIDEOS} videos); the "
                "figures there are mostly inferred from other contexts"
            ),
        ),
    ]
    found += _of_actions(task, everything, logged)
    found += _of_counts(everything, logged)
    return found + ([] if learned is None else _of_learning(learned))


def _of(names: list[str], code: str, text: Callable[[str], str]) -> list[Remark]:
    return [Remark(code, names, text(_listed(names)))] if names else []


def _listed(names: list[str]) -> str:
    """The names as text; if there are many, the first ones and the number of others."""
    if names == [UNNAMED]:
        return "the work"
    shown = names[:NAMED]
    if more := len(names) - len(shown):
        return f"{', '.join(shown)} and {more} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _of_actions(task: Task, everything: Holdings, logged: dict[str, Holdings]) -> list[Remark]:
    found = []
    for name, action in task.actions.items():
        least = NO_VARIATION * (action.high - action.low)
        label = name.replace("_", " ")
        if everything.actions[name].high - everything.actions[name].low <= least:
            value = everything.actions[name].mean
            text = f"{label} is {short_number(value)} in every logged step, so the effect of {label} cannot be learned"
            found.append(Remark("constant-action", [], text))
            continue
        names = [
            context
            for context, one in logged.items()
            if one.steps > 1 and one.actions[name].high - one.actions[name].low <= least
        ]

        def text_of(contexts: str, label: str = label) -> str:
            return (
                f"{label} is the same in every logged step of {contexts}; its effect there is inferred from other "
                "contexts"
            )

        found += _of(names, "constant-action-in-context", text_of)
    return found


def _of_counts(everything: Holdings, logged: dict[str, Holdings]) -> list[Remark]:
    if everything.attempts == 0:
        return [Remark("no-attempts", [], "no logged step has an attempt, so the error rate is not known")]
    if everything.errors == 0:
        most = 1 - SURE ** (1 / everything.attempts)
        below = f"at 95% confidence the error rate is below {short_number(most, 2)}"
        text = f"no error in {everything.attempts:,} attempts: {below}"
        return [Remark("no-errors", [], f"{text}, and the causes of errors cannot be learned")]
    if everything.errors == everything.attempts:
        text = f"all {everything.attempts:,} attempts are errors, so how to avoid them cannot be learned"
        return [Remark("all-errors", [], text)]
    tried = {name: one for name, one in logged.items() if one.attempts}
    return [
        *_of(
            [name for name in logged if name not in tried],
            "no-attempts",
            lambda names: f"no logged step of {names} has an attempt",
        ),
        *_of(
            [name for name, one in tried.items() if one.errors == 0],
            "no-errors",
            lambda names: f"no error of {names} was logged; the error rate there is inferred from other contexts",
        ),
        *_of(
            [name for name, one in tried.items() if one.errors == one.attempts],
            "all-errors",
            lambda names: f"every logged attempt of {names} is an error, so how to avoid errors there is not known",
        ),
    ]


def _of_learning(learned: Learned) -> list[Remark]:
    found = [
        Remark("contradicted", [], f"the task says that {direction}, and held-out videos contradict it")
        for direction in learned.contradicted
    ]
    if learned.attempts.dispersion > 0:
        text = (
            "attempts vary more than counts of independent events do: their variance is mean + "
            f"{short_number(learned.attempts.dispersion, 2)} · mean². Something that is not logged affects them"
        )
        found.append(Remark("overdispersed", [], text))
    return found + _of(
        [name for name, one in learned.contexts.items() if one.like_steps < FEW_ALIKE],
        "best-action-hardly-logged",
        lambda names: (
            f"fewer than {FEW_ALIKE} logged steps of {names} are like the best action there: its profit is a "
            "guess until more are logged"
        ),
    )
