"""Behaviour cloning: an agent that acts as the logging policy does on average."""

from __future__ import annotations

import torch

from pipeline.rl.networks import sample_action
from pipeline.rl.sac import Agent

UPDATES, BATCH_SIZE, LEARNING_RATE = 1500, 256, 1e-3


def clone(agent: Agent, latents: torch.Tensor, actions: torch.Tensor, *, noise: float, seed: int) -> None:
    """Train the agent's deterministic policy to choose the logged actions [n, A] on encoded observations [n, Z].

    By squared error in the unit box, so it learns the mean action. noise: standard deviation of Gaussian noise added to
    the latents, so that it generalises to similar clips.
    """
    device = agent.device
    generator = torch.Generator(device).manual_seed(seed)
    latents, actions = latents.to(device), actions.to(device)
    unit = (actions - agent.action_low) / (agent.action_high - agent.action_low)
    optimizer = torch.optim.Adam(agent.actor.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, UPDATES)
    for _ in range(UPDATES):
        drawn = torch.randint(len(latents), (BATCH_SIZE,), generator=generator, device=device)
        seen = latents[drawn]
        seen = seen + noise * torch.randn(seen.shape, generator=generator, device=device)
        mean, log_std = agent.actor(seen)
        loss = (sample_action(mean, log_std, torch.zeros_like(mean))[0] - unit[drawn]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    agent.average_actor.load_state_dict(agent.actor.state_dict())
