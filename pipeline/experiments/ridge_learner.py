"""A learner fast enough to run thousands of times: it chooses actions by ridge regression of sampled outcomes.

It learns from views of clips and outcomes sampled on them. Evidence is additive over clips, so the policy of any subset
of demonstrations costs one sum and one solve. It learns from sampled outcomes, never from the analytic profit, which
judges it.
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

COMPONENTS = 64  # of the kernel, in the learner's view of a clip
WORK_CLIPS = 256  # held-out clips, at most, that define the view and judge the policy
RIDGE = 2.0  # in clips: the estimate from a single clip is shrunk to a third
SCENE_FLOOR = 10.0  # variance added to that between videos, in mean variances within a video
BLIND_CLIPS = 400  # least number of clips behind the blind knowledge
DRAWS_A_TERM = 2  # least number of draws per term of the fitted quadratic
GRID_POINTS = {1: 441, 2: 21, 3: 9, 4: 5}  # per axis of the actions that a policy chooses from
SCATTERED = 9  # 2 to this power scattered points for more actions than these
MAX_CORNERS = 9  # up to this number of actions, all corners are included


class Evidence(NamedTuple):
    """Sums of a regression, additive over clips: gram [d, d] and moment [d, T]."""

    gram: np.ndarray
    moment: np.ndarray


class Work(NamedTuple):
    """The held-out work: views of its clips [n, d], and the expected profit of each of P actions on them [n, P].

    terms: of those actions, [P, T].
    """

    seen: np.ndarray
    profit: np.ndarray
    terms: np.ndarray


class Learner:
    """Learns policies from any clips of an embeddings file and judges them on the held-out clips.

    videos: training videos as row ranges [V, 2]; held_rows: the clips to judge on, thinned to WORK_CLIPS.
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
        """Expected profit in $/h of the policy learned from clips with views `seen` [n, d] and weights [n].

        differs: differences [n, T] of their sampled outcomes from the blind knowledge, [T].
        """
        weighted = seen * weight[:, None]
        return judge(Evidence(weighted.T @ seen, weighted.T @ differs), blindly, self.work)


def labelled_outcomes(
    data: dataset.Embeddings, path: Path, task: str | None, *, draws: int, kind: Kind = "auto"
) -> OutcomeModel:
    """The outcome model of the clips, at the prices of `task` if given.

    VtpError if the clips have no labels, or if `draws` is too small to fit the terms of the actions.
    """
    model = outcomes_of(data, task, kind)
    if not model.is_labelled:
        raise VtpError(
            f"{path} has no labels, so contexts and their outcomes are unknown; "
            "name labels in the manifest and extract again",
            code="labels-missing",
        )
    terms = len(list(_degrees(model.task.num_actions)))
    if draws < DRAWS_A_TERM * terms:
        raise VtpError(
            f"--draws {draws} is too low to fit {terms} terms of {model.task.num_actions} actions; "
            f"give at least {DRAWS_A_TERM * terms}",
            code="draws-too-few",
        )
    return model


def scene_free(videos: list[np.ndarray]) -> np.ndarray:
    """The matrix [128, 128] that scales down directions that vary more between videos, each [n, 128], than within them.

    Work changes within a video and its surroundings do not, so differences between videos are mostly scenes, which
    would hide differences in the work. This needs no labels.
    """
    means = np.stack([clips.mean(0, dtype=float) for clips in videos])
    apart = means - np.median(means, axis=0)
    size = np.linalg.norm(apart, axis=1, keepdims=True)
    apart *= econ.ratio(np.minimum(size, np.median(size)), size)  # a video unlike all others must stay unlike them
    within = np.mean([clips.var(0, dtype=float).mean() for clips in videos])
    between = apart.T @ apart / len(videos) + (SCENE_FLOOR * within or 1.0) * np.eye(means.shape[1])
    eigenvalues, eigenvectors = scipy.linalg.eigh(between)
    return eigenvectors / np.sqrt(eigenvalues) @ eigenvectors.T


