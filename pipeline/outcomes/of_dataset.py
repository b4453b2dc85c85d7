"""The outcome model of a data set: what actions bring on its clips."""

from __future__ import annotations

import numpy as np

from pipeline.dataset import Embeddings
from pipeline.dataset.labels import DEFAULT_TASK
from pipeline.errors import VtpError
from pipeline.outcomes.simulated import SimulatedOutcomes
from pipeline.tasks import Task, load_task, repriced


def outcomes_of(data: Embeddings, priced: str | None = None) -> SimulatedOutcomes:
    """The simulator of the data set's task, with each clip's labelled context; its rows are the clips.

    Where no clip has a label, every clip is in the first context of the task's first scenario, which is only a guess
    where the task has several; where the data set has no task, it is dishwashing. The description says so.

    priced: task whose prices and costs replace the recorded ones.
    """
    whole = data.task or load_task(DEFAULT_TASK)
    if priced is not None:
        whole = _repriced(data, whole, priced)
    logs = data.logs
    labels = [""] * data.num_clips if logs is None else [str(name) for name in logs.context]
    default = whole.in_scenario(None).context_names[0]
    names = np.array([name or default for name in labels])
    if unknown := sorted(set(names.tolist()) - set(whole.context_names)):
        raise VtpError(
            f"label context {unknown[0]!r} is unknown in task {whole.name}; "
            f"use one of {', '.join(whole.context_names)}",
            code="labels-unknown-context",
        )
    task = whole.of_contexts(set(names.tolist()))
    index = {name: k for k, name in enumerate(task.context_names)}
    is_labelled = logs is not None and (len(whole.contexts) == 1 or any(labels))
    return SimulatedOutcomes(
        task,
        np.array([index[name] for name in names.tolist()]),
        price_usd=None if logs is None else logs.price_usd,
        damage_usd=None if logs is None else logs.damage_usd,
        step_s=data.clips.end_s - data.clips.start_s,
        is_labelled=is_labelled,
        description=_describe(data, whole, labels, default, is_labelled),
    )


def _repriced(data: Embeddings, task: Task, name: str) -> Task:
    try:
        return repriced(task, name)
    except VtpError as error:
        if data.task is None and error.code in ("task-other-actions", "task-other-contexts", "task-other-steps"):
            raise VtpError(
                f"--task {name} is other work than {task.name}, which a data set is taken for that names no task; "
                f"record it with: vtp extract SOURCE --task {name}",
                code=error.code,
            ) from error
        raise


def _describe(data: Embeddings, task: Task, labels: list[str], default: str, is_labelled: bool) -> str:
    name = task.name if data.task is not None else f"{task.name} (the data set names no task)"
    own = _describe_own_prices(data)
    if not is_labelled:
        return f"simulator, {name}; the clips have no labels, so every one is treated as {default}{own}"
    if len(task.contexts) == 1:
        return f"simulator, {name}{own}"
    unlabelled = sum(not label for label in labels)
    missing = f" ({unlabelled} of {len(labels)} have none and are treated as {default})" if unlabelled else ""
    return f"simulator, {name} with each clip's labelled context{missing}{own}"


def _describe_own_prices(data: Embeddings) -> str:
    """The number of clips with prices of their own, in words; empty if no clip has any."""
    logs = data.logs
    given = [] if logs is None else [own for own in (logs.price_usd, logs.damage_usd) if own is not None]
    count = int(np.any(np.isfinite(given), axis=0).sum()) if given else 0
    return f"; {count} of {data.num_clips} clips have a price or damage of their own" if count else ""
