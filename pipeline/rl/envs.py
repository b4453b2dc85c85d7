"""Environments: simulator states or clip embeddings to observe, speed and care to choose, an economic reward.

`SimEnv` and `EmbeddingEnv` run many episodes side by side for training; `GymEnv` shows one of them through
Gymnasium's interface. Time limits truncate; nothing terminates.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np

from pipeline import econ
from pipeline.errors import VtpError
from pipeline.synthetic import dynamics


class Economics(NamedTuple):
    """What work was worth: each field an array over environments; rates an hour, money in US dollars an hour."""

    mp: np.ndarray
    err_rate: np.ndarray
    implied_wage: np.ndarray
    profit: np.ndarray


def value_work(scenario: dynamics.Scenario, attempts: np.ndarray, errors: np.ndarray, hours: np.ndarray) -> Economics:
    """Price work counted by context, attempts and errors [N, K] over hours [N]."""
    completed = attempts - errors
    implied_wage = econ.implied_wage(
        econ.marginal_product(completed, hours[:, None]),
        econ.error_rate(errors, attempts),
        scenario.table["price_usd"],
        scenario.table["damage_usd"],
    ).sum(1)
    return Economics(
        mp=econ.marginal_product(completed.sum(1), hours),
        err_rate=econ.error_rate(errors.sum(1), attempts.sum(1)),
        implied_wage=implied_wage,
        profit=econ.profit(implied_wage, scenario.energy_usd_per_hour),
    )


def expected_work(
    scenario: dynamics.Scenario, context: np.ndarray, speed: np.ndarray, care: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Analytic expectation for one action held in one context: (attempts an hour, err_rate, profit in $/h)."""
    rate, err_rate = dynamics.dynamics(scenario, context, speed, care)
    attempts_per_hour = dynamics.STEPS_PER_HOUR * dynamics.expected_attempts(rate)
    price, damage = scenario.table["price_usd"][context], scenario.table["damage_usd"][context]
    implied_wage = econ.implied_wage(attempts_per_hour * (1 - err_rate), err_rate, price, damage)
    return attempts_per_hour, err_rate, econ.profit(implied_wage, scenario.energy_usd_per_hour)