def resemblance(work: np.ndarray, metric: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from embeddings [n, 128] to views [n, d] by similarity to the work's clips [m, 128]; 0 if unlike all.

    Inner products of views approximate a Gaussian kernel on the span of those clips (Nyström's method), so a regression
    on views is a kernel regression. Its width is half the median distance between the clips after `metric` [128, 128].
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
    """Terms of a quadratic in A actions of the unit box, [..., A] → [..., T], as products of Legendre polynomials.

    Their total degree is at most 2: T = (A + 1)(A + 2) / 2. They are orthonormal for uniform actions, as sampled here,
    so the ridge penalises all equally. More terms would fit the dynamics better but overfit sampling noise, most of all
    at the corners, where the best actions often are.
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
    """Degrees of each action in every term, in rising order: (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)."""
    if num_actions == 0:
        yield ()
        return
    for first in range(total + 1):
        for others in _degrees(num_actions - 1, total - first):
            yield (first, *others)


def candidate_actions(num_actions: int) -> np.ndarray:
    """A few hundred actions of the unit box that a policy chooses from, [P, A], including corners if these are few."""
    if num_actions in GRID_POINTS:
        axis = np.linspace(0, 1, GRID_POINTS[num_actions])
        return np.stack(np.meshgrid(*[axis] * num_actions, indexing="ij"), -1).reshape(-1, num_actions)
    scattered = qmc.Sobol(num_actions, scramble=False).random_base2(SCATTERED)
    if num_actions > MAX_CORNERS:
        return scattered
    return np.concatenate([scattered, np.array(list(itertools.product((0.0, 1.0), repeat=num_actions)))])


def try_out(model: OutcomeModel, rows: np.ndarray, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Coefficients [n, T] of each clip's profit in $/h, a quadratic in the action fitted to `draws` random actions."""
    unit = rng.random((len(rows), draws, model.task.num_actions))
    outcomes = model.sample(rows[:, None], model.task.from_unit(unit), rng)
    value = step_worth(model, rows[:, None], outcomes).profit
    terms = action_terms(unit)
    squares, products = terms.swapaxes(1, 2) @ terms, terms.swapaxes(1, 2) @ value[..., None]
    return np.linalg.solve(squares, products)[..., 0]


def tried_blindly(model: OutcomeModel, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The learner's knowledge without demonstrations: coefficients [T] of the profit averaged over kinds of rows."""
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
    """Evidence of how outcomes on clips with views [n, d] differ from the blind knowledge [T], weighted by consistency.

    Evidence that contradicts itself, because views and outcomes are unrelated, has weight 0.
    """
    differs = try_out(model, rows, draws=draws, rng=rng) - blindly
    weight = self_consistency(seen, differs)
    return Evidence(weight * (seen.T @ seen), weight * (seen.T @ differs))


def self_consistency(seen: np.ndarray, differs: np.ndarray) -> float:
    """How well clips with views [n, d] predict each other's outcomes [n, T] in this regression, in [0, 1].

    R² of leave-one-out ridge predictions relative to the blind knowledge, at least 0. A single clip cannot contradict
    itself: 1.
    """
    if len(seen) == 1:
        return 1.0
    gram = seen.T @ seen + RIDGE * np.eye(seen.shape[1])
    hat = seen @ scipy.linalg.solve(gram, seen.T, assume_a="pos")
    errors = (differs - hat @ differs) / (1 - np.diag(hat))[:, None]
    return max(0.0, 1.0 - float(econ.ratio((errors**2).sum(), (differs**2).sum())))


def work_to_do(model: OutcomeModel, seen: np.ndarray, rows: np.ndarray) -> Work:
    """The work of clips with rows [n] and views `seen` [n, d]."""
    unit = candidate_actions(model.task.num_actions)
    profit = expected_worth(model, rows[:, None], model.task.from_unit(unit)).profit
    return Work(seen, np.broadcast_to(profit, (len(rows), len(unit))), action_terms(unit))


def judge(total: Evidence, blindly: np.ndarray, work: Work) -> float:
    """Expected profit in $/h on the work of the best actions according to a ridge regression on the evidence."""
    gram = total.gram + RIDGE * np.eye(len(total.gram))
    weights = scipy.linalg.solve(gram, total.moment, assume_a="pos", check_finite=False)
    preferred = ((blindly + work.seen @ weights) @ work.terms.T).argmax(1)
    return float(work.profit[np.arange(len(preferred)), preferred].mean())
