"""Rollouts of the deterministic policy, on the simulator's state or on stored clips: steps and outcomes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from pipeline.outcomes import OutcomeModel, Outcomes, SimulatedOutcomes, expected_worth, step_value
from pipeline.rl.envs import SimEnv
from pipeline.rl.sac import Agent
from pipeline.tasks import SECONDS_PER_HOUR, Task, worth

SIM_EPISODES = 200
OUTCOMES_A_STEP = 10  # samples per action when comparing policies


class StepRecorder:
    """Records the steps of E parallel episodes."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._tables: list[pd.DataFrame] = []

    def add(self, rows: np.ndarray, actions: np.ndarray, outcomes: Outcomes, episode: np.ndarray | None = None) -> None:
        """Add one step of every episode: rows [E] of the outcome model, actions [E, A], sampled outcomes [E]."""
        episode = np.arange(len(rows)) if episode is None else episode
        columns = {"episode": episode, "step": len(self._tables), "row": rows}
        columns |= {name: actions[:, index] for index, name in enumerate(self._task.action_names)}
        self._tables.append(pd.DataFrame(columns | outcomes._asdict()))

    def steps(self) -> pd.DataFrame:
        """One row per step: episode, step, row (of the outcome model), the task's actions, attempts, errors."""
        return pd.concat(self._tables, ignore_index=True)


def in_simulator(
    agent: Agent, model: SimulatedOutcomes, *, episodes: int, steps: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Steps of the policy on the simulator's state."""
    env, recorder = SimEnv(model, episodes, rng=rng), StepRecorder(model.task)
    observations = env.reset()
    for _ in range(steps):
        actions = agent.act(torch.from_numpy(observations))
        context = env.context
        observations, _, _ = env.step(actions)
        recorder.add(context, actions, env.workplace.outcomes)
    return recorder.steps()


def on_clips(
    agent: Agent,
    model: OutcomeModel,
    embeddings: np.ndarray,
    rows: np.ndarray,
    *,
    video: np.ndarray,
    draws: int = 1,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Steps of the policy on stored clips with embeddings [n, 128] and `rows` [n] of the outcome model.

    The clips of a video [n] are one episode, because they are similar; each action's outcome is sampled `draws` times.
    """
    recorder = StepRecorder(model.task)
    actions = np.repeat(agent.act(torch.from_numpy(embeddings)), draws, axis=0)
    rows, video = np.repeat(rows, draws), np.repeat(video, draws)
    recorder.add(rows, actions, model.sample(rows, actions, rng), video)
    return recorder.steps()


def actions_of(steps: pd.DataFrame, task: Task) -> np.ndarray:
    """The actions [n, A] of recorded steps."""
    return steps[list(task.action_names)].to_numpy(float)


def validation_profit(model: OutcomeModel, steps: pd.DataFrame, rng: np.random.Generator) -> float:
    """Profit in $/h of the steps' actions, less the model's penalty: the criterion for choosing a policy.

    Expected profit if outcomes are estimates. Otherwise profit of newly sampled outcomes, so that policies compared
    with equal generators have the same random numbers.
    """
    rows, actions = steps["row"].to_numpy(), actions_of(steps, model.task)
    if model.is_estimate:
        hours = model.terms(rows).step_s
        return float(
            np.average(expected_worth(model, rows, actions).profit - model.penalty(rows, actions), weights=hours)
        )
    outcomes = model.sample_coupled(rows, actions, rng, OUTCOMES_A_STEP)
    hours = OUTCOMES_A_STEP * model.terms(rows).step_s.sum() / SECONDS_PER_HOUR
    value_usd = step_value(model, rows, outcomes).sum()
    costs = model.task.total_costs_usd_per_hour
    found = worth(outcomes.attempts.sum(), outcomes.errors.sum(), value_usd, 1 / hours, costs_usd_per_hour=costs)
    return float(found.profit - model.penalty(rows, actions).mean())


def expected_profit(model: OutcomeModel, steps: pd.DataFrame) -> np.ndarray:
    """Expected profit [n] in $/h of the steps' actions."""
    return expected_worth(model, steps["row"].to_numpy(), actions_of(steps, model.task)).profit
