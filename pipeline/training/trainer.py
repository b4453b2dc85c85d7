"""The state of the training loop, which advances all environments by one step: act, step, insert, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline import econ, encoders, runs
from pipeline.config import TrainConfig, VideoTrainConfig
from pipeline.rl.networks import STRETCH
from pipeline.rl.replay import Batch
from pipeline.rl.sac import Agent
from pipeline.tasks import EPISODE_STEPS, Worth
from pipeline.training.learner import learner_of
from pipeline.training.record import LOSSES
from pipeline.training.revenue_split import RevenueSplit
from pipeline.training.sources import Source, updates_in_bf16


class Trainer:
    """A run in progress. From the same `state_dict` it continues identically, bit for bit, on one machine's device."""

    def __init__(
        self,
        cfg: TrainConfig,
        source: Source,
        *,
        rng: np.random.Generator,
        progress: Callable[[int, int, str], None] = lambda done, total, text: None,
        num_steps: int | None = None,
    ):
        """progress: told of slow preparations before training.

        num_steps: steps of each environment until annealing ends; by default annealing follows the episodes.
        """
        self.cfg, self.source = cfg, source
        self._task = source.model.task
        self._num_steps, self.steps = num_steps, 0
        self._rng = rng
        self._generator = torch.Generator(source.device).manual_seed(cfg.seed)
        self.agent = _new_agent(cfg, source, progress)
        self._observations = source.env.reset()
        self.learner = learner_of(cfg, self.agent, source, self._observations, rng=rng, generator=self._generator)
        if source.plan is not None and source.plan.transitions is not None:
            self._remember(source.plan.transitions)
        self.revenue_split = RevenueSplit(self._task)
        self._sums = EpisodeSums(cfg.num_envs, self._task.action_names)
        self._mean_losses = dict.fromkeys(LOSSES, 0.0)
        self.episode, self._updates_due = 0, 0.0
        self._unfreeze_if_due()

    @property
    def is_learning(self) -> bool:
        return self.learner.replay.size >= self.cfg.warmup_steps

    def step(self) -> list[dict[str, float]]:
        """Do one step of all environments and the updates due; returns the rows of episodes that ended."""
        cfg, env, observations = self.cfg, self.source.env, self._observations
        actions = self._act(observations)
        next_observations, rewards, truncated = env.step(actions)
        novelty = np.ones(cfg.num_envs) if self.source.novelty is None else self.source.novelty[observations]
        masks = np.ones(cfg.num_envs)  # a time limit is not terminal: the critic bootstraps through it
        self.steps += 1
        self.learner.replay.add(Batch(observations, actions, rewards, masks, next_observations), novelty)
        self.agent.observe_rewards(rewards)
        self._sums.add(rewards, actions, novelty)
        self._update()
        rows = self._close(truncated) if truncated.any() else []
        self._observations = env.reset(truncated) if truncated.any() else next_observations
        return rows

    def _remember(self, logged: Batch) -> None:
        """Put logged transitions into replay; if there are too many, the last ones."""
        logged = Batch(*(column[-self.cfg.buffer_size :] for column in logged))
        novelty = self.source.novelty
        weights = np.ones(len(logged.rewards)) if novelty is None else novelty[logged.observations]
        self.learner.replay.add(logged, weights)
        self.agent.observe_rewards(logged.rewards)

    def _act(self, observations: np.ndarray) -> np.ndarray:
        num_envs = self.cfg.num_envs
        if not self.is_learning and self.cfg.init is None:
            return self._random_actions(num_envs)
        actions = self.agent.act(self.source.look_up(observations), generator=self._generator)
        if not np.isfinite(actions).all():
            self.learner.losses()  # says which, if a loss was not finite either
        at_random = self._rng.random(num_envs) < self.cfg.random_actions  # keeps the critic trained on the whole range
        actions[at_random] = self._random_actions(int(at_random.sum()))
        return actions

    def _random_actions(self, count: int) -> np.ndarray:
        """Uniform over a stretched range, then clipped: one in twelve is at each bound, where the optimum often is."""
        unit = STRETCH * (self._rng.random((count, self._task.num_actions), np.float32) - 0.5) + 0.5
        return self._task.from_unit(unit.clip(0, 1)).astype(np.float32)

    def _update(self) -> None:
        cfg = self.cfg
        if self.is_learning:
            self._updates_due += cfg.updates_per_episode * cfg.num_envs / EPISODE_STEPS
        progress = self.episode / cfg.episodes if self._num_steps is None else self.steps / self._num_steps
        if cfg.init is not None:  # a trained policy does not start at high entropy again
            progress = 0.5 + 0.5 * progress
        self.agent.anneal(progress, final_entropy=cfg.final_entropy)
        while self._updates_due >= 1:
            self._updates_due -= 1
            self.learner.update()

    def _close(self, truncated: np.ndarray) -> list[dict[str, float]]:
        """The rows of episodes that ended, up to `cfg.episodes`; updates λ and the error target."""
        work = self.source.env.workplace
        earned = work.worth()
        losses = self.learner.losses()
        self._mean_losses |= {name: float(np.mean(losses[name])) for name in LOSSES if losses.get(name)}
        self.learner.forget_losses()
        rows = []
        for i in np.flatnonzero(truncated)[: self.cfg.episodes - self.episode]:
            self.episode += 1
            row = {
                "episode": self.episode,
                "completed": work.attempts[i] - work.errors[i],
                "attempts": work.attempts[i],
                "errors": work.errors[i],
                "err_target": self._task.error_target.at(self.episode - 1),
                "lambda_dual": work.lambda_dual,
                "buffer_size": self.learner.replay.size,
                **self._mean_losses,
                **self._sums.means(i),
            }
            of_episode = Worth(*(field[i] for field in earned))
            row |= self.revenue_split.close(float(work.hours[i]), of_episode, row["mean_novelty"])
            work.lambda_dual = float(
                econ.dual_ascent(
                    work.lambda_dual, row["err_rate"], err_target=row["err_target"], dual_lr=self.cfg.dual_lr
                )
            )
            work.err_target = self._task.error_target.at(self.episode)
            rows.append(row)
        self._sums.clear(truncated)
        self._unfreeze_if_due()
        return rows

    def _unfreeze_if_due(self) -> None:
        """Once fine-tuning starts, the agent observes clips, so that its losses reach the encoder layers that learn."""
        if self.source.clips is not None and isinstance(self.cfg, VideoTrainConfig):
            self.source.clips.is_frozen = self.episode < self.cfg.frozen_episodes

    def policy_state(self) -> dict[str, torch.Tensor]:
        """The agent's state, as tensors that load on any machine."""
        return on_cpu(self.agent.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, because checkpoints are read without running code."""
        arrays = {
            "env": self.source.env.state_dict(),
            "workplace": self.source.env.workplace.state_dict(),
            "observations": self._observations,
            "buffer": self.learner.replay.state_dict(),
            "revenue_split": self.revenue_split.state_dict(),
            "sums": self._sums.totals,
            "losses": self.learner.losses(),
            "mean_losses": self._mean_losses,
            "updates_due": self._updates_due,
            "steps": self.steps,
            "rng": self._rng.bit_generator.state,
        }
        return {
            "arrays": _pack(arrays),
            "generator": self._generator.get_state(),
            "device": self.source.device.type,
            "optimizers": on_cpu(self.agent.training_state()),
        }

    def load_state_dict(self, state: dict[str, Any], agent: dict[str, Any], episode: int) -> None:
        arrays = _unpack(state["arrays"])
        self.agent.load_state_dict(agent)
        self.agent.load_training_state(state["optimizers"])
        if state.get("device", "cpu") == self.source.device.type:
            self._generator.set_state(state["generator"])
        else:  # the states of two kinds of devices have nothing in common
            self._generator.manual_seed(self.cfg.seed + episode + 1)
        self.source.env.load_state_dict(arrays["env"])
        self.source.env.workplace.load_state_dict(arrays["workplace"])
        self._observations = arrays["observations"]
        self.learner.replay.load_state_dict(arrays["buffer"])
        self.revenue_split.load_state_dict(arrays["revenue_split"])
        self._sums.totals = arrays["sums"]
        self.learner.forget_losses(arrays["losses"])
        self._mean_losses, self._updates_due = arrays["mean_losses"], arrays["updates_due"]
        self.steps = arrays["steps"]
        self._rng.bit_generator.state = arrays["rng"]
        self.episode = episode
        self._unfreeze_if_due()


class EpisodeSums:
    """Sums over the current episode in each of N environments."""

    def __init__(self, num_envs: int, action_names: tuple[str, ...]):
        self._names = action_names
        self.totals = np.zeros((num_envs, 3 + len(action_names)))

    def add(self, rewards: np.ndarray, actions: np.ndarray, novelty: np.ndarray) -> None:
        """rewards [N], actions [N, A], novelty [N] of one step."""
        self.totals += np.column_stack([np.ones(len(rewards)), rewards, novelty, actions])

    def means(self, env: int) -> dict[str, float]:
        steps, reward, novelty, *actions = self.totals[env]
        means = {f"mean_{name}": total / steps for name, total in zip(self._names, actions, strict=True)}
        return {"episode_reward": reward, "episode_steps": int(steps), "mean_novelty": novelty / steps} | means

    def clear(self, envs: np.ndarray) -> None:
        self.totals[envs] = 0


def _new_agent(cfg: TrainConfig, source: Source, progress: Callable[[int, int, str], None]) -> Agent:
    """The initial agent: untrained, or the best policy of another run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        agent = runs.agent_of(
            source.metadata, lr=cfg.lr, encoder_lr=cfg.encoder_lr if isinstance(cfg, VideoTrainConfig) else None,
            gamma=cfg.gamma, tau=cfg.tau, latent_noise=cfg.observation_noise,
            bf16=updates_in_bf16(cfg, source.device),
        ).to(source.device)  # fmt: skip
    if source.initial is not None:
        agent.load_state_dict(source.initial.state_dict())
        agent.forget_rewards()  # their scale is that of the other run
    encoder = agent.encoder
    if source.clips is not None:
        assert isinstance(encoder, encoders.ClipEncoder)
        source.clips.prepare(encoder, progress)
    if cfg.init is None and source.train_rows is not None:
        if isinstance(encoder, encoders.ClipEncoder):
            encoder.fit(source.look_up(source.train_rows).cpu().numpy())
        else:
            assert isinstance(encoder, encoders.Normalizer) and source.embeddings is not None
            encoder.fit(source.embeddings, source.train_rows)
    return agent


def on_cpu(tree: Any) -> Any:
    """The same nested dictionaries and lists, with all tensors in the host's memory."""
    if isinstance(tree, dict):
        return {key: on_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [on_cpu(value) for value in tree]
    return tree.cpu() if isinstance(tree, torch.Tensor) else tree


def _pack(tree: Any) -> Any:
    """Turn arrays into tensors and numpy scalars into plain ones; `_unpack` turns tensors back."""
    if isinstance(tree, dict):
        return {key: _pack(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_pack(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree)
    return tree.item() if isinstance(tree, np.generic) else tree


def _unpack(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _unpack(value) for key, value in tree.items()}
    return tree.numpy() if isinstance(tree, torch.Tensor) else tree
