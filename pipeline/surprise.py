"""From measures of clips to novelty scores and weights, and how well scores find labelled novelty. Pure numpy."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

MIN_FOR_REGRESSION = 20  # reference clips; with fewer, complexity is not removed
MIN_FOR_SCORES = 5  # with fewer, every clip weighs 1
MAX_SCORE = 6.0
WEIGHT_RANGE = (0.5, 2.0)
NEIGHBOURS = 5
BOOTSTRAPS = 1000
CLIPS_A_COMPONENT = 4
MAX_COMPONENTS = 128
MAX_LEARNED = 2048
TRIMMED = 0.15  # of the reference: what is novel in it must not become a component of its own


def remove_complexity(values: np.ndarray, complexity: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Residuals [N, K] of `values` [N, K] on `complexity` [N, D], least squares over the reference clips (mask [N]).

    Raw diffusion loss ranks a busy clip over a novel one (Serrà et al. 2020, arXiv 1909.11480). Complexity is clipped
    to the reference's range: beyond it the line is not known, and a frozen clip must not be excused for being still.
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


def novelty_score(channels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """One score [N] in [-6, 6] of calibrated channels [N, C]: the length of the vector of their positive deviations.

    Clips that are more ordinary than the median in one channel cannot make up for being odd in another: a clip of
    frozen motion is easy to predict in all else. The rule sees no label.
    """
    length = np.sqrt(np.square(np.maximum(channels, 0)).sum(axis=1))
    return np.clip(robust_z(length[:, None], reference)[:, 0], -MAX_SCORE, MAX_SCORE)


def unexplained(vectors: np.ndarray, reference: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Log of the squared residual [N] of vectors [N, D] on principal components of the reference's other fold."""
    residual = np.empty(len(vectors))
    for fold in np.unique(folds):
        scored = folds == fold
        known = np.flatnonzero(reference & ~scored)
        if len(known) < 2:
            known = np.flatnonzero(reference)
        known = known[:: 1 + len(known) // MAX_LEARNED]
        pca = PCA(max(1, min(MAX_COMPONENTS, len(known) // CLIPS_A_COMPONENT)), random_state=0).fit(vectors[known])
        centred = vectors[scored] - pca.mean_
        residual[scored] = np.square(centred).sum(axis=1) - np.square(centred @ pca.components_.T).sum(axis=1)
    return np.log(np.maximum(residual, 1e-12))


def clip_channels(thumbnails: np.ndarray, reference: np.ndarray, folds: np.ndarray) -> dict[str, np.ndarray]:
    """How badly a linear codec of whole clips describes each: thumbnails [N, T, h, w, 3] → picture and motion, [N].

    picture is the residual of the mean frame; motion that of the frames less their mean, as a share of its energy, so
    that much motion is not novel motion. Time runs forwards in the components: motion in reverse is not explained.
    """
    flat = thumbnails.reshape(*thumbnails.shape[:2], -1).astype(np.float64)
    picture = flat.mean(axis=1)
    motion = (flat - picture[:, None]).reshape(len(flat), -1)
    motion /= np.maximum(np.linalg.norm(motion, axis=1, keepdims=True), 1e-6)
    return {
        "picture": unexplained(picture, reference, folds),
        "motion": unexplained(motion, reference, folds),
    }


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
        # Row 0 is the data itself, the others are resampled; each score is judged on the same.
        draws = [
            np.vstack(
                [np.ones(len(rows), int), rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), BOOTSTRAPS)]
            )
            for rows in (ordinary, planted)
        ]
        for name, score in scores.items():
            row: dict[str, object] = {"clips": len(planted)}
            metrics = ranking_metrics(score[ordinary], score[planted], *draws)
            for metric, values in zip(("auroc", "average_precision"), metrics, strict=True):
                row[metric] = float(values[0])
                row[f"{metric}_ci95"] = [float(bound) for bound in np.percentile(values[1:], [2.5, 97.5])]
            found[name][kind] = row
    return found


def ranking_metrics(
    ordinary: np.ndarray, planted: np.ndarray, ordinary_counts: np.ndarray, planted_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision [R] of scores [n] and [m] of which each counts as often as counts [R, n], [R, m] say.

    As scikit-learn has them, ties included, for all R at once.
    """
    levels, level = np.unique(-np.concatenate([ordinary, planted]), return_inverse=True)
    misses, hits = (
        np.stack([np.bincount(at, counts, len(levels)) for counts in table])
        for at, table in ((level[: len(ordinary)], ordinary_counts), (level[len(ordinary) :], planted_counts))
    )
    misses_above, hits_above = np.cumsum(misses, axis=1), np.cumsum(hits, axis=1)
    num_misses, num_hits = misses_above[:, -1], hits_above[:, -1]
    auroc = (misses * (hits_above - hits / 2)).sum(axis=1) / (num_misses * num_hits)
    precision = hits_above / np.maximum(hits_above + misses_above, 1)
    return auroc, (hits * precision).sum(axis=1) / num_hits


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's, or None where one of them does not vary."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
