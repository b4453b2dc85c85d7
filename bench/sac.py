"""SAC against Stable-Baselines3's, as JSON: time per update, memory of the replay, and time to 95% of the optimum.

It needs `pip install -e '.[bench]'`.

- *update*: batches of 1024 from 1e6 transitions of 128-D embeddings, 256-256. Both sides sample from equal arrays,
  ours by row index and priority, theirs uniformly; ours is the whole learner of `vtp train`. Each side has a process of
  its own, rounds alternate; medians. `--precision` is ours (by default bf16 where the processor has it), `--device` of
  both. On a processor, `arithmetic_share` is the share of our update that its matrix products would take alone, at the
  rate of a plain product of their size in fp32.
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
from collections.abc import Callable
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

from pipeline import devices, encoders, runs, train
from pipeline.config import EmbeddingsTrainConfig, SimTrainConfig, parse_seeds
from pipeline.encoders import EMBEDDING_DIM
from pipeline.outcomes import OutcomeModel, SimulatedOutcomes
from pipeline.rl import rollouts
from pipeline.rl.device_replay import DeviceReplay
from pipeline.rl.envs import EmbeddingEnv, GymEnv, SimEnv
from pipeline.rl.networks import HIDDEN_SIZE
from pipeline.rl.replay import Batch, ReplayBuffer
from pipeline.rl.sac import Agent
from pipeline.tasks import EPISODE_STEPS, load_task
from pipeline.training.device_rows import DeviceRows
from pipeline.training.learner import DeviceLearner, ProcessorLearner

TASK = load_task("dishwashing").in_scenario("seed")
TRANSITIONS = 1_000_000
UPDATE_BATCH = 1024
UPDATES_A_ROUND = 10
NUM_ENVS = 256  # transitions added at a time
TARGET = 0.95
JUDGED_EPISODES = 20
SB3_JUDGED_EVERY = 10  # episodes

Update = Callable[[], float]  # does one update and returns the seconds spent in replay


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


def sb3(env: GymEnv, *, device: str = "cpu", **options: Any) -> SAC:
    return SAC("MlpPolicy", env, policy_kwargs={"net_arch": [HIDDEN_SIZE, HIDDEN_SIZE]}, device=device, **options)


def sb3_update(device: torch.device) -> Update:
    """SB3's update on a full buffer of embeddings [N, 128]."""
    embeddings, rng = embeddings_of_update(), np.random.default_rng(0)
    one_clip = EmbeddingEnv(SimulatedOutcomes(TASK), 1, videos=np.array([[0, 1]]), rng=rng)
    model = sb3(
        GymEnv(one_clip, embeddings[:1]), device=str(device), buffer_size=TRANSITIONS, optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
    )  # fmt: skip
    model.set_logger(Logger(folder=None, output_formats=[]))
    buffer = model.replay_buffer
    buffer.observations = embeddings[:, None]
    buffer.actions[:] = 2 * rng.random(buffer.actions.shape, np.float32) - 1
    buffer.rewards[:] = rng.standard_normal(buffer.rewards.shape, np.float32)
    buffer.full = True

    def update() -> float:
        model.train(gradient_steps=1, batch_size=UPDATE_BATCH)
        return 0.0

    return update


def our_update(device: torch.device, precision: str) -> Update:
    """The learner's update of `vtp train`, on a full buffer of rows of embeddings [N, 128]."""
    rng, generator = np.random.default_rng(0), torch.Generator(device).manual_seed(0)
    rows = DeviceRows("embeddings", embeddings_of_update(), device)
    agent = runs.build_agent("embeddings", TASK, bf16=precision == "bf16").to(device)
    agent.observe_rewards(rng.standard_normal(TRANSITIONS))
    learner: ProcessorLearner | DeviceLearner
    if device.type != "cpu":
        replay = full_buffer(TRANSITIONS, rng, device)
        assert isinstance(replay, DeviceReplay)
        learner = DeviceLearner(agent, rows, replay, batch_size=UPDATE_BATCH, generator=generator)
    else:
        buffer = full_buffer(TRANSITIONS, rng)
        assert isinstance(buffer, ReplayBuffer)
        learner = ProcessorLearner(agent, rows, buffer, batch_size=UPDATE_BATCH, rng=rng, generator=generator)
    spent = [0.0]
    if device.type == "cpu":
        for name in ("sample", "update_priorities"):
            setattr(learner.replay, name, timed(getattr(learner.replay, name), spent))

    def update() -> float:
        before = spent[0]
        learner.update()
        return spent[0] - before

    return update


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The function; its seconds are added to the first of `spent`."""

    def called(*args: Any) -> Any:
        started = time.perf_counter()
        result = function(*args)
        spent[0] += time.perf_counter() - started
        return result

    return called


def embeddings_of_update() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((TRANSITIONS, EMBEDDING_DIM), np.float32)


def full_buffer(
    count: int, rng: np.random.Generator, device: torch.device | None = None
) -> ReplayBuffer | DeviceReplay:
    """A full buffer of transitions of row indices, added as in training; in a GPU's memory if one is given."""
    settings = {"num_actions": TASK.num_actions, "priority_exponent": EmbeddingsTrainConfig().priority_exponent}
    buffer: ReplayBuffer | DeviceReplay = ReplayBuffer(count, (), np.int64, **settings)
    if device is not None:
        buffer = DeviceReplay(count, (), np.int64, **settings, device=device)
    for start in range(0, count, NUM_ENVS):
        rows = np.arange(start, min(start + NUM_ENVS, count))
        size = len(rows)
        actions, rewards = rng.random((size, TASK.num_actions), np.float32), rng.standard_normal(size, np.float32)
        batch = Batch(rows, actions, rewards, np.ones(size, np.float32), (rows + 1) % count)
        buffer.add(batch, np.ones(size))
    return buffer


