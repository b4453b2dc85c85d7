"""A learner so quick that it can be asked thousands of times: actions by ridge regression of sampled outcomes.

What it learns from is what is seen of clips and what was tried on them; its evidence adds up over clips, so the policy
of any subset of demonstrations costs one sum and one solve. It learns from sampled outcomes, never from the analytic
profit, which judges.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.spatial.distance import cdist, pdist
from scipy.stats import qmc

from pipeline import dataset, econ
from pipeline.errors import VtpError
from pipeline.outcomes import OutcomeModel, expected_worth, outcomes_of, step_worth
from pipeline.outcomes.of_dataset import Kind

COMPONENTS = 64  # of the kernel, that the learner sees clips by
WORK_CLIPS = 256  # of those held out, at most: what the learner takes the work to look like, and is judged on
RIDGE = 2.0  # in clips: one that stands alone is believed by a third
SCENE_FLOOR = 10.0  # of the usual variance within a video: so much difference between videos is always allowed for
BLIND_CLIPS = 400  # tried out without looking, at least
DRAWS_A_TERM = 2  # at least, of the quadratic that is fitted to them
GRID_POINTS = {1: 441, 2: 21, 3: 9, 4: 5}  # an axis of the actions that a policy chooses from
SCATTERED = 9  # 2 to this power, of more actions than these
MAX_CORNERS = 9  # actions up to which all corners are among them too


class Evidence(NamedTuple):
    """Sums of a regression, which add up over clips: gram [d, d] and moment [d, T]."""

    gram: np.ndarray
    moment: np.ndarray


class Work(NamedTuple):
    """What is held out: what is seen of its clips [n, d], the expected profit of each of P actions on them [n, P].

    terms: [P, T] of those actions.
    """

    seen: np.ndarray
    profit: np.ndarray
    terms: np.ndarray


class Learner:
    """What is learned from any clips of an embeddings file, and what that earns on the held-out ones.

    videos: training videos as row ranges [V, 2]; held_rows: the clips to be judged on, thinned to WORK_CLIPS.
    """

    def __init__(self, data: dataset.Embeddings, videos: np.ndarray, held_rows: np.ndarray, model: OutcomeModel):
        in_videos = [data.embeddings[start:end] for start, end in videos]
        in_videos += np.split(
            data.embeddings[held_rows], np.flatnonzero(np.diff(dataset.video_of(data, held_rows))) + 1
        )
        self.held_rows = held_rows[:: -(-len(held_rows) // WORK_CLIPS)]
        self.model = model
        self.see = resemblance(data.embeddings[self.held_rows], scene_free(in_videos))
        self.work = work_to_do(model, self.see(data.embeddings[self.held_rows]), self.held_rows)

    def profit(self, seen: np.ndarray, differs: np.ndarray, weight: np.ndarray, blindly: np.ndarray) -> float:
        """Expected profit in $/h of the policy learned from clips seen as [n, d], weighing [n] each.

        differs [n, T]: how sampled outcomes on them differ from what is known blindly, [T].
        """
        weighted = seen * weight[:, None]
        return judge(Evidence(weighted.T @ seen, weighted.T @ differs), blindly, self.work)


def labelled_outcomes(
    data: dataset.Embeddings, path: Path, task: str | None, *, draws: int, kind: Kind = "auto"
) -> OutcomeModel:
    """What actions bring on each clip, at the prices of `task` where it is named.

    VtpError where no label says what a clip shows, or `draws` of actions are too few to tell them apart.
    """
    model = outcomes_of(data, task, kind)
    if not model.is_labelled:
        raise VtpError(
            f"{path} has no labels: without contexts there is no outcome to learn from; "
            "name labels in the manifest and extract again",
            code="labels-missing",
        )
    terms = len(list(_degrees(model.task.num_actions)))
    if draws < DRAWS_A_TERM * terms:
        raise VtpError(
            f"--draws {draws} are too few to fit {terms} terms of {model.task.num_actions} actions; "
            f"give at least {DRAWS_A_TERM * terms}",
            code="draws-too-few",
        )
    return model


def scene_free(videos: list[np.ndarray]) -> np.ndarray:
    """The matrix [128, 128] that scales down what differs between videos, each [n, 128], more than within them.

    Work changes within a video and its surroundings do not, so differences between videos are mostly those of scenes,
    which would hide those of the work. No label is needed to tell.
    """
    means = np.stack([clips.mean(0, dtype=float) for clips in videos])
    apart = means - np.median(means, axis=0)
    size = np.linalg.norm(apart, axis=1, keepdims=True)
    apart *= econ.ratio(np.minimum(size, np.median(size)), size)  # one that is far from all must stay so
    within = np.mean([clips.var(0, dtype=float).mean() for clips in videos])
    between = apart.T @ apart / len(videos) + (SCENE_FLOOR * within or 1.0) * np.eye(means.shape[1])
    eigenvalues, eigenvectors = scipy.linalg.eigh(between)
    return eigenvectors / np.sqrt(eigenvalues) @ eigenvectors.T


def resemblance(work: np.ndarray, metric: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A view of embeddings [n, 128] by how they resemble the clips of the work [m, 128]: [n, d], all 0 like none.

    Its inner products are the Gaussian kernel, of half the usual distance between the work's clips after `metric`
    [128, 128], as far as those clips span it (Nyström's method): a regression on the view is one on the kernel.
    """
    work = work @ metric
    width = np.median(pdist(work)) / 2 if len(work) > 1 else 1.0

    def kernel(points: np.ndarray) -> np.ndarray:
        return np.exp(-cdist(points, work, "sqeuclidean") / (2 * (width or 1.0) ** 2))

    eigenvalues, eigenvectors = scipy.linalg.eigh(kernel(work))
    kept = np.flatnonzero(eigenvalues > 1e-6 * eigenvalues[-1])[-COMPONENTS:]
    axes = eigenvectors[:, kept] / np.sqrt(eigenvalues[kept])
    return lambda embeddings: kernel(embeddings @ metric) @ axes


