"""Soft Actor-Critic (Haarnoja et al. 2018, arXiv 1812.05905): the agent over its networks and losses."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pipeline.errors import VtpError
from pipeline.rl.losses import LatentTransitions, actor_loss, critic_loss, td_target, temperature_loss
from pipeline.rl.networks import Actor, TwinCritic, sample_action

TARGET_ENTROPY = -1.0  # per action, at the start
INITIAL_ALPHA = 0.05  # rewards have standard deviation 1; an alpha of 1.0 would dominate them for thousands of updates
ANNEALED_AFTER = 0.8  # share of training after which the target entropy is final
FINAL_LR_FACTOR = 0.05


class Transitions(NamedTuple):
    """A batch of transitions as returned by the environment."""

    observations: Tensor  # (B, ...)
    actions: Tensor  # (B, A) in the task's units
    rewards: Tensor  # (B,)
    masks: Tensor  # (B,) 0 where the episode terminated; truncation keeps 1
    next_observations: Tensor  # (B, ...)


class Noise(NamedTuple):
    """The standard normal numbers of one update, drawn beforehand: on a GPU the update itself is one recorded graph."""

    actions: Tensor  # (2, B, A) of the actions at observations and at next observations
    latents: Tensor | None  # (2, B, Z) of the latents of both

    def draw(self, generator: torch.Generator) -> Noise:
        """Draw all numbers again, in place."""
        for numbers in self:
            if numbers is not None:
                numbers.normal_(generator=generator)
        return self


class Agent(nn.Module):
    """Actor, critics, temperature and their optimisers over an encoder from observations [B, ...] to latents [B, Z].

    Rewards are centred and scaled by their running mean and standard deviation before they reach the critic. Time
    limits truncate and never terminate, so subtracting a constant from all rewards shifts all values equally and
    changes no policy (Naik et al. 2024, arXiv 2405.09999). Uncentred, γ = 0.995 gives values in the hundreds, which
    hide differences of a few tenths between actions.

    The deterministic policy is a moving average of the actor, with the target networks' step size: single updates
    follow the noise of sampled outcomes, their average does not.
    """

    _OPTIMIZERS = ("critic_optimizer", "actor_optimizer")
    action_low: Tensor  # [A]
    action_high: Tensor  # [A]
    reward_count: Tensor
    reward_mean: Tensor
    reward_square: Tensor
    target_entropy: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        latent_size: int,
        *,
        low: ArrayLike,
        high: ArrayLike,
        lr: float = 3e-4,
        gamma: float = 0.995,
        tau: float = 5e-3,
        auxiliary: nn.Module | None = None,
        bf16: bool = False,
        encoder_lr: float | None = None,
        latent_noise: float = 0.0,
    ):
        """low, high: [A] bounds of the actions.
        bf16: compute the hidden layers' matrix products of updates in bfloat16; weights and the rest stay fp32.
        encoder_lr: initial learning rate of the encoder, if not `lr`; both decay equally.
        latent_noise: standard deviation of Gaussian noise on the latents in updates, which generalises to similar clips
        instead of memorising the sampling noise of one clip (S4RL, arXiv 2103.06326).
        """
        super().__init__()
        self.lr, self.encoder_lr, self.gamma, self.tau = lr, encoder_lr, gamma, tau
        self.latent_noise = latent_noise
        self.latent_size, self._dtype = latent_size, torch.bfloat16 if bf16 else torch.float32
        self.encoder = encoder
        self.auxiliary = auxiliary
        self.register_buffer("action_low", _rounded(low, up=True))
        self.register_buffer("action_high", _rounded(high, up=False))
        self.actor = Actor(latent_size, self.num_actions)
        self.critic = TwinCritic(latent_size, self.num_actions)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.average_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(INITIAL_ALPHA)))
        target_entropy = torch.tensor(self.num_actions * TARGET_ENTROPY)
        self.register_buffer("target_entropy", target_entropy, persistent=False)
        self.register_buffer("reward_count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reward_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reward_square", torch.zeros((), dtype=torch.float64))

    @functools.cached_property
    def critic_optimizer(self) -> torch.optim.Optimizer:
        # made when training begins: torch's first optimiser takes seconds, and a policy in use needs none
        trained_alike = (self.critic, self.encoder if self.encoder_lr is None else None, self.auxiliary)
        groups = [([p for module in trained_alike if module is not None for p in module.parameters()], self.lr)]
        if self.encoder_lr is not None:
            groups.append((list(self.encoder.parameters()), self.encoder_lr))
        return self._adam(groups)

    @functools.cached_property
    def actor_optimizer(self) -> torch.optim.Optimizer:
        return self._adam([(list(self.actor.parameters()), self.lr), ([self.log_alpha], self.lr)])

    @functools.cached_property
    def _averages(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters of the moving averages, and those that they follow."""
        return (
            [*self.target_critic.parameters(), *self.average_actor.parameters()],
            [*self.critic.parameters(), *self.actor.parameters()],
        )

    def _adam(self, groups: list[tuple[list[nn.Parameter], float]]) -> torch.optim.Optimizer:
        """Adam over groups of parameters with their initial learning rates."""
        is_recorded = self.device.type == "cuda"  # as a graph, which reads learning rates from tensors

        def rate(lr: float) -> float | Tensor:
            return torch.tensor(lr, device=self.device) if is_recorded else lr

        settings = [{"params": parameters, "lr": rate(lr), "initial_lr": lr} for parameters, lr in groups]
        return torch.optim.Adam(settings, fused=True, capturable=is_recorded)

    @property
    def device(self) -> torch.device:
        return self.log_alpha.device

    @property
    def num_actions(self) -> int:
        return len(self.action_low)

    def anneal(self, progress: float, *, final_entropy: float) -> None:
        """Lower target entropy and learning rates with the progress of training in [0, 1].

        final_entropy: the final target per action. If it stayed at -1, the policy would spread over a fifth of an
        action's range, and if the best action is in a corner (fast and very careful), it would settle for a slow one.
        """
        each = TARGET_ENTROPY + min(progress / ANNEALED_AFTER, 1.0) * (final_entropy - TARGET_ENTROPY)
        self.target_entropy.fill_(self.num_actions * each)
        factor = 1 + progress * (FINAL_LR_FACTOR - 1)
        annealed = [*self.critic_optimizer.param_groups, self.actor_optimizer.param_groups[0]]  # not the temperature
        for group in annealed:
            lr = factor * group["initial_lr"]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    @torch.no_grad()
    def act(self, observations: Tensor, *, generator: torch.Generator | None = None) -> np.ndarray:
        """Actions [B, A]: sampled if a generator is given, otherwise the averaged actor's deterministic tanh(mean)."""
        actor = self.average_actor if generator is None else self.actor
        mean, log_std = actor(self.encoder(observations.to(self.device)))
        noise = torch.zeros_like(mean)
        if generator is not None:
            noise.normal_(generator=generator)
        return self.from_unit(sample_action(mean, log_std, noise)[0]).cpu().numpy()

    def from_unit(self, unit: Tensor) -> Tensor:
        """Actions [B, A] in the task's units from points in the unit box [B, A]."""
        scaled = self.action_low + unit * (self.action_high - self.action_low)
        return scaled.clamp(self.action_low, self.action_high)

    def observe_rewards(self, rewards: np.ndarray) -> None:
        """Add rewards [B] to the running mean and standard deviation (parallel update of Chan et al.)."""
        count = self.reward_count + len(rewards)
        delta = float(rewards.mean()) - self.reward_mean
        self.reward_square += float(rewards.var()) * len(rewards) + delta**2 * self.reward_count * len(rewards) / count
        self.reward_mean += delta * len(rewards) / count
        self.reward_count.copy_(count)

    def forget_rewards(self) -> None:
        """Restart the running reward statistics, such as when training continues with other outcomes."""
        for moment in (self.reward_count, self.reward_mean, self.reward_square):
            moment.zero_()

    def noise(self, batch_size: int) -> Noise:
        """Memory for the random numbers of an update of that many transitions."""
        actions = torch.empty((2, batch_size, self.num_actions), device=self.device)
        latents = torch.empty((2, batch_size, self.latent_size), device=self.device) if self.latent_noise else None
        return Noise(actions, latents)

    def update(
        self, batch: Transitions, weights: Tensor, *, generator: torch.Generator
    ) -> tuple[np.ndarray, dict[str, float]]:
        """One step of critic, actor and temperature; returns |TD| [B] and the losses. VtpError if one is not finite.

        weights: [B] loss weights with mean about 1.
        """
        td_error, losses = self.learn(batch, weights, self.noise(len(weights)).draw(generator))
        values = {name: float(value) for name, value in losses.items()}
        check_losses(values)
        return td_error.cpu().numpy(), values

    def learn(self, batch: Transitions, weights: Tensor, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """`update` as operations on tensors only, none of which waits for its result.

        Observations are encoded once, and only the critic and auxiliary losses train the encoder.
        """
        std = (self.reward_square / self.reward_count.clamp(min=1)).sqrt().clamp(min=1e-6)
        rewards = ((batch.rewards - self.reward_mean) / std).float()
        with self._precision():
            latents = self.encoder(batch.observations).float()
            with torch.no_grad():
                next_latents = self.encoder(batch.next_observations).float()
        if noise.latents is not None:
            latents, next_latents = (
                z + self.latent_noise * each for z, each in zip((latents, next_latents), noise.latents, strict=True)
            )
        actions = (batch.actions - self.action_low) / (self.action_high - self.action_low)
        encoded = LatentTransitions(latents, actions, rewards, batch.masks, next_latents)
        actor = functools.partial(self.actor.fused, dtype=self._dtype)
        critic = functools.partial(self.critic.fused, dtype=self._dtype)
        target_critic = functools.partial(self.target_critic.fused, dtype=self._dtype)
        alpha = self.log_alpha.detach().exp()

        with torch.no_grad():
            target = td_target(encoded, actor, target_critic, alpha=alpha, gamma=self.gamma, noise=noise.actions[1])
        loss, info = critic_loss(critic, encoded, target, weights)
        td_error = info.pop("td_error")
        if self.auxiliary is not None:
            with self._precision():
                auxiliary_loss, auxiliary_info = self.auxiliary(latents, actions, next_latents)
            loss = loss + auxiliary_loss
            info |= auxiliary_info
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_optimizer.step()

        self.critic.requires_grad_(False)
        loss, actor_info = actor_loss(actor, critic, latents.detach(), alpha=alpha, noise=noise.actions[0])
        alpha_loss, alpha_info = temperature_loss(self.log_alpha, actor_info["entropy"], self.target_entropy)
        self.actor_optimizer.zero_grad(set_to_none=True)
        (loss + alpha_loss).backward()
        self.actor_optimizer.step()
        self.critic.requires_grad_(True)

        with torch.no_grad():
            torch._foreach_lerp_(*self._averages, self.tau)
        return td_error, info | actor_info | alpha_info

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Of encoder and auxiliary heads in updates."""
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._dtype)

    def training_state(self) -> dict[str, Any]:
        """The state needed besides `state_dict` to continue training: the optimisers."""
        return {name: getattr(self, name).state_dict() for name in self._OPTIMIZERS}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the optimisers, from any device; learning rates follow from `anneal`."""
        moments = {name: state[name]["state"] for name in self._OPTIMIZERS}
        of_temperature = state.get("alpha_optimizer", {"state": {}})["state"]  # its own in earlier versions
        for moment in of_temperature.values():
            moments["actor_optimizer"] |= {len(list(self.actor.parameters())): moment}
        for name in self._OPTIMIZERS:
            optimizer = getattr(self, name)
            of_this_device = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments[name], "param_groups": of_this_device})


def check_losses(losses: Mapping[str, float]) -> None:
    """VtpError if a loss is not finite."""
    if not all(math.isfinite(value) for value in losses.values()):
        raise VtpError(
            f"a loss is not finite ({dict(losses)}); lower --lr, or check the inputs for NaN", code="loss-not-finite"
        )


def _rounded(bounds: ArrayLike, *, up: bool) -> Tensor:
    """Bounds [A] in float32, never beyond the exact ones: 0.3 in float32 is more than 0.3."""
    exact = np.asarray(bounds, float)
    nearest = exact.astype(np.float32)
    is_beyond = nearest < exact if up else nearest > exact
    return torch.from_numpy(np.where(is_beyond, np.nextafter(nearest, np.float32(np.inf if up else -np.inf)), nearest))
