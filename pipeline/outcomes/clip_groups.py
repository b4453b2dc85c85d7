"""Groups of clips with similar outcomes: contexts, or clusters of embeddings in a task with a single context."""

from __future__ import annotations

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from pipeline.outcomes.fitting import folds_of, held_out
from pipeline.outcomes.logged import LoggedSteps
from pipeline.outcomes.surfaces import Basis, Counts, Prior
from pipeline.tasks import Task

NUM_CLUSTERS = (2, 4, 8)
WORTH_IT = 3.0  # nats of held-out likelihood that more clusters must gain
PRIOR = Prior(3.0)
BLOCK = 1 << 16  # clips


def clip_groups(
    task: Task, context: np.ndarray, embeddings: np.ndarray, steps: LoggedSteps, minutes: np.ndarray
) -> np.ndarray:
    """Return the group of every clip, [N] integers.

    If the task has several contexts, these are the groups. If it has one, clips are clustered by their embeddings
    [N, 128]; the number of clusters, possibly one, is that which best predicts the outcomes of held-out videos.
    minutes: [n] of each logged step.
    """
    if len(task.contexts) > 1:
        return context
    best = np.zeros(len(context), np.int64)
    score = _score(task, best, steps, minutes)
    for count in NUM_CLUSTERS:
        clusters = _clusters(embeddings, steps.rows, count)
        if (found := _score(task, clusters, steps, minutes)) > score + WORTH_IT:
            best, score = clusters, found
    return best


def _clusters(embeddings: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    seen = embeddings[rows].astype(float)
    centres, label = kmeans2(seen, min(count, len(seen)), minit="++", seed=np.random.default_rng(count))
    used = centres[np.unique(label)]
    blocks = np.split(embeddings, range(BLOCK, len(embeddings), BLOCK))  # cdist copies each in double precision
    return np.concatenate([cdist(block, used).argmin(1) for block in blocks])


def _score(task: Task, group: np.ndarray, steps: LoggedSteps, minutes: np.ndarray) -> float:
    """Log likelihood of the outcomes of held-out videos."""
    unit, folds, score = task.to_unit(steps.actions), folds_of(steps.video), 0.0
    tried = steps.attempts > 0
    for name, which, count, exposure in (
        ("attempts", np.full(len(tried), True), steps.attempts, minutes),
        ("errors", tried, steps.errors, steps.attempts),
    ):
        basis = Basis([getattr(action, name) for action in task.actions.values()])
        counts = Counts(
            basis(unit), group[steps.rows], int(group.max()) + 1, count, exposure, is_binomial=name == "errors"
        ).take(which)
        score += held_out(basis, counts, folds[which], PRIOR).sum()
    return float(score)