class Workplace:
    """Outcomes, the books and the reward of N episodes side by side.

    `lambda_dual` and `err_target` are set by the training loop as dual ascent and the curriculum move them.
    """

    _STATE = ("lambda_dual", "err_target", "steps", "attempts", "errors")

    def __init__(self, scenario: dynamics.Scenario, num_envs: int, *, reward_window: str, rng: np.random.Generator):
        self.scenario = scenario
        self.reward_window = reward_window
        self.rng = rng
        self.lambda_dual = 0.0
        self.err_target = econ.ERROR_TARGET_START
        self.steps = np.zeros(num_envs, np.int64)
        self.attempts = np.zeros((num_envs, len(scenario.contexts)))
        self.errors = np.zeros_like(self.attempts)
        self.outcomes = (
            np.zeros(num_envs, np.int64),
            np.zeros(num_envs, np.int64),
        )  # (attempts, errors) of the last step

    def state_dict(self) -> dict[str, Any]:
        """All that decides what comes next, the random generator included, as arrays and plain values."""
        return {name: getattr(self, name) for name in self._STATE} | {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._STATE:
            setattr(self, name, state[name])
        self.rng.bit_generator.state = state["rng"]

    def open_books(self, envs: np.ndarray) -> None:
        """Start new episodes in `envs`, a boolean mask [N]."""
        self.steps[envs] = 0
        self.attempts[envs] = 0
        self.errors[envs] = 0

    def economics(self) -> Economics:
        """The episodes to date."""
        return value_work(self.scenario, self.attempts, self.errors, self.steps / dynamics.STEPS_PER_HOUR)

    def work(self, context: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """One minute in each environment: context [N], actions [N, 2] → rewards [N].

        With reward_window `step`, each error costs its damage in full. The seed's product of completed units and error
        rate would, on the one or two attempts of a step, leave half the errors unpaid: its expectation there is
        (n−1) p (1−p) rather than n p (1−p).
        """
        if not (np.isfinite(actions).all() and (actions >= 0).all() and (actions <= 1).all()):
            raise VtpError(
                f"an action lies outside [0, 1]: {actions.min()}..{actions.max()}; scale speed and care to [0, 1]"
            )
        rate, p_err = dynamics.dynamics(self.scenario, context, actions[:, 0], actions[:, 1])
        attempts, errors = dynamics.sample_outcomes(rate, p_err, self.rng)
        self.outcomes = attempts, errors
        envs = np.arange(len(context))
        self.steps += 1
        self.attempts[envs, context] += attempts
        self.errors[envs, context] += errors
        if self.reward_window == "step":
            price, damage = self.scenario.table["price_usd"][context], self.scenario.table["damage_usd"][context]
            value_usd_per_hour = dynamics.STEPS_PER_HOUR * (price * (attempts - errors) - damage * errors)
            profit = econ.profit(value_usd_per_hour, self.scenario.energy_usd_per_hour)
            err_rate = econ.error_rate(errors, attempts)
        else:
            _, err_rate, _, profit = self.economics()
        return econ.lagrangian_reward(
            profit,
            err_rate,
            human_wage_usd=self.scenario.human_wage_usd,
            lambda_dual=self.lambda_dual,
            err_target=self.err_target,
        )


class VectorEnv(Protocol):
    """What the training loop asks of an environment of N episodes; observations are [N, ...]."""

    workplace: Workplace

    def reset(self, envs: np.ndarray | None = None) -> np.ndarray:
        """Start new episodes in `envs` (a boolean mask [N]; default all) and return all current observations."""

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(next observations, rewards [N], truncated [N]); the caller resets what was truncated."""

    def state_dict(self) -> dict[str, Any]:
        """Where the episodes are; the workplace has a state of its own."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the episodes where they were."""


class SimEnv:
    """The simulator itself: observations [N, 4] float32 are progress, context, attempts to date and errors to date.

    Each lies in [0, 1]: the step over 60; the context's index over K−1; attempts a step over twice the fastest
    context's rate; errors over attempts.
    """

    OBSERVATION_SIZE = 4

    def __init__(
        self, scenario: dynamics.Scenario, num_envs: int, *, reward_window: str = "step", rng: np.random.Generator
    ):
        self.workplace = Workplace(scenario, num_envs, reward_window=reward_window, rng=rng)
        self.context = np.zeros(num_envs, np.int64)

    def reset(self, envs: np.ndarray | None = None) -> np.ndarray:
        work = self.workplace
        envs = np.ones(len(self.context), bool) if envs is None else envs
        work.open_books(envs)
        self.context = np.where(envs, dynamics.initial_context(work.scenario, len(envs), work.rng), self.context)
        return self._observations()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        work = self.workplace
        rewards = work.work(self.context, actions)
        self.context = dynamics.next_context(work.scenario, self.context, work.rng)
        return self._observations(), rewards, work.steps >= dynamics.EPISODE_STEPS

    def state_dict(self) -> dict[str, Any]:
        return {"context": self.context}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.context = state["context"]

    def _observations(self) -> np.ndarray:
        work = self.workplace
        attempts = work.attempts.sum(1)
        fastest = work.scenario.table["base_rate"].max()
        columns = (
            work.steps / dynamics.EPISODE_STEPS,
            self.context / max(len(work.scenario.contexts) - 1, 1),
            np.minimum(attempts / np.maximum(work.steps, 1) / (2 * fastest), 1),
            econ.error_rate(work.errors.sum(1), attempts),
        )
        return np.stack(columns, 1).astype(np.float32)


class EmbeddingEnv:
    """Stored clips of demonstration videos: observations [N] int64 are rows of the embedding array.

    An episode plays one video's clips in order, from a random start where it has more than 60. What an action brings
    comes from the outcome model: the simulator, with each clip's context. After a video's last clip nothing is known;
    there the last clip stands for what follows.

    videos: row ranges [start, end) of the videos to play, [V, 2]. context: [rows] the context index of every clip.
    """

    def __init__(
        self,
        scenario: dynamics.Scenario,
        num_envs: int,
        *,
        videos: np.ndarray,
        context: np.ndarray,
        reward_window: str = "step",
        rng: np.random.Generator,
    ):
        if len(videos) == 0 or (videos[:, 1] <= videos[:, 0]).any():
            raise VtpError("there is no clip to play; extract at least one video with a clip")
        self.workplace = Workplace(scenario, num_envs, reward_window=reward_window, rng=rng)
        self.videos, self.context = videos, context
        self.row = np.zeros(num_envs, np.int64)
        self.end = np.ones(num_envs, np.int64)

    def reset(self, envs: np.ndarray | None = None) -> np.ndarray:
        rng = self.workplace.rng
        envs = np.ones(len(self.row), bool) if envs is None else envs
        self.workplace.open_books(envs)
        start, end = self.videos[rng.integers(len(self.videos), size=len(envs))].T
        start = start + rng.integers(np.maximum(end - start - dynamics.EPISODE_STEPS, 0) + 1)
        end = np.minimum(end, start + dynamics.EPISODE_STEPS)
        self.row, self.end = np.where(envs, start, self.row), np.where(envs, end, self.end)
        return self.row.copy()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards = self.workplace.work(self.context[self.row], actions)
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
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self._env.workplace.rng = self.np_random
        return self._observation(self._env.reset()), {}

    def step(self, action: np.ndarray):
        observations, rewards, truncated = self._env.step(np.asarray(action)[None])
        books = self._env.workplace
        info = {"attempts": float(books.attempts.sum()), "errors": float(books.errors.sum())}
        return self._observation(observations), float(rewards[0]), False, bool(truncated[0]), info

    def _observation(self, observations: np.ndarray) -> np.ndarray:
        # A copy: who keeps an observation and writes to it must not write to the table.
        return observations[0] if self._embeddings is None else self._embeddings[observations[0]].copy()
