"""SAC against Stable-Baselines3's, as JSON: memory of the replay, and time to 95% of the optimum. Updates: update.py.

It needs `pip install -e '.[bench]'`.

- *memory*: memory that 1e6 transitions of row indices add to a process, besides the embeddings.
- *wall*: simulator's state, scenario `plates`. `vtp train` with defaults or `--set`, including its encoder and its own
  validations, against SB3 on the same environment with the same batch size, learning rate, gamma, tau and warm-up,
  256-256, 60 updates per episode. Both are judged by the analytic profit of their deterministic policy, in the same
  episodes, with the clock stopped; the time is that of the first of two consecutive judgements at 95% of the optimum.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from pipeline import runs, train
from pipeline.config import SimTrainConfig, parse_seeds
from pipeline.outcomes import OutcomeModel, SimulatedOutcomes
from pipeline.rl import rollouts
from pipeline.rl.envs import GymEnv, SimEnv
from pipeline.rl.networks import HIDDEN_SIZE
from pipeline.rl.sac import Agent
from pipeline.tasks import EPISODE_STEPS, load_task

sys.path.insert(0, str(Path(__file__).parent))
from update import NUM_ENVS, TRANSITIONS, full_buffer

TARGET = 0.95
JUDGED_EPISODES = 20
SB3_JUDGED_EVERY = 10  # episodes


class Judgement(NamedTuple):
    training_s: float
    oracle_ratio: float


class Judge:
    """Ratio of a policy to the oracle over seconds of training; judging stops the clock."""

    def __init__(self, model: SimulatedOutcomes):
        self.model = model
        self.judgements: list[Judgement] = []
        self._judging_s = 0.0
        self._started = time.perf_counter()

    def __call__(self, policy: Any) -> None:
        began = time.perf_counter()
        steps = rollouts.in_simulator(
            policy, self.model, episodes=JUDGED_EPISODES, steps=EPISODE_STEPS, rng=np.random.default_rng(1)
        )
        ratio = runs.summarise(self.model, steps, s_cust=0.0)["oracle_ratio"]
        if not self.judgements or ratio != self.judgements[-1].oracle_ratio:  # an unchanged policy counts once
            self.judgements.append(Judgement(began - self._started - self._judging_s, ratio))
        self._judging_s += time.perf_counter() - began

    def reached_s(self) -> float:
        """Seconds to the first of two consecutive judgements at the target; infinity if there are none."""
        pairs = zip(self.judgements, self.judgements[1:], strict=False)
        return next((a.training_s for a, b in pairs if min(a.oracle_ratio, b.oracle_ratio) >= TARGET), math.inf)


class SB3Policy:
    """The deterministic policy of an SB3 model, with the `act` that validation requires."""

    def __init__(self, model: SAC):
        self.model = model

    def act(self, observations: torch.Tensor) -> np.ndarray:
        return self.model.predict(observations.numpy(), deterministic=True)[0]


class JudgeAsItLearns(BaseCallback):
    """Judge every few episodes; stop learning when the target is reached."""

    def __init__(self, judge: Judge):
        super().__init__()
        self.judge = judge

    def _on_step(self) -> bool:
        if self.num_timesteps % (SB3_JUDGED_EVERY * EPISODE_STEPS) == 0:
            self.judge(SB3Policy(self.model))
        return self.judge.reached_s() == math.inf


def sb3(env: GymEnv, **options: Any) -> SAC:
    return SAC("MlpPolicy", env, policy_kwargs={"net_arch": [HIDDEN_SIZE, HIDDEN_SIZE]}, device="cpu", **options)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def replay_bytes() -> int:
    """Memory that a full buffer adds to this process."""
    rng = np.random.default_rng(0)
    full_buffer(NUM_ENVS, rng)  # allocates what the code needs once
    before = resident_bytes()
    buffer = full_buffer(TRANSITIONS, rng)
    growth = resident_bytes() - before
    assert buffer.size == TRANSITIONS
    return growth


def measure_memory() -> dict[str, Any]:
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn")
    ) as pool:  # a new process, because memory freed before would hide it
        return {"replay_mb": round(pool.submit(replay_bytes).result() / 1e6, 1)}


def simulator_of(cfg: SimTrainConfig) -> SimulatedOutcomes:
    return SimulatedOutcomes(load_task(cfg.task).in_scenario(cfg.scenario))


def train_ours(cfg: SimTrainConfig) -> Judge:
    """Run `vtp train`, judged at each of its own validations."""
    open_source = train.open_source

    def open_judged_source(cfg: SimTrainConfig, rng: np.random.Generator, **options: Any) -> Any:
        source = open_source(cfg, rng, **options)

        def judged(agent: Agent, model: OutcomeModel, draws: int, rng: np.random.Generator) -> Any:
            judge(agent)
            return source.judge(agent, model, draws, rng)

        return source._replace(judge=judged)

    judge = Judge(simulator_of(cfg))
    with mock.patch.object(train, "open_source", open_judged_source):
        train.run(cfg)
    return judge


def train_sb3(cfg: SimTrainConfig, max_episodes: int) -> Judge:
    """Run SB3's SAC with the shared settings, on a single copy of the same environment, without a dual term."""
    model = simulator_of(cfg)
    judge = Judge(model)
    env = SimEnv(model, 1, reward_window=cfg.reward_window, rng=np.random.default_rng(cfg.seed))
    learner = sb3(
        GymEnv(env), learning_rate=cfg.lr, gamma=cfg.gamma, tau=cfg.tau, batch_size=cfg.batch_size,
        buffer_size=cfg.buffer_size, learning_starts=cfg.warmup_steps, train_freq=1, gradient_steps=1, seed=cfg.seed,
    )  # fmt: skip
    learner.set_logger(Logger(folder=None, output_formats=[]))
    learner.learn(max_episodes * EPISODE_STEPS, callback=JudgeAsItLearns(judge))
    return judge


