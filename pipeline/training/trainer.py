"""The state of the training loop, which advances all environments by one step: act, step, insert, update."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline import econ, encoders, runs
from pipeline.config import TrainConfig, VideoTrainConfig
from pipeline.rl.networks import STRETCH
from pipeline.rl.replay import Batch, ReplayBuffer
from pipeline.rl.sac import Agent, Transitions
from pipeline.tasks import EPISODE_STEPS, Worth
from pipeline.training.record import LOSSES
from pipeline.training.revenue_split import RevenueSplit
from pipeline.training.sources import Source


class Trainer:
    """A run in progress. From the same `state_dict` it continues identically, bit for bit, on one machine."""

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
        self._generator = torch.Generator().manual_seed(cfg.seed)
        self.agent = _new_agent(cfg, source, progress)
        self._observations = source.env.reset()
        self._buffer = ReplayBuffer(
            cfg.buffer_size, self._observations.shape[1:], self._observations.dtype,
            num_actions=self._task.num_actions, priority_exponent=cfg.priority_exponent,
        )  # fmt: skip
        if source.plan is not None and source.plan.transitions is not None:
            self._remember(source.plan.transitions)
        self.revenue_split = RevenueSplit(self._task)
        self._sums = EpisodeSums(cfg.num_envs, self._task.action_names)
        self._losses: dict[str, list[float]] = defaultdict(list)  # of updates since the last episode ended
        self._mean_losses = dict.fromkeys(LOSSES, 0.0)
        self.episode, self._updates_due = 0, 0.0
        self._unfreeze_if_due()

    @property
    def is_learning(self) -> bool:
        return self._buffer.size >= self.cfg.warmup_steps

    def step(self) -> list[dict[str, float]]:
        """Do one step of all environments and the updates due; returns the rows of episodes that ended."""
        cfg, env, observations = self.cfg, self.source.env, self._observations
        actions = self._act(observations)
        next_observations, rewards, truncated = env.step(actions)
        novelty = np.ones(cfg.num_envs) if self.source.novelty is None else self.source.novelty[observations]
        masks = np.ones(cfg.num_envs)  # a time limit is not terminal: the critic bootstraps through it
        self.steps += 1
        self._buffer.add(Batch(observations, actions, rewards, masks, next_observations), novelty)
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
        self._buffer.add(logged, weights)
        self.agent.observe_rewards(logged.rewards)

    def _act(self, observations: np.ndarray) -> np.ndarray:
        num_envs = self.cfg.num_envs
        if not self.is_learning and self.cfg.init is None:
            return self._random_actions(num_envs)
        actions = self.agent.act(self.source.look_up(observations), generator=self._generator)
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
            batch, slots, importance, novelty = self._buffer.sample(cfg.batch_size, self._rng)
            weights = importance * novelty
            td_error, info = self.agent.update(
                self._transitions(batch), torch.from_numpy(weights), generator=self._generator
            )
            self._buffer.update_priorities(slots, td_error)
            for name, value in (info | {"mean_weight": float(weights.mean())}).items():
                self._losses[name].append(value)

    def _transitions(self, batch: Batch) -> Transitions:
        return Transitions(
            self.source.look_up(batch.observations),
            torch.from_numpy(batch.actions),
            torch.from_numpy(batch.rewards),
            torch.from_numpy(batch.masks),
            self.source.look_up(batch.next_observations),
        )

    def _close(self, truncated: np.ndarray) -> list[dict[str, float]]:
        """The rows of episodes that ended, up to `cfg.episodes`; updates λ and the error target."""
        work = self.source.env.workplace
        earned = work.worth()
        self._mean_losses |= {name: float(np.mean(self._losses[name])) for name in LOSSES if self._losses[name]}
        self._losses.clear()
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
                "buffer_size": self._buffer.size,
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

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, because checkpoints are read without running code."""
        arrays = {
            "env": self.source.env.state_dict(),
            "workplace": self.source.env.workplace.state_dict(),
            "observations": self._observations,
            "buffer": self._buffer.state_dict(),
            "revenue_split": self.revenue_split.state_dict(),
            "sums": self._sums.totals,
            "losses": dict(self._losses),
            "mean_losses": self._mean_losses,
            "updates_due": self._updates_due,
            "steps": self.steps,
            "rng": self._rng.bit_generator.state,
        }
        return {
            "arrays": _pack(arrays),
            "generator": self._generator.get_state(),
            "optimizers": self.agent.training_state(),
        }

    def load_state_dict(self, state: dict[str, Any], agent: dict[str, Any], episode: int) -> None:
        arrays = _unpack(state["arrays"])
        self.agent.load_state_dict(agent)
        self.agent.load_training_state(state["optimizers"])
        self._generator.set_state(state["generator"])
        self.source.env.load_state_dict(arrays["env"])
        self.source.env.workplace.load_state_dict(arrays["workplace"])
        self._observations = arrays["observations"]
        self._buffer.load_state_dict(arrays["buffer"])
        self.revenue_split.load_state_dict(arrays["revenue_split"])
        self._sums.totals = arrays["sums"]
        self._losses = defaultdict(list, arrays["losses"])
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
            gamma=cfg.gamma, tau=cfg.tau, latent_noise=cfg.observation_noise, bf16=encoders.computes_in_bf16(),
        )  # fmt: skip
    if source.initial is not None:
        agent.load_state_dict(source.initial.state_dict())
        agent.forget_rewards()  # their scale is that of the other run
    encoder = agent.encoder
    if source.clips is not None:
        assert isinstance(encoder, encoders.ClipEncoder)
        source.clips.prepare(encoder, progress)
    if cfg.init is None and source.train_rows is not None:
        if isinstance(encoder, encoders.ClipEncoder):
            encoder.fit(source.look_up(source.train_rows).numpy())
        else:
            assert isinstance(encoder, encoders.Normalizer) and source.table is not None
            encoder.fit(source.table.numpy(), source.train_rows)
    return agent


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
