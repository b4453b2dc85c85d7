"""Environments: observations are simulator states or clip embeddings, actions a task's, rewards economic.

`SimEnv` and `EmbeddingEnv` run many episodes in parallel for training; `GymEnv` wraps a single one in Gymnasium's
interface. Time limits truncate; nothing terminates.
"""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np

from pipeline import econ
from pipeline.errors import VtpError
from pipeline.outcomes import OutcomeModel, Outcomes, SimulatedOutcomes, step_value, step_worth
from pipeline.tasks import EPISODE_STEPS, SECONDS_PER_HOUR, Worth, worth

ROUNDING = float(np.finfo(np.float32).eps)  # relative: an action's bounds in float32 may differ from the task's


class Workplace:
    """Sample outcomes, tally them and compute rewards for N parallel episodes.

    The training loop sets `lambda_dual` by dual ascent and `err_target` by the curriculum.
    """

    _TALLY = ("steps", "hours", "attempts", "errors", "value_usd")
    _STATE = ("lambda_dual", "err_target", *_TALLY)

    def __init__(self, model: OutcomeModel, num_envs: int, *, reward_window: str, rng: np.random.Generator):
        self.model = model
        self.reward_window = reward_window
        self.rng = rng
        self.lambda_dual = 0.0
        self.err_target = model.task.error_target.at(0)
        self.steps = np.zeros(num_envs, np.int64)
        self.hours, self.attempts, self.errors, self.value_usd = np.zeros((4, num_envs))
        self.outcomes = Outcomes(np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64))  # of the last step

    def state_dict(self) -> dict[str, Any]:
        """The complete state, including the random generator, as arrays and plain values."""
        return {name: getattr(self, name) for name in self._STATE} | {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._STATE:
            setattr(self, name, state[name])
        self.rng.bit_generator.state = state["rng"]

    def begin(self, envs: np.ndarray) -> None:
        """Start new episodes in `envs`, a boolean mask [N]."""
        for name in self._TALLY:
            getattr(self, name)[envs] = 0

    def worth(self) -> Worth:
        """Worth of the episodes to date, [N]; before the first step, only the hourly costs."""
        per_hour = econ.ratio(np.ones_like(self.hours), self.hours)
        costs = self.model.task.total_costs_usd_per_hour
        return worth(self.attempts, self.errors, self.value_usd, per_hour, costs_usd_per_hour=costs)

    def work(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """One step in each environment: rows [N] of the outcome model, actions [N, A] → rewards [N].

        With reward_window `step`, the reward uses the rates of this step; with `episode`, those of the episode to date.
        If the model is an estimate, a step's rates are the expected ones, because sampling would only add noise.
        """
        model, task = self.model, self.model.task
        actions = self._within_bounds(actions)
        self.outcomes = model.sample(rows, actions, self.rng)
        self.steps += 1
        self.hours += model.terms(rows).step_s / SECONDS_PER_HOUR
        self.attempts += self.outcomes.attempts
        self.errors += self.outcomes.errors
        self.value_usd += step_value(model, rows, self.outcomes)
        if self.reward_window == "episode":
            found = self.worth()
        else:
            outcomes = model.expected(rows, actions) if model.is_estimate else self.outcomes
            found = step_worth(model, rows, outcomes)
        return econ.lagrangian_reward(
            found.profit - model.penalty(rows, actions),
            found.err_rate,
            human_wage_usd=task.human_wage_usd,
            lambda_dual=self.lambda_dual,
            err_target=self.err_target,
        )

    def _within_bounds(self, actions: np.ndarray) -> np.ndarray:
        """The actions, clipped to the task's bounds; VtpError if one exceeds them by more than rounding."""
        task = self.model.task
        slack = ROUNDING * np.maximum(np.abs(task.low), np.abs(task.high))
        wrong = ~((actions >= task.low - slack) & (actions <= task.high + slack))  # NaN is wrong too
        if wrong.any():
            env, index = np.argwhere(wrong)[0]
            raise VtpError(
                f"action {task.action_names[index]} {actions[env, index]:g} is outside "
                f"[{task.low[index]:g}, {task.high[index]:g}]; give actions in the task's units",
                code="action-out-of-bounds",
            )
        return np.clip(actions, task.low, task.high)


class VectorEnv(Protocol):
    """The training loop's interface to an environment of N episodes; observations are [N, ...]."""

    workplace: Workplace

    def reset(self, envs: np.ndarray | None = None) -> np.ndarray:
        """Start new episodes in `envs` (a boolean mask [N]; default all) and return all current observations."""

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (next observations, rewards [N], truncated [N]); the caller resets truncated episodes."""

    def state_dict(self) -> dict[str, Any]:
        """Positions of the episodes; the workplace has its own state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the positions of the episodes."""


class SimEnv:
    """The simulator itself: observations [N, 4] float32 are progress, context, attempts to date and errors to date.

    Each is in [0, 1]: step / 60; context index / (K − 1); attempts per step / twice the highest rate of any context;
    errors / attempts.
    """

    OBSERVATION_SIZE = 4

    def __init__(
        self, model: SimulatedOutcomes, num_envs: int, *, reward_window: str = "step", rng: np.random.Generator
    ):
        self.workplace = Workplace(model, num_envs, reward_window=reward_window, rng=rng)
        self.model = model
        self.context = np.zeros(num_envs, np.int64)

    def reset(self, envs: np.ndarray | None = None) -> np.ndarray:
        envs = np.ones(len(self.context), bool) if envs is None else envs
        self.workplace.begin(envs)
        self.context = np.where(envs, self.model.initial_rows(len(envs), self.workplace.rng), self.context)
        return self._observations()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards = self.workplace.work(self.context, actions)
        self.context = self.model.next_rows(self.context, self.workplace.rng)
        return self._observations(), rewards, self.workplace.steps >= EPISODE_STEPS

    def state_dict(self) -> dict[str, Any]:
        return {"context": self.context}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.context = state["context"]

    def _observations(self) -> np.ndarray:
        work = self.workplace
        columns = (
            work.steps / EPISODE_STEPS,
            self.context / max(len(self.model.context) - 1, 1),
            np.minimum(work.attempts / np.maximum(work.steps, 1) / (2 * self.model.fastest), 1),
            econ.error_rate(work.errors, work.attempts),
        )
        return np.stack(columns, 1).astype(np.float32)


class EmbeddingEnv:
    """Stored clips of demonstration videos: observations [N] int64 are rows of the embedding array.

    An episode plays one video's clips in order, from a random start if it has more than 60. Outcomes come from the
    outcome model, whose rows are those clips. After a video's last clip, the next observation is that clip again.

    videos: row ranges [start, end) of the videos to play, [V, 2].
    """

    def __init__(
        self,
        model: OutcomeModel,
        num_envs: int,
        *,
        videos: np.ndarray,
        reward_window: str = "step",
        rng: np.random.Generator,
    ):
        if len(videos) == 0 or (videos[:, 1] <= videos[:, 0]).any():
            raise VtpError("there are no clips to play; extract at least one video with a clip", code="no-clips")
        self.workplace = Workplace(model, num_envs, reward_window=reward_window, rng=rng)
        self.videos = videos
        self.row = np.zeros(num_envs, np.int64)
        self.end = np.ones(num_envs, np.int64)

    def reset(self, envs: np.ndarray | None = None) -> np.ndarray:
        rng = self.workplace.rng
        envs = np.ones(len(self.row), bool) if envs is None else envs
        self.workplace.begin(envs)
        start, end = self.videos[rng.integers(len(self.videos), size=len(envs))].T
        start = start + rng.integers(np.maximum(end - start - EPISODE_STEPS, 0) + 1)
        end = np.minimum(end, start + EPISODE_STEPS)
        self.row, self.end = np.where(envs, start, self.row), np.where(envs, end, self.end)
        return self.row.copy()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards = self.workplace.work(self.row, actions)
        truncated = self.row + 1 >= self.end
        self.row = np.minimum(self.row + 1, self.end - 1)
        return self.row.copy(), rewards, truncated

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "end": self.end}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.row, self.end = state["row"], state["end"]


class GymEnv(gymnasium.Env):
    """One episode of a `SimEnv` or an `EmbeddingEnv` (built with num_envs=1) as a Gymnasium environment.

    embeddings: [rows, 128] for an `EmbeddingEnv`, whose observations are rows of it.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, env: SimEnv | EmbeddingEnv, embeddings: np.ndarray | None = None):
        self._env, self._embeddings = env, embeddings
        if embeddings is None:
            self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (SimEnv.OBSERVATION_SIZE,), np.float32)
        else:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, embeddings.shape[1:], np.float32)
        task = env.workplace.model.task
        low, high = task.low.astype(np.float32), task.high.astype(np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._env.workplace.rng = self.np_random
        return self._observation(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observations, rewards, truncated = self._env.step(np.asarray(action)[None])
        work = self._env.workplace
        info = {"attempts": float(work.attempts.sum()), "errors": float(work.errors.sum())}
        return self._observation(observations), float(rewards[0]), False, bool(truncated[0]), info

    def _observation(self, observations: np.ndarray) -> np.ndarray:
        # A copy, so that writing to an observation does not change the table.
        return observations[0] if self._embeddings is None else self._embeddings[observations[0]].copy()