def measure_wall(seeds: list[int], settings: dict[str, str], max_episodes: int) -> dict[str, Any]:
    rows, ours_s, sb3_s = [], [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            cfg = SimTrainConfig(**{"out": Path(folder) / "run", "seed": seed, "device": "cpu", **settings})
            ours = train_ours(cfg)
        theirs = train_sb3(cfg, max_episodes)
        ours_s.append(ours.reached_s())
        # If SB3 does not reach the target, its total time is used; the true ratio is even smaller.
        sb3_s.append(min(theirs.reached_s(), theirs.judgements[-1].training_s))
        row = {
            "seed": seed, "ours_s": seconds_or_none(ours_s[-1]), "sb3_s": seconds_or_none(theirs.reached_s()),
            "ours": [tuple(round(value, 3) for value in judgement) for judgement in ours.judgements],
            "sb3": [tuple(round(value, 3) for value in judgement) for judgement in theirs.judgements],
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    ours_median, sb3_median = statistics.median(ours_s), statistics.median(sb3_s)
    return {
        "wall_to_95_s": seconds_or_none(ours_median),
        "wall_to_95_s_sb3": seconds_or_none(sb3_median),
        "wall_ratio": None if ours_median == math.inf else round(ours_median / sb3_median, 4),
        "wall_sb3_reached_95": sum(row["sb3_s"] is not None for row in rows),
        "wall_settings": {name: getattr(cfg, name) for name in ("batch_size", "lr", "gamma", "tau", "warmup_steps")},
        "wall_seeds": rows,
    }


def seconds_or_none(seconds: float) -> float | None:
    return None if seconds == math.inf else round(seconds, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("memory", "wall"))
    parser.add_argument("--seeds", default="0-2", help="random seeds for the time to 95%% (default: 0-2)")
    parser.add_argument(
        "--max-episodes", type=int, default=600, help="episodes after which SB3 is stopped (default: 600)"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of vtp train")
    args = parser.parse_args()
    parts = {
        "memory": measure_memory,
        "wall": lambda: measure_wall(
            parse_seeds(args.seeds), dict(setting.split("=", 1) for setting in args.set), args.max_episodes
        ),
    }
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    for name, part in parts.items():
        if args.only in (None, name):
            result |= part()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
