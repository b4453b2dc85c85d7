"""Encoders of embeddings and simulator states for agents, and self-supervised losses for training encoders."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

EMBEDDING_DIM = 128
BLOCK = 1 << 16  # embeddings


def moments(embeddings: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [D], float64, of rows [n] of embeddings [N, D], one block in memory at a time."""
    blocks = np.split(rows, range(BLOCK, len(rows), BLOCK))
    mean = sum(embeddings[block].sum(0, dtype=np.float64) for block in blocks) / len(rows)
    return mean, sum(((embeddings[block] - mean) ** 2).sum(0) for block in blocks) / len(rows)


class Normalizer(nn.Module):
    """Centre embeddings [B, D] and divide each dimension by √(its variance + the mean variance).

    The few dimensions with the largest variance scale to about one and the many others stay small. Whitening would
    raise their noise to the same size; one global deviation would let lighting dominate.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, embedding_dim: int = EMBEDDING_DIM):
        super().__init__()
        self.register_buffer("mean", torch.zeros(embedding_dim))
        self.register_buffer("scale", torch.ones(embedding_dim))

    def fit(self, embeddings: np.ndarray, rows: np.ndarray | None = None) -> Normalizer:
        """Take mean and deviations from embeddings [N, D], or from some rows of them [n]."""
        mean, variance = moments(embeddings, np.arange(len(embeddings)) if rows is None else rows)
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(np.sqrt(np.maximum(variance + variance.mean(), 1e-12))))
        return self

    def forward(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.mean) / self.scale


class MLPEncoder(nn.Module):
    """Simulator states [B, 4] in [0, 1] → latents [B, 128]: 4, 256, 256, 128 and a layer norm."""

    def __init__(self, observation_size: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(observation_size, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, EMBEDDING_DIM),
            nn.LayerNorm(EMBEDDING_DIM),
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.net(2 * observations - 1)


class AuxiliaryHeads(nn.Module):
    """Self-supervised losses that train an encoder: predict the next latent from a latent and an action.

    Consistency is one minus the cosine of the predicted and the actual next latent (SPR, arXiv 2007.05929, equation 2);
    InfoNCE identifies that latent among the batch (CPC, arXiv 1807.03748, equation 4). Targets have no gradient; norms
    have a floor, so both losses are always finite.
    """

    CONSISTENCY_WEIGHT = 0.1
    CONTRASTIVE_WEIGHT = 0.1
    TEMPERATURE = 0.1

    def __init__(self, latent_size: int, action_size: int):
        super().__init__()
        self.predictor = nn.Sequential(
            nn.Linear(latent_size + action_size, 256), nn.ReLU(), nn.Linear(256, latent_size)
        )

    def forward(self, latents: Tensor, actions: Tensor, next_latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """latents, next_latents: [B, Z], actions: [B, A] → (weighted loss, both losses by name)."""
        predicted = nn.functional.normalize(self.predictor(torch.cat([latents, actions], -1)), dim=-1, eps=1e-6)
        target = nn.functional.normalize(next_latents.detach(), dim=-1, eps=1e-6)
        consistency = 1 - (predicted * target).sum(-1).mean()
        logits = predicted @ target.T / self.TEMPERATURE  # (B, B)
        contrastive = nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        loss = self.CONSISTENCY_WEIGHT * consistency + self.CONTRASTIVE_WEIGHT * contrastive
        return loss, {"consistency_loss": consistency.detach(), "contrastive_loss": contrastive.detach()}
