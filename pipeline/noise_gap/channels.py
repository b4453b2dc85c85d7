"""Novelty scores and weights from measures of clips. Pure numpy; no function here uses labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

MIN_FOR_REGRESSION = 20  # reference clips; with fewer, complexity is not removed
MIN_FOR_SCORES = 5  # reference clips; with fewer, every clip gets weight 1
MAX_SCORE = 6.0
MAX_Z = 6.0
WEIGHT_RANGE = (0.5, 2.0)
NEIGHBOURS = 5
CLIPS_A_COMPONENT = 4
MAX_COMPONENTS = 128
MAX_LEARNED = 2048
WINDOW = 6  # frames
CLIPS_A_CHUNK = 512  # a clip has 11 windows of 1152 numbers
TINY = 1e-9
PASSES = 3
TRIMMED = 0.15  # share of the reference left out as most novel, so that novelty does not become a component


class Scores(NamedTuple):
    """Deviations of N clips from the reference: in total, per channel, and by the noise gap at K sigmas."""

    score: np.ndarray  # [N] in [-6, 6]
    channels: dict[str, np.ndarray]  # name → [N]
    z: np.ndarray  # [N, K] in [-6, 6]


def score(
    gap: np.ndarray, thumbnails: np.ndarray, complexity: np.ndarray, reference: np.ndarray, folds: np.ndarray
) -> Scores:
    """Score measures: log gaps [N, K], thumbnails [N, T, h, w, 3], log energies [N, D], reference mask and folds [N].

    The channels' linear models are fitted repeatedly, without the clips that the previous pass found most novel.
    """
    complexity = complexity.astype(np.float64)

    def calibrated(values: np.ndarray) -> np.ndarray:
        return robust_z(remove_complexity(values, complexity, reference), reference)

    z = np.clip(calibrated(_by_fold(gap.astype(np.float64), folds, reference)), -MAX_Z, MAX_Z)
    channels = {"gap": robust_z(z.mean(axis=1, keepdims=True), reference)[:, 0]}

    def learned_from(clips: np.ndarray) -> np.ndarray:
        for name, values in clip_channels(thumbnails, clips, folds).items():
            channels[name] = calibrated(values[:, None])[:, 0]
        return novelty_score(np.column_stack(list(channels.values())), reference)

    score = learned_from(reference)
    for _ in range(PASSES - 1):
        score = learned_from(reference & (score <= np.quantile(score[reference], 1 - TRIMMED)))
    return Scores(score, channels, z)


def _by_fold(values: np.ndarray, folds: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Subtract the median of each fold's reference clips, because the two models are not equally good."""
    centred = values.copy()
    for fold in (0, 1):
        known = values[reference & (folds == fold)]
        centred[folds == fold] -= np.median(known if len(known) else values[reference], axis=0)
    return centred


