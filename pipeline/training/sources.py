"""What a policy is trained on: the simulator's state, stored embeddings of demonstration videos, or their frames."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from pipeline import __version__, dataset, encoders, evaluate
from pipeline.config import TrainConfig
from pipeline.errors import VtpError
from pipeline.rl.envs import EmbeddingEnv, SimEnv, VectorEnv
from pipeline.rl.sac import Agent
from pipeline.synthetic import dynamics
from pipeline.training.frame_cache import FOOTAGE, ReplayedClips

VALIDATION_DRAWS = 12_000  # sampled steps a validation, as many as 200 episodes
ENCODING = ("backbone", "weights", "weights_sha256", "transform", "clip_len", "fps", "precision", "projector")


class Source(NamedTuple):
    """What a policy is trained on and validated with; observations are rows of `table` or `clips`, or else states."""

    env: VectorEnv
    scenario: dynamics.Scenario
    table: torch.Tensor | None  # [N, 128] embeddings as they are observed
    train_rows: np.ndarray | None  # [n] rows of the table that training may see
    novelty: np.ndarray | None  # [N] weights
    validate: Callable[[Agent, np.random.Generator], pd.DataFrame]  # → validation steps
    validation: str
    meta: dict[str, Any]
    clips: ReplayedClips | None = None  # of a run on video
    initial: Agent | None = None  # the trained policy to begin with

    def look_up(self, observations: np.ndarray) -> torch.Tensor:
        """Observations as the agent sees them: states [B, 4] as they are, rows [B] as embeddings [B, 128] or clips."""
        if self.clips is not None:
            return self.clips.look_up(observations)
        observations = torch.from_numpy(observations)
        return observations if self.table is None else self.table[observations]


def check(cfg: TrainConfig) -> None:
    """VtpError where a run with these settings could not begin."""
    if cfg.buffer_size < cfg.num_envs:
        raise VtpError(f"--buffer-size {cfg.buffer_size} is below --num-envs {cfg.num_envs}; raise it")
    if cfg.buffer_size < cfg.warmup_steps:
        raise VtpError(f"--buffer-size {cfg.buffer_size} is below --warmup-steps {cfg.warmup_steps}; lower the latter")
    if cfg.source != "sim" and not cfg.embeddings.is_file():
        raise VtpError(
            f"no embeddings at {cfg.embeddings}; make them with `vtp extract VIDEOS --out {cfg.embeddings}`, "
            "or train without video: --source sim"
        )


def open_source(cfg: TrainConfig, rng: np.random.Generator) -> Source:
    """The env of that source, and how a policy on it is validated with sampled outcomes.

    VtpError where the policy that `init` names was trained on what looks different.
    """
    provenance = {
        "vtp_version": __version__,
        "torch": str(torch.__version__),  # a plain string: checkpoints hold nothing else
        "update_precision": "bf16" if encoders.computes_in_bf16() else "fp32",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(cfg),
    }
    source = _simulator(cfg, provenance, rng) if cfg.source == "sim" else _stored_clips(cfg, provenance, rng)
    if cfg.init is not None:
        initial, trained = evaluate.load_run(cfg.init)
        evaluate.check_same_inputs(trained, source.meta, cfg.init)
        source = source._replace(initial=initial)
    return source


def _simulator(cfg: TrainConfig, provenance: dict[str, Any], rng: np.random.Generator) -> Source:
    scenario = dynamics.scenario(cfg.task, cfg.scenario)
    meta = {
        "source": "sim", "task": cfg.task, "scenario": cfg.scenario, "seed": cfg.seed,
        "outcome_model": f"simulator, {cfg.task} scenario {cfg.scenario}", "provenance": provenance,
    }  # fmt: skip
    return Source(
        SimEnv(scenario, cfg.num_envs, reward_window=cfg.reward_window, rng=rng), scenario, None, None, None,
        lambda agent, rng: evaluate.in_simulator(
            agent, scenario, episodes=evaluate.SIM_EPISODES, steps=dynamics.EPISODE_STEPS, rng=rng
        ),
        "simulator", meta,
    )  # fmt: skip


def _stored_clips(cfg: TrainConfig, provenance: dict[str, Any], rng: np.random.Generator) -> Source:
    data = dataset.read_embeddings(cfg.embeddings)
    if cfg.source == "video" and data.attrs["backbone"] != "r3d_18":
        raise VtpError(
            f"--source video trains R3D-18 on, and {cfg.embeddings} is of {data.attrs['backbone']}; "
            "extract with --backbone r3d_18, or use --source embeddings"
        )
    model = evaluate.outcome_model(data)
    videos, held_out, how = evaluate.split_rows(data)
    train_rows = np.concatenate([np.arange(start, end) for start, end in videos])
    novelty_path = cfg.novelty or cfg.embeddings.with_name("novelty.h5")
    novelty = None
    if cfg.novelty or novelty_path.is_file():
        novelty = dataset.read_novelty_weights(novelty_path, data.attrs["content_sha256"])
    env = EmbeddingEnv(
        model.scenario, cfg.num_envs, videos=videos, context=model.context,
        reward_window=cfg.reward_window, rng=rng,
    )  # fmt: skip
    clips = table = centre = None
    if cfg.source == "video":
        rows = np.concatenate([train_rows, held_out])
        clips = ReplayedClips(cfg.out / FOOTAGE, data, rows, frame_size=cfg.frame_size)
    else:
        if cfg.centre == "video":
            _check_contexts_vary(cfg, data, model)
            centre = data.embeddings[train_rows].mean(axis=0, dtype=np.float64).tolist()
        table = torch.from_numpy(evaluate.observed(data, centre))
    of_held_out = evaluate.video_of(data, held_out)

    def validate(agent: Agent, rng: np.random.Generator) -> pd.DataFrame:
        embeddings = table[held_out].numpy() if clips is None else clips.embeddings(agent.encoder, held_out)
        return evaluate.on_clips(
            agent, model.scenario, embeddings, model.context[held_out], video=of_held_out,
            draws=max(1, VALIDATION_DRAWS // len(held_out)), rng=rng,
        )  # fmt: skip

    encoding = {key: data.attrs[key] for key in ENCODING}
    provenance |= encoding | {
        "embeddings": str(cfg.embeddings),
        "embeddings_sha256": data.attrs["content_sha256"],
        "novelty": str(novelty_path) if novelty is not None else "none: every clip weighs 1",
        "num_train_clips": len(train_rows),
        "held_out": f"{how}; they also chose the checkpoint",
    }
    meta = {
        "source": cfg.source, "task": model.scenario.task, "scenario": model.scenario.name, "seed": cfg.seed,
        "outcome_model": model.description, "labelled": model.labelled, "provenance": provenance,
        "embeddings": str(cfg.embeddings.resolve()), "content_sha256": data.attrs["content_sha256"],
        "novelty_sha256": None if novelty is None else hashlib.sha256(novelty.tobytes()).hexdigest(),
        "encoding": encoding,
        "projector": {
            "mean": torch.from_numpy(data.projector_mean), "components": torch.from_numpy(data.projector_components),
            "scale": float(data.projector_scale),
            "norm": None if data.projector_norm is None else torch.from_numpy(data.projector_norm),
        },
    }  # fmt: skip
    if cfg.source == "video":
        meta |= {"frame_size": cfg.frame_size, "encoder_layers": cfg.encoder_layers}
    else:
        meta |= {"centre": centre}
    return Source(env, model.scenario, table, train_rows, novelty, validate, "held-out clips", meta, clips)


def _check_contexts_vary(cfg: TrainConfig, data: dataset.Embeddings, model: evaluate.OutcomeModel) -> None:
    """VtpError where each video shows one context of several, so that its mean would take the context away."""
    shown = [set(contexts) for contexts in np.split(model.context, data.offset[1:-1])]
    if len(set().union(*shown)) > 1 and all(len(contexts) <= 1 for contexts in shown):
        raise VtpError(
            f"every video of {cfg.embeddings} shows one context alone, which --centre video would take away with the "
            "mean of the video; use --centre corpus"
        )


def command_line(cfg: TrainConfig) -> str:
    """The command that trains with these settings: its flags are those that differ from the defaults."""
    defaults = TrainConfig(source=cfg.source, reward_window=cfg.reward_window).model_dump()  # which decide on others'
    defaults["reward_window"] = TrainConfig.model_fields["reward_window"].default
    words = ["vtp", "train", "--source", cfg.source]
    for name, default in defaults.items():
        value = getattr(cfg, name)
        if not isinstance(value, bool) and value != default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