_update: Update | None = None  # of the process of one side


def open_side(name: str, device: str, precision: str) -> None:
    global _update
    if name == "ours":
        _update = our_update(devices.choose(device), precision)
    else:  # as its users run it
        _update = sb3_update(torch.device(device))
    run_round(device)  # warms up


def run_round(device: str) -> tuple[float, float]:
    """Seconds of an update, and of its replay, in the process of one side."""
    assert _update is not None
    started = time.perf_counter()
    replay_s = sum(_update() for _ in range(UPDATES_A_ROUND))
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / UPDATES_A_ROUND, replay_s / UPDATES_A_ROUND


def measure_update(rounds: int, device: str = "cpu", precision: str | None = None) -> dict[str, Any]:
    """Times of our update and of SB3's, whose rounds alternate, each in a process of its own."""
    if precision is None:
        precision = "bf16" if device == "cpu" and encoders.computes_in_bf16() else "fp32"
    sides = {
        name: ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=open_side, initargs=(name, device, precision)
        )
        for name in ("ours", "sb3")
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    try:
        for _ in range(rounds):
            for name, side in sides.items():
                found[name].append(side.submit(run_round, device).result())
    finally:
        for side in sides.values():
            side.shutdown()
    ours, theirs = (statistics.median(seconds for seconds, _ in found[name]) for name in sides)
    measured: dict[str, Any] = {
        "update_device": devices.name_of(devices.choose(device)),
        "update_precision": precision,
        "update_ms": round(1000 * ours, 3),
        "update_ms_sb3": round(1000 * theirs, 3),
        "update_ratio": round(ours / theirs, 3),
    }
    if device == "cpu":
        rate = product_rate()
        measured |= {
            "replay_share": round(statistics.median(replay_s / seconds for seconds, replay_s in found["ours"]), 3),
            "update_gflop": round(update_flop() / 1e9, 2),
            "product_gflops": round(rate / 1e9, 1),
            "arithmetic_share": round(update_flop() / rate / ours, 3),
        }
    return measured


def update_flop() -> float:
    """Least floating-point operations of an update: the layers' products, forward and backward.

    Backward costs as much as forward for weights, and again for inputs, except in a first layer.
    """
    actor = np.array([EMBEDDING_DIM * HIDDEN_SIZE, HIDDEN_SIZE**2, HIDDEN_SIZE * 4])
    critic = 2 * np.array([(EMBEDDING_DIM + 2) * HIDDEN_SIZE, HIDDEN_SIZE**2, HIDDEN_SIZE])
    target = actor.sum() + critic.sum()
    critic_step = 2 * critic.sum() + critic[1:].sum()
    actor_step = 2 * actor.sum() + actor[1:].sum() + critic.sum() + critic[1:].sum() + 2 * 2 * HIDDEN_SIZE
    return 2.0 * UPDATE_BATCH * float(target + critic_step + actor_step)


def product_rate(repeats: int = 200) -> float:
    """Floating-point operations per second of the largest of those products alone; the best of a few runs."""
    inputs, weights = torch.randn(UPDATE_BATCH, HIDDEN_SIZE), torch.randn(HIDDEN_SIZE, HIDDEN_SIZE)
    out = torch.empty(UPDATE_BATCH, HIDDEN_SIZE)
    fastest = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(inputs, weights, out=out)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * UPDATE_BATCH * HIDDEN_SIZE**2 / fastest


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

    def open_judged_source(cfg: SimTrainConfig, rng: np.random.Generator) -> Any:
        source = open_source(cfg, rng)

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
            cfg = SimTrainConfig(out=Path(folder) / "run", seed=seed, **settings)
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
    parser.add_argument("--only", choices=("update", "memory", "wall"))
    parser.add_argument("--rounds", type=int, default=20, help="rounds of 10 updates on each side (default: 20)")
    parser.add_argument("--device", default="cpu", help="of the updates: cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of our updates (default: bf16 where it is fast)")
    parser.add_argument("--seeds", default="0-2", help="random seeds for the time to 95%% (default: 0-2)")
    parser.add_argument(
        "--max-episodes", type=int, default=600, help="episodes after which SB3 is stopped (default: 600)"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of vtp train")
    args = parser.parse_args()
    parts = {
        "update": lambda: measure_update(args.rounds, args.device, args.precision),
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
