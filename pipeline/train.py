"""Train a policy: SAC on stored embeddings or on the simulator, under an economic reward.

`run` is the loop: act, step, insert, update, log, validate.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.tensorboard import SummaryWriter

from pipeline import __version__, econ, evaluate, sim, store
from pipeline.config import TrainConfig
from pipeline.envs import Economics, EmbeddingEnv, SimEnv, VectorEnv, value_work
from pipeline.errors import VtpError
from pipeline.ledger import EpisodeLedger
from pipeline.replay import Batch, ReplayBuffer
from pipeline.rundir import MetricsCsv, make_folder, save_config, write_json
from pipeline.sac import Agent, Transitions, save_checkpoint

logger = logging.getLogger(__name__)

METRICS = (
    "episode", "time_h", "completed", "attempts", "errors", "err_rate", "err_target", "mp_r", "mp_h", "w_hat_r",
    "w_h", "wage_parity", "prod_parity", "profit", "lambda_dual", "episode_reward", "episode_steps", "mean_speed",
    "mean_care", "buffer_size", "critic_loss", "actor_loss", "alpha", "consistency_loss", "contrastive_loss",
    "mean_novelty", "mean_weight", "q_mean", "delta_mpl_total", "delta_mpl_cust", "spread", "spread_value", "s_cust",
    "s_plat", "rebate", "captured_spread",
)  # fmt: skip
LOSSES = ("critic_loss", "actor_loss", "alpha", "consistency_loss", "contrastive_loss", "q_mean", "mean_weight")
RUN_FILES = (
    "last.pt", "last.pt.sha256", "best.pt", "best.pt.sha256", "metrics.csv", "validations.csv", "validation.csv",
    "summary.json", "report.html", "data_value.json", "tensorboard", "frames", "experiments",
)  # fmt: skip
VALIDATION_DRAWS = 12_000  # sampled steps a validation, as many as 200 episodes

Progress = Callable[[int, int, dict[str, float]], None]


class Source(NamedTuple):
    """What a policy is trained on and validated with; observations index `table`, or are states where it is None."""

    env: VectorEnv
    scenario: sim.Scenario
    table: torch.Tensor | None  # [N, 128] embeddings
    train_rows: np.ndarray | None  # [n] rows of the table that training may see
    novelty: np.ndarray | None  # [N] weights
    validate: Callable[[Agent, np.random.Generator], pd.DataFrame]  # → validation steps
    validation: str
    meta: dict[str, Any]


def run(cfg: TrainConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train, validate and write the run directory; returns its summary."""
    started = time.monotonic()
    seeds = np.random.SeedSequence(cfg.seed).spawn(3)
    env_rng, rng, validation_rng = (np.random.default_rng(s) for s in seeds)
    torch.manual_seed(cfg.seed)
    generator = torch.Generator().manual_seed(cfg.seed)

    check(cfg)
    source = open_source(cfg, env_rng)
    env, books = source.env, source.env.workplace
    agent = evaluate.build_agent(cfg.source, lr=cfg.lr, gamma=cfg.gamma, tau=cfg.tau)
    if source.table is not None:
        agent.encoder.fit(source.table[source.train_rows].numpy())
    observations = env.reset()
    buffer = ReplayBuffer(
        cfg.buffer_size, observations.shape[1:], observations.dtype, priority_exponent=cfg.priority_exponent
    )
    updates_per_step = cfg.updates_per_episode * cfg.num_envs / sim.EPISODE_STEPS

    start_run(cfg)
    save_config(cfg.out / "config.yaml", cfg.model_copy(update={"overwrite": False}))
    logger.info("outcome model: %s; validation: %s", source.meta["outcome_model"], source.validation)
    metrics, validations = (
        MetricsCsv(cfg.out / "metrics.csv", METRICS),
        MetricsCsv(cfg.out / "validations.csv", ("episode", "profit_sampled")),
    )
    board = SummaryWriter(str(cfg.out / "tensorboard"))
    ledger = EpisodeLedger(source.scenario)
    sums = EpisodeSums(cfg.num_envs)
    losses: dict[str, list[float]] = defaultdict(list)  # of the updates since the last episode ended
    mean_losses = dict.fromkeys(LOSSES, 0.0)
    best_profit, episode, updates_due = -np.inf, 0, 0.0

    def validate_and_save() -> None:
        nonlocal best_profit
        profit = sampled_profit(source.scenario, source.validate(agent, np.random.default_rng(cfg.seed)))
        validations.write({"episode": episode, "profit_sampled": profit})
        board.add_scalar("validation/profit_sampled", profit, episode)
        checkpoint = {"agent": agent.state_dict(), "meta": source.meta, "episode": episode}
        save_checkpoint(cfg.out / "last.pt", checkpoint)
        if profit > best_profit:
            best_profit = profit
            save_checkpoint(cfg.out / "best.pt", checkpoint)

    while episode < cfg.episodes:
        if buffer.size < cfg.warmup_steps:
            actions = rng.random((cfg.num_envs, 2), np.float32)
        else:
            actions = agent.act(look_up(source.table, observations), generator=generator)
            at_random = rng.random(cfg.num_envs) < cfg.random_actions  # keeps the critic informed all over
            actions[at_random] = rng.random((at_random.sum(), 2), np.float32)
        next_observations, rewards, truncated = env.step(actions)
        novelty = np.ones(cfg.num_envs) if source.novelty is None else source.novelty[observations]
        masks = np.ones(cfg.num_envs)  # a time limit is no end: the critic bootstraps through it
        buffer.add(Batch(observations, actions, rewards, masks, next_observations), novelty)
        agent.observe_rewards(rewards)
        sums.add(rewards, actions, novelty)

        if buffer.size >= cfg.warmup_steps:
            updates_due += updates_per_step
        agent.anneal(episode / cfg.episodes, final_entropy=cfg.final_entropy)
        while updates_due >= 1:
            updates_due -= 1
            batch, slots, importance, batch_novelty = buffer.sample(cfg.batch_size, rng)
            weights = importance * batch_novelty
            td_error, info = agent.update(
                transitions(batch, source.table), torch.from_numpy(weights), generator=generator
            )
            buffer.update_priorities(slots, td_error)
            for name, value in (info | {"mean_weight": float(weights.mean())}).items():
                losses[name].append(value)

        if truncated.any():
            economics = books.economics()
            mean_losses |= {name: float(np.mean(losses[name])) for name in LOSSES if losses[name]}
            losses.clear()
        ended = []
        for i in np.flatnonzero(truncated)[: cfg.episodes - episode]:
            episode += 1
            err_target = econ.error_target(episode - 1)
            row = {
                "episode": episode,
                "completed": books.attempts[i].sum() - books.errors[i].sum(),
                "attempts": books.attempts[i].sum(),
                "errors": books.errors[i].sum(),
                "err_target": err_target,
                "lambda_dual": books.lambda_dual,
                "buffer_size": buffer.size,
                **mean_losses,
                **sums.means(i),
            }
            hours = books.steps[i] / sim.STEPS_PER_HOUR
            row |= ledger.close(hours, Economics(*(float(field[i]) for field in economics)), row["mean_novelty"])
            books.lambda_dual = econ.dual_ascent(
                books.lambda_dual, row["err_rate"], err_target=err_target, dual_lr=cfg.dual_lr
            )
            books.err_target = econ.error_target(episode)
            metrics.write(row)
            ended.append(row)
            if progress:
                progress(episode, cfg.episodes, row)
            if episode * cfg.evaluations // cfg.episodes > (episode - 1) * cfg.evaluations // cfg.episodes:
                validate_and_save()
        if ended:
            for name in METRICS[1:]:  # one point for the episodes that end together
                board.add_scalar(f"train/{name}", np.mean([row[name] for row in ended]), episode)
        if truncated.any():
            sums.clear(truncated)
            observations = env.reset(truncated)
        else:
            observations = next_observations

    write_json(cfg.out / "data_value.json", {"estimator": ledger.skill()})
    if buffer.size < cfg.warmup_steps:
        raise VtpError(
            f"{cfg.episodes} episodes gave {buffer.size} steps, fewer than --warmup-steps {cfg.warmup_steps}: "
            "nothing was learned; raise --episodes or lower --warmup-steps"
        )
    metrics.close()
    validations.close()
    board.close()
    best, meta = evaluate.load_run(cfg.out)
    return evaluate.write_summary(
        cfg.out,
        source.scenario,
        source.validate(best, validation_rng),
        meta=meta,
        validation=source.validation,
        evaluation={"seed": cfg.seed, "command": source.meta["provenance"]["command"]},
        stage="train",
        wall_s=time.monotonic() - started,
    )


