"""The outcome model of a data set: attempts and errors of any action on its clips."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import numpy as np

from pipeline.dataset import Embeddings, Logs, video_of
from pipeline.dataset.labels import DEFAULT_TASK
from pipeline.errors import VtpError
from pipeline.outcomes.clip_groups import clip_groups
from pipeline.outcomes.fitting import drawn_steps
from pipeline.outcomes.learned import SECONDS_PER_MINUTE, LearnedOutcomes
from pipeline.outcomes.logged import LoggedSteps
from pipeline.outcomes.model import Terms
from pipeline.outcomes.priced_rows import own_or_else
from pipeline.outcomes.simulated import SimulatedOutcomes
from pipeline.tasks import Task, load_task, repriced

logger = logging.getLogger(__name__)

MOST_STEPS = 1 << 15  # used for learning; more add little and take minutes

Kind = Literal["auto", "logged", "simulator"]


class ClipContexts(NamedTuple):
    """Contexts, prices and durations of the clips of a data set."""

    task: Task  # restricted to the clips' contexts
    context: np.ndarray  # [N] index into the task's contexts
    price_usd: np.ndarray | None  # [N] per clip, NaN: the task's
    damage_usd: np.ndarray | None
    step_s: np.ndarray  # [N] length of the clip
    is_labelled: bool
    described: str  # for logs and summaries: task, source of contexts, number of clips with their own prices


def outcomes_of(
    data: Embeddings, priced: str | None = None, kind: Kind = "auto", rows: np.ndarray | None = None
) -> LearnedOutcomes | SimulatedOutcomes:
    """Return the outcome model of a data set, whose rows are the clips.

    kind: `logged` learns from the labels' actions, attempts and errors; `simulator` runs the task's simulator in each
    clip's labelled context; `auto` learns if the labels allow it, else simulates if the task has a simulator. The
    description says which, and why. priced: task whose prices and costs replace the recorded ones. rows: [n] clips
    whose logs may be used; default all.

    If no clip has a label, every clip gets the first context of the task's first scenario, which is only a guess if
    the task has several. A data set without a task is treated as dishwashing.

    VtpError if there are neither logs nor a simulator (outcomes-unknown), or not the `kind` that was asked for
    (outcomes-not-logged, task-no-simulator).
    """
    clips = clip_contexts(data, priced)
    missing = what_logs_lack(data, clips.task)
    if kind == "logged" and missing:
        raise VtpError(
            f"outcomes cannot be learned from the labels: {missing}; log them, or use --outcomes simulator if the "
            "task has one",
            code="outcomes-not-logged",
        )
    if kind == "simulator" or missing:
        if clips.task.simulator is None and kind == "auto":
            raise VtpError(
                f"outcomes are unknown: {missing}, and task {clips.task.name} has no simulator; give labels "
                f"with the columns {', '.join((*clips.task.actions, 'attempts', 'errors'))}, or a simulator in the "
                "task's file, see docs/tasks.md",
                code="outcomes-unknown",
            )
        why = f" ({missing})" if missing and kind == "auto" and _has_some_logs(data) else ""
        return SimulatedOutcomes(
            clips.task,
            clips.context,
            price_usd=clips.price_usd,
            damage_usd=clips.damage_usd,
            step_s=clips.step_s,
            is_labelled=clips.is_labelled,
            description=f"simulator{why}, {clips.described}",
        )
    return learned_from(data, clips, rows)


def learned_from(data: Embeddings, clips: ClipContexts, rows: np.ndarray | None = None) -> LearnedOutcomes:
    """Learn outcomes from the logs of clips `rows` [n], default all; VtpError if the logs are too few."""
    logged = logged_steps(data, clips.task, clips.context, rows)
    logged.check_learnable()
    steps, share = _limited(logged)
    step_s = clips.step_s if clips.task.step_s is None else np.full(data.num_clips, clips.task.step_s)
    minutes = step_s[steps.rows] / SECONDS_PER_MINUTE
    group = clip_groups(clips.task, clips.context, data.embeddings, steps, minutes)
    return LearnedOutcomes(
        clips.task,
        clips.context,
        group,
        steps,
        price_usd=clips.price_usd,
        damage_usd=clips.damage_usd,
        step_s=step_s,
        is_labelled=clips.is_labelled,
        description=f"learned from {steps.num_steps:,} logged steps of {steps.num_videos:,} videos{share}, "
        f"{clips.described}",
    )


def _limited(steps: LoggedSteps) -> tuple[LoggedSteps, str]:
    """At most MOST_STEPS random steps, and a note if some are left out. Not whole videos, which may be few."""
    if steps.num_steps <= MOST_STEPS:
        return steps, ""
    drawn = drawn_steps(steps.num_steps, MOST_STEPS)
    return steps.take(drawn), f", drawn from all {steps.num_steps:,} steps"


def logged_steps(data: Embeddings, task: Task, context: np.ndarray, rows: np.ndarray | None = None) -> LoggedSteps:
    """The logged steps of clips `rows` [n], default all: those whose actions, attempts and errors are all known.

    context: [N] of every clip.
    """
    logs = data.logs
    assert logs is not None
    rows = np.arange(data.num_clips) if rows is None else np.asarray(rows)
    rows = rows[_is_logged(logs)[rows]]
    propensity = None if logs.propensity is None else logs.propensity[rows]
    if propensity is not None and (unknown := int(np.isnan(propensity).sum())):
        if unknown < len(rows):
            logger.warning(
                "%d of %d logged steps have no propensity, so all are estimated; log it for each", unknown, len(rows)
            )
        propensity = None
    return LoggedSteps(
        rows,
        context[rows],
        logs.actions[rows],
        logs.attempts[rows],
        logs.errors[rows],
        video_of(data, rows),
        propensity,
    )


def what_logs_lack(data: Embeddings, task: Task) -> str:
    """Why outcomes cannot be learned from the data set's labels; empty if they can."""
    logs = data.logs
    if logs is None:
        return "the clips have no labels"
    named = zip(task.actions, logs.actions.T, strict=True)
    columns = [*named, ("attempts", logs.attempts), ("errors", logs.errors)]
    if absent := [name for name, column in columns if np.isnan(column).all()]:
        return f"the labels have no {' and no '.join(absent)}"
    return "" if _is_logged(logs).any() else "no clip's labels have all of the actions, attempts and errors"


