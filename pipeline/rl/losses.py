"""One function per loss (Haarnoja et al. 2018, arXiv 1812.05905), each returning the loss and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pipeline.rl.networks import sample_action

ActorFunction = Callable[[Tensor], tuple[Tensor, Tensor]]  # latents [B, Z] → mean and log standard deviation [B, A]
CriticFunction = Callable[[Tensor, Tensor], Tensor]  # latents [B, Z], actions [B, A] in [0, 1] → values [2, B]


class LatentTransitions(NamedTuple):
    """A batch of transitions with encoded observations."""

    latents: Tensor  # (B, Z)
    actions: Tensor  # (B, A) in [0, 1]
    rewards: Tensor  # (B,) normalised
    masks: Tensor  # (B,) 0 where the episode terminated; truncation keeps 1
    next_latents: Tensor  # (B, Z)


def td_target(
    batch: LatentTransitions,
    actor: ActorFunction,
    target_critic: CriticFunction,
    *,
    alpha: Tensor,
    gamma: float,
    noise: Tensor,
) -> Tensor:
    """r + γ · mask · (min Q'(s', a') − α log π(a'|s')), equation 3: [B]."""
    if gamma == 0:
        return batch.rewards
    mean, log_std = actor(batch.next_latents)
    next_actions, next_log_prob = sample_action(mean, log_std, noise)
    next_value = target_critic(batch.next_latents, next_actions).min(0).values - alpha * next_log_prob
    return batch.rewards + gamma * batch.masks * next_value


def critic_loss(
    critic: CriticFunction, batch: LatentTransitions, target: Tensor, weights: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted squared error of both critics, equation 5. weights: [B] with mean about 1."""
    q = critic(batch.latents, batch.actions)  # (2, B)
    error = q - target
    loss = 0.5 * (weights * error.square()).mean(1).sum()
    td_error = error.detach().abs().mean(0)
    return loss, {"critic_loss": loss.detach(), "q_mean": q.detach().mean(), "td_error": td_error}


def actor_loss(
    actor: ActorFunction, critic: CriticFunction, latents: Tensor, *, alpha: Tensor, noise: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """E[α log π(a|s) − min Q(s, a)], equation 7."""
    mean, log_std = actor(latents)
    actions, log_prob = sample_action(mean, log_std, noise)
    loss = (alpha * log_prob - critic(latents, actions).min(0).values).mean()
    return loss, {"actor_loss": loss.detach(), "entropy": -log_prob.detach().mean()}


def temperature_loss(
    log_alpha: Tensor, entropy: Tensor, target_entropy: Tensor | float
) -> tuple[Tensor, dict[str, Tensor]]:
    """α (entropy − target), equation 17: α rises while entropy is below its target."""
    alpha = log_alpha.exp()
    return alpha * (entropy - target_entropy), {"alpha": alpha.detach()}
