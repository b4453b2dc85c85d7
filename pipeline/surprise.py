"""From noise gaps to novelty scores and weights, and how well scores find labelled novelty. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

MIN_FOR_REGRESSION = 20  # reference clips; with fewer, complexity is not removed
MIN_FOR_SCORES = 5  # with fewer, every clip weighs 1
MAX_SCORE = 6.0
WEIGHT_RANGE = (0.5, 2.0)
NEIGHBOURS = 5
BOOTSTRAP_ROUNDS = 200


def remove_complexity(values: np.ndarray, complexity: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Residuals [N, K] of `values` [N, K] on `complexity` [N, D], least squares over the reference clips (mask [N]).

    Raw diffusion loss ranks a busy clip over a novel one (Serrà et al. 2020, arXiv 1909.11480). Complexity is clipped to
    the reference's range: beyond it the line is not known, and a frozen clip must not be excused for being still.
    """
    if reference.sum() < MIN_FOR_REGRESSION:
        return values - np.median(values[reference], axis=0)
    known = complexity[reference]
    clipped = np.clip(complexity, known.min(axis=0), known.max(axis=0))
    design = np.column_stack([np.ones(len(values)), clipped])
    coefficients, *_ = np.linalg.lstsq(design[reference], values[reference], rcond=None)
    return values - design @ coefficients


def robust_z(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Deviations from the reference clips' median in normal-consistent median absolute deviations, per column."""
    median = np.median(values[reference], axis=0)
    spread = 1.4826 * np.median(np.abs(values[reference] - median), axis=0)
    return (values - median) / np.maximum(spread, 1e-12)


def weights(score: np.ndarray, visits: np.ndarray) -> np.ndarray:
    """Training weights [N] float32 in [0.5, 2]: clip(κ 2^(score / 2)), with κ such that the mean over visits is 1.

    visits: how often training plays each clip, [N], at least 0, in any unit; those never played get the same κ.
    """
    low, high = WEIGHT_RANGE
    novelty = 2.0 ** (score / 2)
    share = visits / visits.sum()
    bounds = np.array([low, high]) / np.array([novelty.max(), novelty.min()])
    for _ in range(100):  # the mean rises with κ, from 0.5 to 2
        middle = np.sqrt(bounds[0] * bounds[1])
        bounds[int(share @ np.clip(middle * novelty, low, high) > 1)] = middle
    return np.clip(bounds[0] * novelty, low, high).astype(np.float32)


def knn_distance(embeddings: np.ndarray, reference: np.ndarray, *, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Mean distance [N] of each clip's embedding to its nearest among the reference clips, itself left out."""
    neighbours = min(neighbours, int(reference.sum()) - 1)
    if neighbours < 1:
        return np.zeros(len(embeddings))
    search = NearestNeighbors(n_neighbors=neighbours + 1).fit(embeddings[reference])
    distances, indices = search.kneighbors(embeddings)
    own = indices == np.where(reference, np.cumsum(reference) - 1, -1)[:, None]
    own[~own.any(axis=1), -1] = True  # not among its neighbours: the furthest is left out instead
    return distances[~own].reshape(len(embeddings), neighbours).mean(axis=1)


def detection(
    scores: dict[str, np.ndarray], kinds: np.ndarray, novel: np.ndarray, rng: np.random.Generator
) -> dict[str, dict[str, dict[str, object]]]:
    """How well each score tells each kind of novelty from the ordinary clips.

    scores: name → [N]. novel [N]: 1, 0, or NaN where unknown. kinds [N]: the kind of novelty, "" where it has no name.
    Returns name → kind → {auroc, auroc_ci95, average_precision, average_precision_ci95, clips}.
    """
    ordinary = np.flatnonzero(novel == 0)
    names = np.where(kinds == "", "novel", kinds)
    found: dict[str, dict[str, dict[str, object]]] = {name: {} for name in scores}
    for kind in sorted(set(names[novel == 1])):
        planted = np.flatnonzero((novel == 1) & (names == kind))
        draws = [
            (rng.choice(ordinary, len(ordinary)), rng.choice(planted, len(planted))) for _ in range(BOOTSTRAP_ROUNDS)
        ]
        for name, score in scores.items():
            row: dict[str, object] = {"clips": len(planted)}
            for metric, function in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
                row[metric] = _detected(function, score, ordinary, planted)
                values = [_detected(function, score, *draw) for draw in draws]
                row[f"{metric}_ci95"] = [float(bound) for bound in np.percentile(values, [2.5, 97.5])]
            found[name][kind] = row
    return found


def _detected(
    metric: Callable[..., float], score: np.ndarray, ordinary: np.ndarray, planted: np.ndarray
) -> float:
    truth = np.repeat([0, 1], [len(ordinary), len(planted)])
    return float(metric(truth, score[np.concatenate([ordinary, planted])]))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's, or None where one of them does not vary."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
