"""SAC's update against Stable-Baselines3's, if installed (`pip install -e '.[bench]'`), as JSON.

Batches of 1024 from 1e6 transitions of 128-D embeddings, 256-256. Both sides sample from equal arrays, ours by row
index and priority, theirs uniformly; ours is the whole learner of `vtp train`. Each side has a process of its own,
rounds alternate; medians. `--precision` is ours (by default bf16 where the processor has it), `--device` of both. On a
processor, `arithmetic_share` is the share of our update that its matrix products would take alone, at the rate of a
plain product of their size in fp32.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from pipeline import devices, encoders, runs
from pipeline.config import EmbeddingsTrainConfig
from pipeline.encoders import EMBEDDING_DIM
from pipeline.outcomes import SimulatedOutcomes
from pipeline.rl.device_replay import DeviceReplay
from pipeline.rl.envs import EmbeddingEnv, GymEnv
from pipeline.rl.networks import HIDDEN_SIZE
from pipeline.rl.replay import Batch, ReplayBuffer
from pipeline.tasks import load_task
from pipeline.training.device_rows import DeviceRows
from pipeline.training.learner import DeviceLearner, ProcessorLearner

TASK = load_task("dishwashing").in_scenario("seed")
TRANSITIONS = 1_000_000
UPDATE_BATCH = 1024
UPDATES_A_ROUND = 10
NUM_ENVS = 256  # transitions added at a time

Update = Callable[[], float]  # does one update and returns the seconds spent in replay


def sb3_update(device: torch.device) -> Update:
    """SB3's update on a full buffer of embeddings [N, 128]."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    embeddings, rng = embeddings_of_update(), np.random.default_rng(0)
    one_clip = EmbeddingEnv(SimulatedOutcomes(TASK), 1, videos=np.array([[0, 1]]), rng=rng)
    model = SAC(
        "MlpPolicy", GymEnv(one_clip, embeddings[:1]), policy_kwargs={"net_arch": [HIDDEN_SIZE, HIDDEN_SIZE]},
        device=str(device), buffer_size=TRANSITIONS, optimize_memory_usage=True,
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
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / UPDATES_A_ROUND, replay_s / UPDATES_A_ROUND


def measure_update(rounds: int, device: str = "cpu", precision: str | None = None) -> dict[str, Any]:
    """Times of our update and, if installed, of SB3's, whose rounds alternate, each in a process of its own."""
    if precision is None:
        precision = "bf16" if device == "cpu" and encoders.computes_in_bf16() else "fp32"
    sides = {
        name: ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=open_side, initargs=(name, device, precision)
        )
        for name in ("ours", *(["sb3"] if importlib.util.find_spec("stable_baselines3") else []))
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    try:
        for _ in range(rounds):
            for name, side in sides.items():
                found[name].append(side.submit(run_round, device).result())
    finally:
        for side in sides.values():
            side.shutdown()
    times = {name: statistics.median(seconds for seconds, _ in rows) for name, rows in found.items()}
    ours = times["ours"]
    measured: dict[str, Any] = {
        "update_device": devices.name_of(devices.choose(device)),
        "update_precision": precision,
        "update_ms": round(1000 * ours, 3),
    }
    if "sb3" in times:
        measured |= {"update_ms_sb3": round(1000 * times["sb3"], 3), "update_ratio": round(ours / times["sb3"], 3)}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of 10 updates on each side (default: 20)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of our updates (default: bf16 where it is fast)")
    args = parser.parse_args()
    print(json.dumps({"threads": torch.get_num_threads()} | measure_update(args.rounds, args.device, args.precision)))


if __name__ == "__main__":
    main()