def _has_some_logs(data: Embeddings) -> bool:
    logs = data.logs
    return logs is not None and bool(np.isfinite(np.column_stack([logs.actions, logs.attempts, logs.errors])).any())


def _is_logged(logs: Logs) -> np.ndarray:
    return np.isfinite(np.column_stack([logs.actions, logs.attempts, logs.errors])).all(1)


def clip_contexts(data: Embeddings, priced: str | None = None) -> ClipContexts:
    """Contexts and prices of the clips from their labels; see `outcomes_of`."""
    whole = data.task or load_task(DEFAULT_TASK)
    if priced is not None:
        whole = _repriced(data, whole, priced)
    logs = data.logs
    labels = [""] * data.num_clips if logs is None else logs.context.tolist()
    default = whole.in_scenario(None).context_names[0]
    names = {name or default for name in set(labels)}
    if unknown := sorted(names - set(whole.context_names)):
        raise VtpError(
            f"label context {unknown[0]!r} is unknown in task {whole.name}; "
            f"use one of {', '.join(whole.context_names)}",
            code="labels-unknown-context",
        )
    task = whole.of_contexts(names)
    number = {name: k for k, name in enumerate(task.context_names)}
    is_labelled = logs is not None and (len(whole.contexts) == 1 or any(labels))
    return ClipContexts(
        task,
        np.array([number[name or default] for name in labels]),
        None if logs is None else logs.price_usd,
        None if logs is None else logs.damage_usd,
        data.clips.end_s - data.clips.start_s,
        is_labelled,
        _describe(data, whole, labels, default, is_labelled),
    )


def clip_terms(data: Embeddings, clips: ClipContexts) -> Terms:
    """Prices and durations of steps on the clips [N], as in outcome models; needs no usable logs."""
    task = clips.task
    return Terms(
        own_or_else(clips.price_usd, task.price_usd[clips.context]),
        own_or_else(clips.damage_usd, task.damage_usd[clips.context]),
        clips.step_s if task.step_s is None else np.full(data.num_clips, task.step_s),
    )


def _repriced(data: Embeddings, task: Task, name: str) -> Task:
    try:
        return repriced(task, name)
    except VtpError as error:
        if data.task is None and error.code in ("task-other-actions", "task-other-contexts", "task-other-steps"):
            raise VtpError(
                f"--task {name} has other actions, contexts or steps than {task.name}, the default of a data set that "
                f"names no task; record the task with: vtp extract SOURCE --task {name}",
                code=error.code,
            ) from error
        raise


def _describe(data: Embeddings, task: Task, labels: list[str], default: str, is_labelled: bool) -> str:
    name = task.name if data.task is not None else f"{task.name} (the data set names no task)"
    own = _describe_own_prices(data)
    if not is_labelled:
        return f"{name}; the clips have no labels, so every one is treated as {default}{own}"
    if len(task.contexts) == 1:
        return f"{name}{own}"
    unlabelled = sum(not label for label in labels)
    missing = f" ({unlabelled} of {len(labels)} have none and are treated as {default})" if unlabelled else ""
    return f"{name} with each clip's labelled context{missing}{own}"


def _describe_own_prices(data: Embeddings) -> str:
    """The number of clips with prices of their own, in words; empty if no clip has any."""
    logs = data.logs
    given = [] if logs is None else [own for own in (logs.price_usd, logs.damage_usd) if own is not None]
    count = int(np.any(np.isfinite(given), axis=0).sum()) if given else 0
    return f"; {count} of {data.num_clips} clips have a price or damage of their own" if count else ""
