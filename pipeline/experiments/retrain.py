"""A run's policy trained on in a changed world, and judged on what its training never saw.

Retraining goes on from the run's policy rather than from scratch, with fresh optimisers, an empty replay buffer and
the second half of training's annealing: what it learned to see stays true when prices change. As in training, it
meets sampled outcomes only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline import encoders, evaluate
from pipeline.config import TrainConfig
from pipeline.errors import VtpError
from pipeline.rl.envs import EmbeddingEnv, SimEnv, VectorEnv
from pipeline.rl.replay import Batch, ReplayBuffer
from pipeline.rl.sac import Agent, Transitions
from pipeline.synthetic import dynamics

NUM_ENVS = 256
UPDATES_PER_STEP = 4  # of all environments: what training does by default
WARMUP_STEPS = 8  # of all environments, before the first update


class Retrainer:
    """A run's policy with what it observes: the embeddings that it was trained on, or the simulator's state."""

    def __init__(self, run: Path):
        self._agent, meta = evaluate.load_run(run)
        self._source, self._defaults = meta["source"], TrainConfig(source=meta["source"])
        if self._source == "video":
            raise VtpError(f"{run} was trained on video, which --retrain does not read again; drop --retrain")
        self.held_out = "the simulator, from its state"
        if self._source == "embeddings":
            data = evaluate.load_embeddings(meta)
            self._context = evaluate.outcome_model(data).context
            self._videos, self._held_rows, self.held_out = evaluate.split_rows(data)
            self._embeddings = evaluate.observed(data, meta.get("centre"))
            self._video = evaluate.video_of(data, self._held_rows)

    def retrain(self, scenario: dynamics.Scenario, *, updates: int, lambda_dual: float = 0.0, seed: int) -> Agent:
        """Train on in `scenario`, where a unit of error rate costs `lambda_dual` human wages an hour."""
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        cfg = self._defaults
        agent = evaluate.build_agent(
            self._source, gamma=cfg.gamma, latent_noise=cfg.observation_noise, bf16=encoders.computes_in_bf16()
        )
        agent.load_state_dict(self._agent.state_dict())
        agent.forget_rewards()
        env = self._environment(scenario, rng)
        env.workplace.lambda_dual = lambda_dual
        observations = env.reset()
        steps = WARMUP_STEPS + -(-updates // UPDATES_PER_STEP)
        buffer = ReplayBuffer(NUM_ENVS * steps, observations.shape[1:], observations.dtype, priority_exponent=0.0)
        for step in range(steps):
            actions = agent.act(self._look_up(observations), generator=generator)
            at_random = rng.random(NUM_ENVS) < cfg.random_actions
            actions[at_random] = rng.random((at_random.sum(), 2), np.float32)
            next_observations, rewards, truncated = env.step(actions)
            ones = np.ones(NUM_ENVS)
            buffer.add(Batch(observations, actions, rewards, ones, next_observations), ones)
            agent.observe_rewards(rewards)
            agent.anneal(0.5 + 0.5 * step / steps, final_entropy=cfg.final_entropy)
            for _ in range(UPDATES_PER_STEP if step >= WARMUP_STEPS else 0):
                batch, _, weights, _ = buffer.sample(cfg.batch_size, rng)
                agent.update(self._transitions(batch), torch.from_numpy(weights), generator=generator)
            observations = env.reset(truncated) if truncated.any() else next_observations
        return agent

    def judge(self, scenario: dynamics.Scenario, agent: Agent | None = None) -> pd.DataFrame:
        """Validation steps of a policy, the run's own by default; an episode is a held-out video, or one simulated."""
        agent, rng = agent or self._agent, np.random.default_rng(0)
        if self._source == "sim":
            return evaluate.in_simulator(
                agent, scenario, episodes=evaluate.SIM_EPISODES, steps=dynamics.EPISODE_STEPS, rng=rng
            )
        rows = self._held_rows
        return evaluate.on_clips(
            agent, scenario, self._embeddings[rows], self._context[rows], video=self._video, rng=rng
        )

    def _environment(self, scenario: dynamics.Scenario, rng: np.random.Generator) -> VectorEnv:
        if self._source == "sim":
            return SimEnv(scenario, NUM_ENVS, rng=rng)
        return EmbeddingEnv(scenario, NUM_ENVS, videos=self._videos, context=self._context, rng=rng)

    def _look_up(self, observations: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(observations if self._source == "sim" else self._embeddings[observations])

    def _transitions(self, batch: Batch) -> Transitions:
        return Transitions(
            self._look_up(batch.observations), torch.from_numpy(batch.actions), torch.from_numpy(batch.rewards),
            torch.from_numpy(batch.masks), self._look_up(batch.next_observations),
        )  # fmt: skip
