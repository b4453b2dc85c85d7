"""Soft Actor-Critic (Haarnoja et al. 2018, arXiv 1812.05905): networks, one loss a function, the agent.

The policy is a tanh Gaussian; actions are its [-1, 1] output mapped to [0, 1] by `to_action`. Log-probabilities and the
target entropy are those of the [-1, 1] space.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import CorruptError, UntrustedError, VtpError
from pipeline.files import atomic_path, file_sha256, write_text

ACTION_SIZE = 2
HIDDEN_SIZE = 256
TARGET_ENTROPY = -float(ACTION_SIZE)
INITIAL_ALPHA = 0.05  # rewards have deviation one, so 1.0 would drown them for thousands of updates
ANNEALED_AFTER = 0.8  # of training: by then entropy is at its final target
FINAL_LR_FACTOR = 0.05
STRETCH = 1.2  # of the tanh, so that the bounds of actions are reached
CODE = r"Unsupported (global|operand 149)"  # a name to be called, or the first word of a plain pickle
LOG_STD_RANGE = (-5.0, 2.0)


class Transitions(NamedTuple):
    """A batch on its way through the losses; latents are encoded observations."""

    latents: Tensor  # (B, Z)
    actions: Tensor  # (B, 2) in [0, 1]
    rewards: Tensor  # (B,) normalised
    masks: Tensor  # (B,) 0 where the episode terminated; truncation keeps 1
    next_latents: Tensor  # (B, Z)


class Actor(nn.Module):
    """Latents [B, Z] → mean and log standard deviation [B, 2] of the Gaussian before tanh."""

    def __init__(self, latent_size: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(latent_size, HIDDEN_SIZE),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, 2 * ACTION_SIZE),
        )

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = _last_in_fp32(self.net, latents).chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)


class EnsembleLinear(nn.Module):
    """E linear layers side by side: [E, B, in] → [E, B, out] in one batched product."""

    def __init__(self, ensemble_size: int, in_features: int, out_features: int):
        super().__init__()
        bound = 1 / math.sqrt(in_features)  # nn.Linear's initialisation
        self.weight = nn.Parameter(torch.empty(ensemble_size, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(ensemble_size, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class TwinCritic(nn.Module):
    """Latents [B, Z], actions [B, 2] → two action values [2, B]. Layer norm keeps values tame between the data."""

    def __init__(self, latent_size: int):
        super().__init__()
        self.net = nn.Sequential(
            EnsembleLinear(2, latent_size + ACTION_SIZE, HIDDEN_SIZE),
            nn.LayerNorm(HIDDEN_SIZE, elementwise_affine=False),  # gains would be shared by the twins
            nn.ReLU(),
            EnsembleLinear(2, HIDDEN_SIZE, HIDDEN_SIZE),
            nn.LayerNorm(HIDDEN_SIZE, elementwise_affine=False),
            nn.ReLU(),
            EnsembleLinear(2, HIDDEN_SIZE, 1),
        )

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        inputs = torch.cat([latents, 2 * actions - 1], dim=-1)
        return _last_in_fp32(self.net, inputs.expand(2, *inputs.shape)).squeeze(-1)


def _last_in_fp32(net: nn.Sequential, x: Tensor) -> Tensor:
    """The network's output; under autocast its last layer is in fp32, for a value in bf16 has two or three digits."""
    if not torch.is_autocast_enabled("cpu"):
        return net(x)
    hidden = net[:-1](x)
    with torch.autocast("cpu", enabled=False):
        return net[-1](hidden.float())


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised actions [B, 2] in [0, 1] and log-probabilities [B] in the tanh space [-1, 1].

    log π(a) = Σ log N(u; mean, std) − log(1 − tanh² u), appendix C, with the stable form of the last term. The density
    is that of tanh u; what `to_action` cuts off lies beyond the bounds.
    """
    pre_tanh = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_one_minus_tanh2 = 2 * (math.log(2) - pre_tanh - F.softplus(-2 * pre_tanh))
    return to_action(pre_tanh), (log_normal - log_one_minus_tanh2).sum(-1)


def to_action(pre_tanh: Tensor) -> Tensor:
    """What an unbounded choice does, in [0, 1]: tanh, stretched a little and cut off at the bounds.

    Without the stretch a bound lies at infinity, where tanh has no slope and the entropy bonus pulls back: a policy
    whose best action is full speed would settle for 0.97 of it.
    """
    return (0.5 * (STRETCH * torch.tanh(pre_tanh) + 1)).clamp(0, 1)


def td_target(
    batch: Transitions, actor: Actor, target_critic: TwinCritic, *, alpha: Tensor, gamma: float, noise: Tensor
) -> Tensor:
    """r + γ · mask · (min Q'(s', a') − α log π(a'|s')), equation 3: [B]."""
    if gamma == 0:
        return batch.rewards
    next_actions, next_log_prob = sample_action(*actor(batch.next_latents), noise)
    next_value = target_critic(batch.next_latents, next_actions).min(0).values - alpha * next_log_prob
    return batch.rewards + gamma * batch.masks * next_value


def critic_loss(critic: TwinCritic, batch: Transitions, target: Tensor, weights: Tensor) -> tuple[Tensor, dict]:
    """Weighted squared error of both critics, equation 5. weights: [B] with mean about 1."""
    q = critic(batch.latents, batch.actions)  # (2, B)
    error = q - target
    loss = 0.5 * (weights * error.square()).mean(1).sum()
    td_error = error.detach().abs().mean(0)
    return loss, {"critic_loss": loss.detach(), "q_mean": q.detach().mean(), "td_error": td_error}


def actor_loss(
    actor: Actor, critic: TwinCritic, latents: Tensor, *, alpha: Tensor, noise: Tensor
) -> tuple[Tensor, dict]:
    """E[α log π(a|s) − min Q(s, a)], equation 7."""
    actions, log_prob = sample_action(*actor(latents), noise)
    loss = (alpha * log_prob - critic(latents, actions).min(0).values).mean()
    return loss, {"actor_loss": loss.detach(), "entropy": -log_prob.detach().mean()}


def temperature_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> tuple[Tensor, dict]:
    """α (entropy − target), equation 17: α rises while entropy is below its target."""
    alpha = log_alpha.exp()
    return alpha * (entropy - target_entropy), {"alpha": alpha.detach()}


class Agent(nn.Module):
    """Actor, critics, temperature and their optimisers over an encoder from observations [B, ...] to latents [B, Z].

    Rewards are centred and scaled by their running mean and deviation before they reach the critic. Time limits
    truncate and never terminate, so a constant added to every reward changes every value alike and no policy
    (Naik et al. 2024, arXiv 2405.09999); without it, γ = 0.995 makes values of hundreds in which differences between
    actions of a few tenths drown.

    The deterministic policy is a moving average of the actor, with the target networks' step: single updates follow
    the noise of sampled outcomes, their average does not.
    """

    _OPTIMIZERS = ("critic_optimizer", "actor_optimizer", "alpha_optimizer")

    def __init__(
        self,
        encoder: nn.Module,
        latent_size: int,
        *,
        lr: float = 3e-4,
        gamma: float = 0.995,
        tau: float = 5e-3,
        auxiliary: nn.Module | None = None,
        bf16: bool = False,
        encoder_lr: float | None = None,
        latent_noise: float = 0.0,
    ):
        """bf16: compute the hidden layers' matrix products of updates in it; weights and all else stay fp32.
        encoder_lr: initial learning rate of the encoder, where it is not `lr`; both fall alike.
        latent_noise: deviation of the Gaussian noise on the latents of updates, so that what is learned of one clip
        holds of those like it and the luck of its outcomes is not learned by heart (S4RL, arXiv 2103.06326).
        """
        super().__init__()
        self.lr, self.encoder_lr, self.gamma, self.tau = lr, encoder_lr, gamma, tau
        self.latent_noise = latent_noise
        self._precision = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=bf16)
        self.encoder = encoder
        self.auxiliary = auxiliary
        self.actor = Actor(latent_size)
        self.critic = TwinCritic(latent_size)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.average_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(INITIAL_ALPHA)))
        self.target_entropy = TARGET_ENTROPY
        self.register_buffer("reward_count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reward_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reward_square", torch.zeros((), dtype=torch.float64))
        trained_alike = (encoder if encoder_lr is None else None, auxiliary)
        learned = [p for module in trained_alike if module is not None for p in module.parameters()]
        self._critic_parameters = [*self.critic.parameters(), *learned]
        groups: list[dict[str, Any]] = [{"params": self._critic_parameters}]
        if encoder_lr is not None:
            groups.append({"params": list(encoder.parameters()), "lr": encoder_lr})
        self.critic_optimizer = torch.optim.Adam(groups, lr=lr, fused=True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=lr, fused=True)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=lr)

    def anneal(self, progress: float, *, final_entropy: float) -> None:
        """Lower target entropy and learning rates with the progress of training in [0, 1].

        Held at -2, the target entropy makes the policy keep a fifth of the action range to itself, and where the best
        action lies in a corner (fast and very careful) it settles for a slow one.
        """
        self.target_entropy = TARGET_ENTROPY + min(progress / ANNEALED_AFTER, 1.0) * (final_entropy - TARGET_ENTROPY)
        factor = 1 + progress * (FINAL_LR_FACTOR - 1)
        for optimizer in (self.critic_optimizer, self.actor_optimizer):
            for group, lr in zip(optimizer.param_groups, (self.lr, self.encoder_lr), strict=False):
                group["lr"] = factor * lr

    @torch.no_grad()
    def act(self, observations: Tensor, *, generator: torch.Generator | None = None) -> np.ndarray:
        """Actions [B, 2] in [0, 1]: sampled with a generator, else the averaged actor's deterministic tanh(mean)."""
        actor = self.average_actor if generator is None else self.actor
        mean, log_std = actor(self.encoder(observations))
        noise = torch.zeros_like(mean) if generator is None else torch.randn(mean.shape, generator=generator)
        return sample_action(mean, log_std, noise)[0].numpy()

    def observe_rewards(self, rewards: np.ndarray) -> None:
        """Fold rewards [B] into the running mean and deviation (Chan et al.'s parallel update)."""
        count = self.reward_count + len(rewards)
        delta = float(rewards.mean()) - self.reward_mean
        self.reward_square += float(rewards.var()) * len(rewards) + delta**2 * self.reward_count * len(rewards) / count
        self.reward_mean += delta * len(rewards) / count
        self.reward_count = count

    def forget_rewards(self) -> None:
        """Scale rewards by what comes from now on alone, as when a policy is trained on in another world."""
        for moment in (self.reward_count, self.reward_mean, self.reward_square):
            moment.zero_()

    def update(
        self, batch: Transitions, weights: Tensor, *, generator: torch.Generator
    ) -> tuple[np.ndarray, dict[str, float]]:
        """One step of critic, actor and temperature on observations in `batch`; returns |TD| [B] and the losses.

        `batch.latents` and `batch.next_latents` hold observations here; they are encoded once, and only the critic
        and auxiliary losses train the encoder. weights: [B] loss weights with mean about 1.
        """
        std = (self.reward_square / self.reward_count.clamp(min=1)).sqrt().clamp(min=1e-6)
        rewards = ((batch.rewards - self.reward_mean) / std).float()
        with self._precision():
            latents = self.encoder(batch.latents).float()
            with torch.no_grad():
                next_latents = self.encoder(batch.next_latents).float()
        if self.latent_noise:
            latents, next_latents = (
                z + self.latent_noise * torch.randn(z.shape, generator=generator) for z in (latents, next_latents)
            )
        batch = batch._replace(latents=latents, next_latents=next_latents, rewards=rewards)
        noise, next_noise = torch.randn((2, *batch.actions.shape), generator=generator)
        alpha = self.log_alpha.detach().exp()

        with self._precision():
            with torch.no_grad():
                target = td_target(
                    batch, self.actor, self.target_critic, alpha=alpha, gamma=self.gamma, noise=next_noise
                )
            loss, info = critic_loss(self.critic, batch, target, weights)
        td_error = info.pop("td_error").numpy()
        if self.auxiliary is not None:
            auxiliary_loss, auxiliary_info = self.auxiliary(latents, batch.actions, next_latents)
            loss = loss + auxiliary_loss
            info |= auxiliary_info
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_optimizer.step()

        self.critic.requires_grad_(False)
        with self._precision():
            loss, actor_info = actor_loss(self.actor, self.critic, latents.detach(), alpha=alpha, noise=noise)
        self.actor_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.actor_optimizer.step()
        self.critic.requires_grad_(True)

        loss, alpha_info = temperature_loss(self.log_alpha, actor_info["entropy"], self.target_entropy)
        self.alpha_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.alpha_optimizer.step()

        with torch.no_grad():
            for average, source in ((self.target_critic, self.critic), (self.average_actor, self.actor)):
                torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), self.tau)
        info = {name: float(value) for name, value in (info | actor_info | alpha_info).items()}
        if not all(math.isfinite(value) for value in info.values()):
            raise VtpError(f"a loss is not finite ({info}); lower --lr, or check the inputs for NaN")
        return td_error, info

    def training_state(self) -> dict[str, Any]:
        """What training on needs beside the `state_dict`: the optimisers."""
        return {name: getattr(self, name).state_dict() for name in self._OPTIMIZERS}

    def load_training_state(self, state: dict[str, Any]) -> None:
        for name in self._OPTIMIZERS:
            getattr(self, name).load_state_dict(state[name])


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically. Beside the file lie the sha256 of it and of the one before it, so
    that a kill between the two writes leaves a checkpoint that still matches."""
    checksums = path.with_name(path.name + ".sha256")
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
        known = [file_sha256(temporary)] + ([file_sha256(path)] if path.is_file() else [])
        write_text(checksums, "\n".join(known) + "\n")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    CorruptError where it is damaged, UntrustedError where it holds more than data.
    """
    if not path.is_file():
        raise VtpError(f"no checkpoint at {path}; train first, or name the run's directory")
    checksums = path.with_name(path.name + ".sha256")
    is_damaged = checksums.is_file() and file_sha256(path) not in checksums.read_text().split()
    error: Exception | None = None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, OSError, struct.error) as caught:
        error = caught
    if re.search(CODE, str(error)):
        raise UntrustedError(
            f"{path} holds more than tensors and plain values; it was not run; delete it, or train again"
        ) from error
    if is_damaged:
        raise CorruptError(f"{path} does not match {checksums.name}: it is damaged; train again, or restore a copy")
    if error:
        reason = type(error).__name__
        raise CorruptError(f"{path} is no checkpoint ({reason}); train again, or restore a copy") from error
    return checkpoint