def action_terms(unit: np.ndarray) -> np.ndarray:
    """The terms of a quadratic in A actions of the unit box, [..., A] → [..., T], as products of Legendre polynomials.

    Of total degree 2 at most: T = (A + 1)(A + 2) / 2. They are orthonormal for the uniform actions that are tried, so
    the ridge bears on all the same. More terms would follow the dynamics closer, and the luck of the outcomes too: at
    the corners, where the best actions lie, more so.
    """
    x = 2 * unit - 1
    legendre = (np.ones_like(x), np.sqrt(3) * x, np.sqrt(5) * (3 * x**2 - 1) / 2)
    return np.stack(
        [
            np.prod([legendre[degree][..., index] for index, degree in enumerate(degrees)], axis=0)
            for degrees in _degrees(unit.shape[-1])
        ],
        -1,
    )


def _degrees(num_actions: int, total: int = 2) -> Iterator[tuple[int, ...]]:
    """The degrees of each action in every term, in rising order: (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)."""
    if num_actions == 0:
        yield ()
        return
    for first in range(total + 1):
        for others in _degrees(num_actions - 1, total - first):
            yield (first, *others)


def candidate_actions(num_actions: int) -> np.ndarray:
    """A few hundred actions of the unit box that a policy chooses from: [P, A], with the corners if these are few."""
    if num_actions in GRID_POINTS:
        axis = np.linspace(0, 1, GRID_POINTS[num_actions])
        return np.stack(np.meshgrid(*[axis] * num_actions, indexing="ij"), -1).reshape(-1, num_actions)
    scattered = qmc.Sobol(num_actions, scramble=False).random_base2(SCATTERED)
    if num_actions > MAX_CORNERS:
        return scattered
    return np.concatenate([scattered, np.array(list(itertools.product((0.0, 1.0), repeat=num_actions)))])


def try_out(model: OutcomeModel, rows: np.ndarray, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """What actions bring on clips [n], each in $/h as a quadratic fitted to `draws` random ones: [n, T]."""
    unit = rng.random((len(rows), draws, model.task.num_actions))
    outcomes = model.sample(rows[:, None], model.task.from_unit(unit), rng)
    value = step_worth(model, rows[:, None], outcomes).profit
    terms = action_terms(unit)
    squares, products = terms.swapaxes(1, 2) @ terms, terms.swapaxes(1, 2) @ value[..., None]
    return np.linalg.solve(squares, products)[..., 0]


def tried_blindly(model: OutcomeModel, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """What the learner knows without a demonstration: what actions bring on average over kinds of rows, [T]."""
    _, first = np.unique(model.kind(np.arange(len(model.context))), return_index=True)
    return try_out(model, np.resize(first, max(BLIND_CLIPS, len(first))), draws=draws, rng=rng).mean(0)


def sample_evidence(
    model: OutcomeModel,
    seen: np.ndarray,
    rows: np.ndarray,
    blindly: np.ndarray,
    *,
    draws: int,
    rng: np.random.Generator,
) -> Evidence:
    """How outcomes on clips seen as [n, d] differ from what is known blindly [T], weighed by their self-consistency.

    Evidence that contradicts itself, because what it shows has nothing to do with what it brought, weighs nothing.
    """
    differs = try_out(model, rows, draws=draws, rng=rng) - blindly
    weight = self_consistency(seen, differs)
    return Evidence(weight * (seen.T @ seen), weight * (seen.T @ differs))


def self_consistency(seen: np.ndarray, differs: np.ndarray) -> float:
    """How much of clips' outcomes [n, T] the same regression predicts from the other clips, seen as [n, d]: in [0, 1].

    R² of leave-one-out ridge predictions against what is known blindly, 0 where it is negative. A single clip cannot
    contradict itself: 1.
    """
    if len(seen) == 1:
        return 1.0
    gram = seen.T @ seen + RIDGE * np.eye(seen.shape[1])
    hat = seen @ scipy.linalg.solve(gram, seen.T, assume_a="pos")
    errors = (differs - hat @ differs) / (1 - np.diag(hat))[:, None]
    return max(0.0, 1.0 - float(econ.ratio((errors**2).sum(), (differs**2).sum())))


def work_to_do(model: OutcomeModel, seen: np.ndarray, rows: np.ndarray) -> Work:
    """rows: [n] of the clips seen as [n, d]."""
    unit = candidate_actions(model.task.num_actions)
    profit = expected_worth(model, rows[:, None], model.task.from_unit(unit)).profit
    return Work(seen, np.broadcast_to(profit, (len(rows), len(unit))), action_terms(unit))


def judge(total: Evidence, blindly: np.ndarray, work: Work) -> float:
    """Expected profit in $/h, on the work, of the actions that a ridge regression on the evidence prefers."""
    gram = total.gram + RIDGE * np.eye(len(total.gram))
    weights = scipy.linalg.solve(gram, total.moment, assume_a="pos", check_finite=False)
    preferred = ((blindly + work.seen @ weights) @ work.terms.T).argmax(1)
    return float(work.profit[np.arange(len(preferred)), preferred].mean())