def check(cfg: TrainConfig) -> None:
    """VtpError where a run with these settings could not begin."""
    if cfg.buffer_size < cfg.num_envs:
        raise VtpError(f"--buffer-size {cfg.buffer_size} is below --num-envs {cfg.num_envs}; raise it")
    if cfg.buffer_size < cfg.warmup_steps:
        raise VtpError(f"--buffer-size {cfg.buffer_size} is below --warmup-steps {cfg.warmup_steps}; lower the latter")
    if cfg.source == "embeddings" and not cfg.embeddings.is_file():
        raise VtpError(
            f"no embeddings at {cfg.embeddings}; make them with `vtp extract VIDEOS --out {cfg.embeddings}`, "
            "or train without video: --source sim"
        )


def open_source(cfg: TrainConfig, rng: np.random.Generator) -> Source:
    """The env of that source, and how a policy on it is validated with sampled outcomes."""
    provenance = {
        "vtp_version": __version__,
        "torch": str(torch.__version__),  # a plain string: checkpoints hold nothing else
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(cfg),
    }
    if cfg.source == "sim":
        scenario = sim.scenario(cfg.task, cfg.scenario)
        env = SimEnv(scenario, cfg.num_envs, reward_window=cfg.reward_window, rng=rng)
        meta = {
            "source": "sim", "task": cfg.task, "scenario": cfg.scenario, "seed": cfg.seed,
            "outcome_model": f"simulator, {cfg.task} scenario {cfg.scenario}", "provenance": provenance,
        }  # fmt: skip
        return Source(
            env, scenario, None, None, None,
            lambda agent, rng: evaluate.in_simulator(
                agent, scenario, episodes=evaluate.SIM_EPISODES, steps=sim.EPISODE_STEPS, rng=rng
            ),
            "simulator", meta,
        )  # fmt: skip

    data = store.read_embeddings(cfg.embeddings)
    model = evaluate.outcome_model(data)
    videos, held_out, how = evaluate.split_rows(data)
    train_rows = np.concatenate([np.arange(start, end) for start, end in videos])
    novelty_path = cfg.novelty or cfg.embeddings.with_name("novelty.h5")
    novelty = None
    if cfg.novelty or novelty_path.is_file():
        novelty = store.read_novelty_weights(novelty_path, data.attrs["content_sha256"])
    env = EmbeddingEnv(
        model.scenario, cfg.num_envs, videos=videos, context=model.context,
        reward_window=cfg.reward_window, rng=rng,
    )  # fmt: skip
    encoding = {
        key: data.attrs[key]
        for key in ("backbone", "weights", "weights_sha256", "transform", "clip_len", "fps", "precision", "projector")
    }
    provenance |= encoding | {
        "embeddings": str(cfg.embeddings),
        "embeddings_sha256": data.attrs["content_sha256"],
        "novelty": str(novelty_path) if novelty is not None else "none: every clip weighs 1",
        "num_train_clips": len(train_rows),
        "held_out": f"{how}; they also chose the checkpoint",
    }
    meta = {
        "source": "embeddings", "task": model.scenario.task, "scenario": model.scenario.name, "seed": cfg.seed,
        "outcome_model": model.description, "labelled": model.labelled, "provenance": provenance,
        "embeddings": str(cfg.embeddings.resolve()), "content_sha256": data.attrs["content_sha256"],
        "encoding": encoding,
        "projector": {
            "mean": torch.from_numpy(data.projector_mean), "components": torch.from_numpy(data.projector_components),
            "scale": float(data.projector_scale),
            "norm": None if data.projector_norm is None else torch.from_numpy(data.projector_norm),
        },
    }  # fmt: skip
    return Source(
        env, model.scenario, torch.from_numpy(data.embeddings), train_rows, novelty,
        lambda agent, rng: evaluate.on_clips(
            agent, model.scenario, data.embeddings[held_out], model.context[held_out],
            video=evaluate.video_of(data, held_out), draws=max(1, VALIDATION_DRAWS // len(held_out)), rng=rng,
        ),
        "held-out clips", meta,
    )  # fmt: skip


def start_run(cfg: TrainConfig) -> None:
    """Make the run directory; a finished run in it is refused, an unfinished one or with `overwrite` any is removed."""
    make_folder(cfg.out)
    if any(cfg.out.glob("seed-*/config.yaml")):
        raise VtpError(f"{cfg.out} holds several seeds; choose another --out, or go on with --seeds")
    if (cfg.out / "summary.json").exists() and not cfg.overwrite:
        raise VtpError(f"{cfg.out} holds a run already; choose another --out, or add --overwrite")
    earlier = [cfg.out / name for name in RUN_FILES if (cfg.out / name).exists()]
    if earlier:
        logger.warning("%s: the earlier run in it is replaced", cfg.out)
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def command_line(cfg: TrainConfig) -> str:
    """The command that trains with these settings: its flags are those that differ from the defaults."""
    defaults = TrainConfig(source=cfg.source)
    words = ["vtp", "train", "--source", cfg.source]
    for name in TrainConfig.model_fields:
        value = getattr(cfg, name)
        if not isinstance(value, bool) and value != getattr(defaults, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def look_up(table: torch.Tensor | None, observations: np.ndarray) -> torch.Tensor:
    """Observations as the agent sees them: states [B, 4] as they are, rows [B] as embeddings [B, 128]."""
    observations = torch.from_numpy(observations)
    return observations if table is None else table[observations]


def transitions(batch: Batch, table: torch.Tensor | None) -> Transitions:
    return Transitions(
        look_up(table, batch.observations),
        torch.from_numpy(batch.actions),
        torch.from_numpy(batch.rewards),
        torch.from_numpy(batch.masks),
        look_up(table, batch.next_observations),
    )


def sampled_profit(scenario: sim.Scenario, steps: pd.DataFrame) -> float:
    """Profit in $/h from the sampled outcomes of validation steps: what may choose a policy."""
    k = len(scenario.contexts)
    attempts, errors = (
        np.bincount(steps["context"], steps[column], minlength=k)[None] for column in ("attempts", "errors")
    )
    return float(value_work(scenario, attempts, errors, np.array([len(steps) / sim.STEPS_PER_HOUR])).profit[0])


class EpisodeSums:
    """Sums over the current episode of each of N environments."""

    def __init__(self, num_envs: int):
        self._sums = np.zeros((num_envs, 5))

    def add(self, rewards: np.ndarray, actions: np.ndarray, novelty: np.ndarray) -> None:
        self._sums += np.stack([np.ones(len(rewards)), rewards, actions[:, 0], actions[:, 1], novelty], 1)

    def means(self, env: int) -> dict[str, float]:
        steps, reward, speed, care, novelty = self._sums[env]
        return {
            "episode_reward": reward, "episode_steps": int(steps), "mean_speed": speed / steps,
            "mean_care": care / steps, "mean_novelty": novelty / steps,
        }  # fmt: skip

    def clear(self, envs: np.ndarray) -> None:
        self._sums[envs] = 0
