"""A survey of a data set's logs: what they hold, what they teach, and what to log next, as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.config import LogsConfig
from pipeline.dataset import Embeddings, read_embeddings
from pipeline.errors import VtpError
from pipeline.outcomes import Caution, LoggedSteps, Terms, clip_terms, learned_from, logged_steps, what_logs_lack
from pipeline.outcomes.identification import LOG_OWN_COUNTS
from pipeline.outcomes.learned import NO_CAUTION
from pipeline.outcomes.of_dataset import ClipContexts, clip_contexts
from pipeline.survey.best_actions import Learned, best_of_contexts, learned
from pipeline.survey.holdings import Holdings, holdings
from pipeline.survey.next_steps import Suggestion, suggestions
from pipeline.survey.remarks import Remark, remarks

CANNOT_LEARN = ("logs-too-few-videos", "logs-no-attempts")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class LogSurvey:
    """What is known of a data set's logs; its fields are the keys of `vtp logs --json`.

    embeddings: path of the data set. actions: bounds of each. steps_by_split: logged steps by the split of their
    video. all: of all contexts together. learned: None if nothing can be learned, for the reason in cannot_learn.
    next: what to log next, the most valuable first.
    """

    embeddings: str
    task: str
    outcome_model: str
    actions: dict[str, list[float]]
    steps_by_split: dict[str, int]
    has_propensity: bool
    all: Holdings
    contexts: dict[str, Holdings]
    learned: Learned | None
    cannot_learn: str
    next: list[Suggestion]
    remarks: list[Remark]


def run(cfg: LogsConfig, progress: Progress = lambda done, total, text: None) -> LogSurvey:
    """Survey the logs of an embeddings file; VtpError if its labels are not logs."""
    progress(0, 1, f"reading {cfg.embeddings}")
    data = read_embeddings(cfg.embeddings)
    return survey(data, clip_contexts(data, cfg.task), cfg.embeddings, budget=cfg.steps, progress=progress)


def survey(
    data: Embeddings,
    clips: ClipContexts,
    where: Path,
    *,
    rows: np.ndarray | None = None,
    caution: Caution = NO_CAUTION,
    budget: int = LogsConfig.model_fields["steps"].default,
    progress: Progress = lambda done, total, text: None,
) -> LogSurvey:
    """Survey the logs of clips `rows` [n], default all.

    where: path of the file. budget: steps that could be logged next. caution: used to choose the best actions, but not
    what to log next. VtpError (logs-missing) if the labels lack actions, attempts or errors.
    """
    task = clips.task
    if missing := what_logs_lack(data, task):
        columns = ", ".join((*task.actions, "attempts", "errors"))
        raise VtpError(
            f"{where} has no logs: {missing}; give the actions and their outcomes in the labels (columns {columns}, "
            "see docs/manifests.md), and extract again",
            code="logs-missing",
        )
    steps = logged_steps(data, task, clips.context, rows)
    if steps.num_steps == 0:
        raise VtpError(f"{where} has no logs of these clips; log some of them", code="logs-missing")
    contexts = _contexts(clips, steps, np.arange(data.num_clips) if rows is None else rows, clip_terms(data, clips))
    everything = contexts.pop("")
    progress(0, 1 + len(contexts), f"learning from {steps.num_steps:,} steps")
    found, wanted, description = None, [], ""
    reason = steps.tells_nothing()
    cannot = f"{reason}; {LOG_OWN_COUNTS}" if reason else ""
    try:
        model = None if cannot else learned_from(data, clips, rows)
    except VtpError as error:
        if error.code not in CANNOT_LEARN:
            raise
        model, cannot = None, str(error)
    if model is not None:
        description = model.description
        names = iter(range(1, len(task.contexts) + 1))
        bests = best_of_contexts(model, lambda name: progress(next(names), 1 + len(contexts), f"best action of {name}"))
        wanted = suggestions(model, bests, budget)
        if caution != NO_CAUTION:
            model = model.with_caution(caution)
            bests = best_of_contexts(model, lambda name: None)
        found = learned(model, bests)
    progress(1 + len(contexts), 1 + len(contexts), "")
    absent = [name for name in (data.task or task).contexts if name not in contexts]
    return LogSurvey(
        embeddings=storage.name_of(where),
        task=str(task),
        outcome_model=description,
        actions={name: [action.low, action.high] for name, action in task.actions.items()},
        steps_by_split=dict(Counter(np.array(data.videos.split)[steps.video].tolist())),
        has_propensity=steps.propensity is not None,
        all=everything,
        contexts=contexts,
        learned=found,
        cannot_learn=cannot,
        next=wanted,
        remarks=remarks(task, everything, contexts, found, absent=absent),
    )


def _contexts(clips: ClipContexts, steps: LoggedSteps, rows: np.ndarray, terms: Terms) -> dict[str, Holdings]:
    """The logs of each context that the clips `rows` show, and under "" those of all. terms: of every clip."""

    def of(which: np.ndarray, num_clips: int) -> Holdings:
        some = steps.take(which)
        priced = Terms(*(values[some.rows] for values in terms))
        return holdings(clips.task, some, priced, clips=num_clips, all_clips=len(rows))

    found = {"": of(np.full(steps.num_steps, True), len(rows))}
    for number, name in enumerate(clips.task.context_names):
        if num_clips := int(np.count_nonzero(clips.context[rows] == number)):
            found[name] = of(steps.context == number, num_clips)
    return found


def as_json(value: Any) -> Any:
    """A survey, or a part of it, as plain values: dictionaries, lists, texts and numbers."""
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: as_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
