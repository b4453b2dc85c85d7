"""Features to 128-D embeddings: principal components, random directions, or learned ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from pipeline.encoders.heads import EMBEDDING_DIM


@dataclass(frozen=True)
class Projector:
    """embeddings = (features − mean) · componentsᵀ / scale; one scale for all dimensions, no whitening."""

    mean: np.ndarray  # [D] float64
    components: np.ndarray  # [128, D] float64, orthonormal rows or zeros
    scale: float
    name: str

    def project(self, features: np.ndarray) -> np.ndarray:
        """features: [N, D] → [N, 128] float32. In float64, so that a row does not depend on its neighbours."""
        return (((features.astype(np.float64) - self.mean) @ self.components.T) / self.scale).astype(np.float32)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self.mean, self.components, np.float64(self.scale)):
            digest.update(np.ascontiguousarray(part, np.float64).tobytes())
        return digest.hexdigest()


def fit_pca(features: np.ndarray, name: str = "pca") -> Projector:
    """Principal components of features [N, D]; the scale makes the root mean square of their embeddings one.

    Each component's largest loading is positive, so that the signs are the same everywhere. Where the features span
    fewer than 128 dimensions, the remaining components are zero.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(features))
    variances, vectors = variances[::-1][:EMBEDDING_DIM], vectors.T[::-1][:EMBEDDING_DIM]
    kept = variances > 1e-10 * max(variances[0], 1e-30)
    largest = np.abs(vectors).argmax(axis=1)
    signs = np.sign(vectors[np.arange(len(vectors)), largest])
    components = np.zeros((EMBEDDING_DIM, features.shape[1]))
    components[: len(vectors)] = vectors * signs[:, None] * kept[:, None]
    scale = float(np.sqrt(variances[kept].sum() / EMBEDDING_DIM)) if kept.any() else 1.0
    return Projector(features.mean(axis=0, dtype=np.float64), components, scale, name)


def random_projector(seed: int, feature_dim: int) -> Projector:
    """128 orthonormal directions drawn from the seed; neither centred nor scaled, as it sees no data."""
    gaussian = np.random.default_rng(seed).standard_normal((feature_dim, EMBEDDING_DIM))
    q, r = np.linalg.qr(gaussian)
    return Projector(np.zeros(feature_dim), (q * np.sign(np.diag(r))).T, 1.0, f"random:{seed}")
