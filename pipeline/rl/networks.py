"""The networks of Soft Actor-Critic (Haarnoja et al. 2018, arXiv 1812.05905) and its tanh Gaussian.

Networks compute in the unit box: `to_unit` maps the tanh output in [-1, 1] to an action in [0, 1], and the agent maps
that to the task's bounds. Log-probabilities and the target entropy refer to the [-1, 1] space.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.rl.ensemble_mlp import ensemble_mlp

HIDDEN_SIZE = 256
STRETCH = 1.2  # of the tanh, so that actions can reach their bounds
LOG_STD_RANGE = (-5.0, 2.0)


class Actor(nn.Module):
    """Latents [B, Z] → mean and log standard deviation [B, A] of the Gaussian before tanh."""

    def __init__(self, latent_size: int, num_actions: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(latent_size, HIDDEN_SIZE),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, 2 * num_actions),
        )

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self._in_range(self.net(latents))

    def fused(self, latents: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same for updates, with hidden layers in `dtype`."""
        parameters = [p.mT if p.ndim == 2 else p for p in self._in_order]
        return self._in_range(ensemble_mlp(latents, None, parameters, is_normed=False, dtype=dtype))

    @functools.cached_property
    def _in_order(self) -> list[nn.Parameter]:
        return list(self.net.parameters())

    @staticmethod
    def _in_range(outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)


class EnsembleLinear(nn.Module):
    """E parallel linear layers: [E, B, in] → [E, B, out] in one batched product."""

    def __init__(self, ensemble_size: int, in_features: int, out_features: int):
        super().__init__()
        bound = 1 / math.sqrt(in_features)  # nn.Linear's initialisation
        self.weight = nn.Parameter(torch.empty(ensemble_size, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(ensemble_size, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class TwinCritic(nn.Module):
    """Latents [B, Z], actions in the unit box [B, A] → two action values [2, B].

    Layer norm limits extrapolation of values between the data.
    """

    def __init__(self, latent_size: int, num_actions: int):
        super().__init__()
        self.net = nn.Sequential(
            EnsembleLinear(2, latent_size + num_actions, HIDDEN_SIZE),
            nn.LayerNorm(HIDDEN_SIZE, elementwise_affine=False),  # affine gains would be shared by the twins
            nn.ReLU(),
            EnsembleLinear(2, HIDDEN_SIZE, HIDDEN_SIZE),
            nn.LayerNorm(HIDDEN_SIZE, elementwise_affine=False),
            nn.ReLU(),
            EnsembleLinear(2, HIDDEN_SIZE, 1),
        )

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        inputs = torch.cat([latents, 2 * actions - 1], dim=-1)
        return self.net(inputs.expand(2, *inputs.shape)).squeeze(-1)

    def fused(self, latents: Tensor, actions: Tensor, *, dtype: torch.dtype) -> Tensor:
        """The same for updates, with hidden layers in `dtype`."""
        return ensemble_mlp(latents, 2 * actions - 1, self._in_order, is_normed=True, dtype=dtype).squeeze(-1)

    @functools.cached_property
    def _in_order(self) -> list[nn.Parameter]:
        return list(self.net.parameters())


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised actions [B, A] in [0, 1] and log-probabilities [B] in the tanh space [-1, 1].

    log π(a) = Σ log N(u; mean, std) − log(1 − tanh² u), appendix C, with the stable form of the last term. The density
    is that of tanh u; `to_unit` clips only values beyond the bounds.
    """
    pre_tanh = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_one_minus_tanh2 = 2 * (math.log(2) - pre_tanh - F.softplus(-2 * pre_tanh))
    return to_unit(pre_tanh), (log_normal - log_one_minus_tanh2).sum(-1)


def to_unit(pre_tanh: Tensor) -> Tensor:
    """Map unbounded values to actions in [0, 1] by tanh, stretched a little and clipped at the bounds.

    Without the stretch, the bounds are at infinity, where tanh has no slope and the entropy bonus pulls back: a policy
    whose best action is full speed would stop at 0.97 of it.
    """
    return (0.5 * (STRETCH * torch.tanh(pre_tanh) + 1)).clamp(0, 1)