def remove_complexity(values: np.ndarray, complexity: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Residuals [N, K] of `values` [N, K] on `complexity` [N, D], least squares over the reference clips (mask [N]).

    Raw diffusion loss ranks a busy clip over a novel one (Serrà et al. 2020, arXiv 1909.11480). Complexity is clipped
    to the reference's range: the fit does not extrapolate, and stillness must not explain the gap of a frozen clip.
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

    Being ordinary in one channel does not compensate for being unusual in another: a clip of frozen motion is easy to
    predict in all other channels. No labels are used.
    """
    length = np.sqrt(np.square(np.maximum(channels, 0)).sum(axis=1))
    return np.clip(robust_z(length[:, None], reference)[:, 0], -MAX_SCORE, MAX_SCORE)


def clip_channels(thumbnails: np.ndarray, reference: np.ndarray, folds: np.ndarray) -> dict[str, np.ndarray]:
    """Errors of linear models of the reference's other fold: thumbnails [N, T, h, w, 3] → name → [N].

    picture: log squared distance of the mean frame from the reference's, under a Gaussian with a few principal
    directions and white noise in all others. motion: over windows of a few frames less their mean, log share of the
    energy not explained by the principal components of such windows, in the clip's worst window. order: log ratio of
    the unexplained energy played forwards to that played backwards. It is high if the reference has the same motion
    in reverse, whatever the kind and amount of motion.
    """
    picture, motion, order = np.empty((3, len(thumbnails)))
    for fold in np.unique(folds):
        scored = np.flatnonzero(folds == fold)
        known = np.flatnonzero(reference & (folds != fold))
        if len(known) < 2:
            known = np.flatnonzero(reference)
        known = known[:: 1 + len(known) // MAX_LEARNED]
        num_components = max(1, min(MAX_COMPONENTS, len(known) // CLIPS_A_COMPONENT))
        pictures = PCA(num_components, random_state=0).fit(_mean_frames(thumbnails[known]))
        windows = _windows(thumbnails[known]).reshape(-1, _window_size(thumbnails))
        components = principal_components(windows, num_components)
        for start in range(0, len(scored), CLIPS_A_CHUNK):
            rows = scored[start : start + CLIPS_A_CHUNK]
            picture[rows] = np.log(gaussian_distance(pictures, _mean_frames(thumbnails[rows])))
            forwards = _windows(thumbnails[rows])
            left = unexplained(forwards, components)
            left_backwards = unexplained(_windows(thumbnails[rows, ::-1]), components)
            energy = np.maximum(np.square(forwards).sum(axis=2), TINY)
            motion[rows] = np.log(left / energy).max(axis=1)
            order[rows] = np.log(left.sum(axis=1) / left_backwards.sum(axis=1))
    return {"picture": picture, "motion": motion, "order": order}


def gaussian_distance(pca: PCA, vectors: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance [N] of vectors [N, D] under probabilistic PCA (Tipping and Bishop 1999, eq. 6)."""
    centred = vectors - pca.mean_
    along = centred @ pca.components_.T
    aside = np.square(centred).sum(axis=1) - np.square(along).sum(axis=1)
    noise = max(pca.noise_variance_, TINY)
    within = np.square(along) / np.maximum(pca.explained_variance_, noise)
    return np.maximum(within.sum(axis=1) + aside / noise, TINY)


def principal_components(vectors: np.ndarray, num_components: int) -> np.ndarray:
    """Orthonormal directions [num_components, D] of the largest second moments of vectors [N, D], not centred."""
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    return directions[:, ::-1][:, :num_components].T


def unexplained(vectors: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Squared residual [...] of vectors [..., D] on orthonormal components [K, D], above 0."""
    return np.maximum(np.square(vectors).sum(axis=-1) - np.square(vectors @ components.T).sum(axis=-1), TINY)


def _mean_frames(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails.astype(np.float64).mean(axis=1).reshape(len(thumbnails), -1)


def _window_size(thumbnails: np.ndarray) -> int:
    return min(WINDOW, thumbnails.shape[1]) * int(np.prod(thumbnails.shape[2:]))


def _windows(thumbnails: np.ndarray) -> np.ndarray:
    """All windows of consecutive frames, each less its mean [N, windows, D]; every clip has the same energy.

    A clip gives many windows, so a few hundred clips cover the usual motion at every phase.
    """
    frames = thumbnails.reshape(*thumbnails.shape[:2], -1).astype(np.float64)
    frames -= frames.mean(axis=1, keepdims=True)
    frames /= np.maximum(np.sqrt(np.square(frames).mean(axis=(1, 2), keepdims=True)), 1e-6)
    length = min(WINDOW, frames.shape[1])
    windows = np.stack([frames[:, start : start + length] for start in range(frames.shape[1] - length + 1)], axis=1)
    windows -= windows.mean(axis=2, keepdims=True)
    return windows.reshape(*windows.shape[:2], -1)


def weights(score: np.ndarray, visits: np.ndarray) -> np.ndarray:
    """Training weights [N] float32 in [0.5, 2]: clip(κ 2^(score / 2)), with κ such that the mean over visits is 1.

    visits: how often training plays each clip, [N], at least 0, in any unit; clips never played get the same κ.
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
    """Mean distance [N] of each clip's embedding to its nearest reference clips, except itself."""
    neighbours = min(neighbours, int(reference.sum()) - 1)
    if neighbours < 1:
        return np.zeros(len(embeddings))
    search = NearestNeighbors(n_neighbors=neighbours + 1).fit(embeddings[reference])
    distances, indices = search.kneighbors(embeddings)
    own = indices == np.where(reference, np.cumsum(reference) - 1, -1)[:, None]
    own[~own.any(axis=1), -1] = True  # if it is not among its neighbours, drop the furthest
    return distances[~own].reshape(len(embeddings), neighbours).mean(axis=1)
