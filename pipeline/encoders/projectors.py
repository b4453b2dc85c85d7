"""Features to 128-D embeddings: principal components, random directions, or learned ones."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from pipeline.encoders.exact import orthonormal, product, symmetric_eigen
from pipeline.encoders.heads import EMBEDDING_DIM, AuxiliaryHeads
from pipeline.errors import VtpError
from pipeline.named_weights import NONE

logger = logging.getLogger(__name__)

FEW_CLIPS = 300
NORM_EPS = 1e-5
BLOCK_ROWS = 1024  # at most the longest sum of an exact product

LEARNED_STEPS = 600
LEARNED_LR = 1e-3
LEARNED_DROPOUT = 0.3  # of features, against overfitting few videos
VIDEOS_A_BATCH = 8
PAIRS_A_VIDEO = 32


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that results, and their hashes, do not depend on the number of processors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Projector:
    """embeddings = (features − mean) · componentsᵀ / scale, then an optional layer norm.

    One scale for all dimensions, no whitening. Components of `pca` and `random` are orthonormal rows or zeros; `none`
    has no components and gives no embeddings.
    """

    mean: np.ndarray  # [D] float64
    components: np.ndarray  # [128, D] float64; `none`: [0, D]
    scale: float
    name: str
    norm: np.ndarray | None = None  # [2, 128] float64, the layer norm's weight and bias

    def project(self, features: np.ndarray) -> np.ndarray:
        """features: [N, D] → [N, 128] float32; a row depends neither on other rows nor on the machine."""
        embeddings = np.empty((len(features), len(self.components)), np.float32)
        for rows in _blocks(len(features)):
            projected = product(features[rows] - self.mean, self.components.T) / self.scale
            if self.norm is not None:
                centred = projected - projected.mean(axis=1, keepdims=True)
                deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + NORM_EPS)
                projected = centred / deviation * self.norm[0] + self.norm[1]
            embeddings[rows] = projected
        return embeddings

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self.mean, self.components, np.float64(self.scale), *(() if self.norm is None else (self.norm,))):
            digest.update(np.ascontiguousarray(part, np.float64).tobytes())
        return digest.hexdigest()


def _blocks(num_rows: int) -> Iterator[slice]:
    """Blocks of rows that fit the cache as doubles."""
    return (slice(start, start + BLOCK_ROWS) for start in range(0, num_rows, BLOCK_ROWS))


def fit_pca(features: np.ndarray) -> Projector:
    """Principal components of features [N, D]; the scale makes the root mean square of their embeddings one.

    Each component's largest loading is positive, and no bit depends on the machine, because projectors are compared by
    hash. If the features span fewer than 128 dimensions, the remaining components are zero.
    """
    mean = sum(features[rows].sum(axis=0, dtype=np.float64) for rows in _blocks(len(features))) / len(features)
    covariance = np.zeros((features.shape[1], features.shape[1]))
    for block in _blocks(len(features)):
        centred = features[block] - mean
        covariance += product(centred.T, centred)
    variances, vectors = symmetric_eigen(covariance / len(features), EMBEDDING_DIM)
    kept = variances > 1e-10 * max(variances[0], 1e-30)
    largest = np.abs(vectors).argmax(axis=1)
    signs = np.sign(vectors[np.arange(len(vectors)), largest])
    components = np.zeros((EMBEDDING_DIM, features.shape[1]))
    components[: len(vectors)] = vectors * signs[:, None] * kept[:, None]
    scale = math.sqrt(math.fsum(variances[kept]) / EMBEDDING_DIM) if kept.any() else 1.0
    return Projector(mean, components, scale, "pca")


def random_projector(seed: int, feature_dim: int) -> Projector:
    """128 orthonormal directions drawn from the random seed; neither centred nor scaled, as there is no data.

    With fewer features there are as many directions as features, and the remaining components are zero.
    """
    gaussian = np.random.default_rng(seed).standard_normal((feature_dim, EMBEDDING_DIM))
    components = np.zeros((EMBEDDING_DIM, feature_dim))
    components[:feature_dim] = orthonormal(gaussian[:, :feature_dim]).T
    return Projector(np.zeros(feature_dim), components, 1.0, f"random:{seed}")


def no_projector(feature_dim: int) -> Projector:
    """A projector without components, for files of features only."""
    return Projector(np.zeros(feature_dim), np.zeros((0, feature_dim)), 1.0, NONE)


@one_thread()
def fit_learned(features: np.ndarray, video_lengths: Sequence[int] | np.ndarray, *, seed: int = 0) -> Projector:
    """Train a linear map and a layer norm to predict each clip's successor, without labels.

    features: [N, D], the clips of one video after the other; video_lengths: [V] clips per video, N in all. The losses
    are those of `AuxiliaryHeads` without an action. A batch has many clips of few videos, so that most negatives of
    InfoNCE share a clip's scene: features of the scene do not help, slow changes within it do. Deterministic given the
    random seed. VtpError if no video has two clips.
    """
    offset = np.concatenate([[0], np.cumsum(video_lengths)])
    pairs = [np.arange(start, end - 1) for start, end in itertools.pairwise(offset) if end - start > 1]
    if not pairs:
        raise VtpError(
            "projector 'learned' needs videos of two clips or more; use --projector pca", code="projector-unusable"
        )
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    deviation = np.maximum(deviation, 1e-6 * max(deviation.max(), 1e-30))
    inputs = torch.from_numpy(((features - mean) / deviation).astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = nn.Linear(features.shape[1], EMBEDDING_DIM, bias=False)
        norm = nn.LayerNorm(EMBEDDING_DIM, eps=NORM_EPS)
        heads = AuxiliaryHeads(EMBEDDING_DIM, 0)
        _train(linear, norm, heads, inputs, pairs, np.random.default_rng(seed))
    components = linear.weight.detach().double().numpy() / deviation
    return Projector(mean, components, 1.0, "learned", torch.stack([norm.weight, norm.bias]).detach().double().numpy())


def _train(
    linear: nn.Linear,
    norm: nn.LayerNorm,
    heads: AuxiliaryHeads,
    inputs: Tensor,
    pairs: list[np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Train in place on inputs [N, D]; pairs: each video's rows that have a successor."""
    parameters = [*linear.parameters(), *norm.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNED_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, LEARNED_STEPS)
    for _ in range(LEARNED_STEPS):
        videos = rng.permutation(len(pairs))[:VIDEOS_A_BATCH]
        rows = np.concatenate([rng.permutation(pairs[video])[:PAIRS_A_VIDEO] for video in videos])
        seen = nn.functional.dropout(inputs[np.concatenate([rows, rows + 1])], LEARNED_DROPOUT)
        latents = norm(linear(seen))
        loss, _ = heads(latents[: len(rows)], latents.new_zeros(len(rows), 0), latents[len(rows) :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def fit_projector(name: str, features: np.ndarray, video_lengths: np.ndarray) -> Projector:
    """Fit the projector of that name, one of FITTED, to features [N, D].

    video_lengths: [V] clips per video, N in all.
    """
    projector = fit_pca(features) if name == "pca" else fit_learned(features, video_lengths)
    if len(features) < FEW_CLIPS:
        num_zero = int((~projector.components.any(axis=1)).sum())
        logger.warning(
            "projector %s is fitted to %d clips, fewer than %d%s; extract more videos, or name the file of a larger "
            "extraction as --projector, random:0, or none for features only",
            name, len(features), FEW_CLIPS, f", and {num_zero} of {EMBEDDING_DIM} columns are zero" if num_zero else "",
        )  # fmt: skip
    return projector
