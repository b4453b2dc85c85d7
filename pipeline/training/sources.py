"""The sources that policies are trained on: the simulator's state, stored embeddings, or video frames."""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from pipeline import __version__, dataset, devices, encoders, runs, storage
from pipeline.config import (
    EmbeddingsTrainConfig,
    SimTrainConfig,
    TrainConfig,
    VideoTrainConfig,
    parse_seeds,
    train_config,
)
from pipeline.errors import VtpError
from pipeline.kept_inputs import keep_inputs
from pipeline.outcomes import LearnedOutcomes, OutcomeModel, SimulatedOutcomes, outcomes_of
from pipeline.rl import rollouts
from pipeline.rl.envs import EmbeddingEnv, SimEnv, VectorEnv
from pipeline.rl.sac import Agent
from pipeline.runs import ClipInputs, Encoding, PolicyMetadata, RunDirectory
from pipeline.runs.on_logs import on_logs
from pipeline.tasks import EPISODE_STEPS, load_task
from pipeline.training.device_rows import DeviceRows
from pipeline.training.frame_cache import FrameCache
from pipeline.training.from_logs import LogsPlan, plan_on_logs

logger = logging.getLogger(__name__)

# Settings that a run may be continued with: files, whose contents are compared and not their paths, and the device.
MAY_DIFFER = ("out", "embeddings", "novelty", "task", "device")
VALIDATION_DRAWS = 12_000  # sampled steps per validation, as many as 200 episodes

Progress = Callable[[int, int, str], None]
Judge = Callable[[Agent, OutcomeModel, int, np.random.Generator], pd.DataFrame]  # int: draws per step; returns steps


class Source(NamedTuple):
    """The data of training and validation; observations are rows of `table` or `clips`, or else states."""

    device: torch.device
    env: VectorEnv
    model: OutcomeModel
    judge: Judge  # the policy's steps on held-out data
    draws: int  # of each action's outcome in a validation
    validation: str
    metadata: PolicyMetadata
    held_out: str
    embeddings: np.ndarray | None = None  # [N, 128] as observed
    table: DeviceRows | None = None  # of these embeddings
    train_rows: np.ndarray | None = None  # [n] rows of the table for training
    novelty: np.ndarray | None = None  # [N] weights
    clips: FrameCache | None = None  # for --source video
    initial: Agent | None = None  # the policy that training starts from
    plan: LogsPlan | None = None  # if outcomes are learned from logs
    evaluate_on_logs: Callable[[Agent], dict[str, Any] | None] = lambda agent: None

    def look_up(self, observations: np.ndarray | torch.Tensor) -> torch.Tensor:
        """The agent's input: states [B, 4] unchanged, rows [B] as embeddings [B, 128] or clips."""
        if self.clips is not None:
            return self.clips.look_up(observations)
        if self.table is not None:
            return self.table.look_up(observations)
        return torch.as_tensor(observations, device=self.device)

    @property
    def is_on_device(self) -> bool:
        """Whether updates read nothing from the host, and their inputs keep their shape."""
        if self.clips is not None:
            return self.clips.is_frozen
        return self.table is None or self.table.is_on_device

    def latents(self, agent: Agent, rows: np.ndarray) -> torch.Tensor:
        """Clips [n] encoded by the agent's encoder, [n, Z]."""
        if self.clips is not None:
            assert isinstance(agent.encoder, encoders.ClipEncoder)
            return torch.from_numpy(self.clips.embeddings(agent.encoder, rows))
        with torch.no_grad():
            return agent.encoder(self.look_up(rows))

    def validate(self, agent: Agent, rng: np.random.Generator) -> pd.DataFrame:
        """The policy's steps on held-out data."""
        return self.judge(agent, self.model, self.draws, rng)


def check(cfg: TrainConfig) -> None:
    """VtpError if a run with these settings could not start."""
    if not isinstance(cfg, SimTrainConfig) and not storage.fetch(cfg.embeddings).is_file():
        raise VtpError(
            f"no embeddings at {cfg.embeddings}; make them with `vtp extract VIDEOS --out {cfg.embeddings}`, "
            "or train without video: --source sim",
            code="embeddings-missing",
        )
    run = RunDirectory(cfg.out)
    places = [run, *(run.seed(seed) for seed in ([] if cfg.seeds is None else parse_seeds(cfg.seeds)))]
    reads = [] if cfg.init is None else RunDirectory(cfg.init).read
    keep_inputs(cfg, [file for place in places for file in place.written], reads=reads)


def open_source(
    cfg: TrainConfig,
    rng: np.random.Generator,
    model: OutcomeModel | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Source:
    """Open the source: its environments, outcome model and validation.

    model: an outcome model to use instead of the source's own. progress: told of slow steps. VtpError if the policy of
    `init` was trained on other inputs.
    """
    device = devices.choose(cfg.device)
    source = (
        _simulator(cfg, model, rng, device)
        if isinstance(cfg, SimTrainConfig)
        else _stored_clips(cfg, model, rng, device, progress)
    )
    if cfg.init is not None:
        initial, trained = runs.load_policy(cfg.init)
        runs.check_same_inputs(trained, source.metadata, cfg.init)
        source = source._replace(initial=initial)
    return source


def updates_in_bf16(cfg: TrainConfig, device: torch.device) -> bool:
    """Whether updates multiply in bf16: on a processor that has it, and on a GPU if they fine-tune an encoder."""
    return encoders.computes_in_bf16() if device.type == "cpu" else isinstance(cfg, VideoTrainConfig)


def _provenance(cfg: TrainConfig, device: torch.device) -> dict[str, str | int | float]:
    return {
        "vtp_version": __version__,
        "torch": str(torch.__version__),
        "device": devices.name_of(device),
        "update_precision": "bf16" if updates_in_bf16(cfg, device) else "fp32",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(cfg),
    }


def _simulator(
    cfg: SimTrainConfig, model: OutcomeModel | None, rng: np.random.Generator, device: torch.device
) -> Source:
    own = SimulatedOutcomes(load_task(cfg.task).in_scenario(cfg.scenario))
    if model is None:
        model = own
    assert isinstance(model, SimulatedOutcomes)
    metadata = PolicyMetadata(
        source="sim", task=model.task, seed=cfg.seed, outcome_model=model.description, is_labelled=True,
        provenance=_provenance(cfg, device),
    )  # fmt: skip

    def judge(agent: Agent, model: OutcomeModel, draws: int, rng: np.random.Generator) -> pd.DataFrame:
        assert isinstance(model, SimulatedOutcomes)
        return rollouts.in_simulator(agent, model, episodes=rollouts.SIM_EPISODES, steps=EPISODE_STEPS, rng=rng)

    env = SimEnv(model, cfg.num_envs, reward_window=cfg.reward_window, rng=rng)
    return Source(device, env, model, judge, 1, "simulator", metadata, "the simulator, from its state")


def _stored_clips(
    cfg: EmbeddingsTrainConfig | VideoTrainConfig,
    model: OutcomeModel | None,
    rng: np.random.Generator,
    device: torch.device,
    progress: Progress,
) -> Source:
    progress(0, 1, "embeddings")
    data = dataset.read_embeddings(cfg.embeddings, scratch=cfg.out)
    if isinstance(cfg, VideoTrainConfig) and data.attrs["backbone"] != "r3d_18":
        raise VtpError(
            f"--source video fine-tunes R3D-18, but {cfg.embeddings} was made with {data.attrs['backbone']}; "
            "extract with --backbone r3d_18, or use --source embeddings",
            code="backbone-not-trainable",
        )
    videos, held_out, how = dataset.split_rows(data)
    train_rows = dataset.rows_in(videos)
    novelty = None if cfg.novelty is None else dataset.read_novelty_weights(cfg.novelty, data.content_sha256)
    _log_clip_weights(cfg)
    plan = None
    if model is None:
        progress(0, 1, "outcomes")
        model = outcomes_of(data, cfg.task, cfg.outcomes, train_rows)
        _log_outcome_model(data, model)
        if isinstance(model, LearnedOutcomes):
            plan = plan_on_logs(
                cfg, model, data.offset, lambda done, total: progress(done, total, "cross-validation on the logs")
            )
            model = plan.model
    env = EmbeddingEnv(model, cfg.num_envs, videos=videos, reward_window=cfg.reward_window, rng=rng)
    clips = embeddings = centre = None
    if isinstance(cfg, VideoTrainConfig):
        rows = np.concatenate([train_rows, held_out])
        clips = FrameCache(RunDirectory(cfg.out).frame_cache, data, rows, frame_size=cfg.frame_size, device=device)
    else:
        if cfg.centre == "video":
            _check_contexts_vary(cfg, data, model)
            centre = encoders.moments(data.embeddings, train_rows)[0].tolist()
        embeddings = runs.observed(data, centre, scratch=cfg.out)
    of_held_out = dataset.video_of(data, held_out)

    def judge(agent: Agent, model: OutcomeModel, draws: int, rng: np.random.Generator) -> pd.DataFrame:
        if embeddings is not None:
            observed = embeddings[held_out]
        else:
            assert clips is not None and isinstance(agent.encoder, encoders.ClipEncoder)
            observed = clips.embeddings(agent.encoder, held_out)
        return rollouts.on_clips(agent, model, observed, held_out, video=of_held_out, draws=draws, rng=rng)

    def evaluate_on_logs(agent: Agent) -> dict[str, Any] | None:
        assert isinstance(model, LearnedOutcomes)
        return on_logs(model, data, judge(agent, model, 1, np.random.default_rng(cfg.seed)))

    encoding = Encoding.of(data)
    inputs = ClipInputs(
        embeddings=storage.name_of(cfg.embeddings.resolve()),
        content_sha256=data.content_sha256,
        novelty_sha256=None if novelty is None else hashlib.sha256(novelty.tobytes()).hexdigest(),
        encoding=encoding,
        centre=centre,
        frame_size=cfg.frame_size if isinstance(cfg, VideoTrainConfig) else None,
        encoder_layers=cfg.encoder_layers if isinstance(cfg, VideoTrainConfig) else None,
    )
    metadata = PolicyMetadata(
        source=cfg.source,
        task=model.task,
        seed=cfg.seed,
        outcome_model=model.description,
        is_labelled=model.is_labelled,
        provenance=_provenance(cfg, device)
        | encoding.model_dump()
        | {
            "embeddings": storage.name_of(cfg.embeddings),
            "embeddings_sha256": data.content_sha256,
            "novelty": str(cfg.novelty) if novelty is not None else "none: every clip weighs 1",
            "num_train_clips": len(train_rows),
            "held_out": f"{how}; they also chose the checkpoint",
        }
        | ({} if plan is None else plan.described()),
        outcomes="simulator" if plan is None else "logged",
        clips=inputs,
        projector=encoders.Projector(
            data.projector_mean, data.projector_components, float(data.projector_scale), encoding.projector,
            data.projector_norm,
        ),
    )  # fmt: skip
    draws = max(1, VALIDATION_DRAWS // len(held_out))
    return Source(
        device, env, model, judge, draws, "held-out clips" if plan is None else "held-out logs", metadata, how,
        embeddings=embeddings, table=None if embeddings is None else DeviceRows("embeddings", embeddings, device),
        train_rows=train_rows, novelty=novelty, clips=clips, plan=plan,
        evaluate_on_logs=Source._field_defaults["evaluate_on_logs"] if plan is None else evaluate_on_logs,
    )  # fmt: skip


def _log_clip_weights(cfg: EmbeddingsTrainConfig | VideoTrainConfig) -> None:
    beside = cfg.embeddings.with_name("novelty.h5")
    if cfg.novelty is not None:
        logger.info("replay is weighted by novelty: %s", cfg.novelty)
    elif beside.is_file():
        logger.info("every clip weighs 1 in replay; to use the weights in %s, add --novelty", beside)


def _log_outcome_model(data: dataset.Embeddings, model: OutcomeModel) -> None:
    logger.info("outcome model: %s", model.description)
    is_logged = data.logs is not None and np.isfinite([data.logs.attempts, data.logs.errors]).any()
    if is_logged and not isinstance(model, LearnedOutcomes):
        logger.warning("logged attempts and errors are not used: outcomes are simulated")


def _check_contexts_vary(cfg: EmbeddingsTrainConfig, data: dataset.Embeddings, model: OutcomeModel) -> None:
    """VtpError if each video shows only one of several contexts: subtracting its mean would remove the context."""
    shown = [set(contexts.tolist()) for contexts in np.split(model.context, data.offset[1:-1])]
    if len(set().union(*shown)) > 1 and all(len(contexts) <= 1 for contexts in shown):
        raise VtpError(
            f"every video of {cfg.embeddings} shows only one context, which --centre video would remove with the mean "
            "of the video; use --centre corpus",
            code="centre-hides-contexts",
        )


def refuse_other_settings(run: RunDirectory, settings: TrainConfig, *, except_for: Sequence[str] = MAY_DIFFER) -> None:
    """VtpError if a run was started with other settings; those in `except_for` may differ."""
    started, wanted = run.read_settings(), settings.model_dump(mode="json")
    for name in wanted:
        if name not in except_for and started.get(name) != wanted[name]:
            raise VtpError(
                f"{run} was started with {name}={started.get(name)}, now {name}={wanted[name]}; choose another --out, "
                "or add --overwrite",
                code="run-other-settings",
            )


def command_line(cfg: TrainConfig) -> str:
    """The command that trains with these settings; it names those that differ from the defaults."""
    defaults = train_config(source=cfg.source, reward_window=cfg.reward_window).model_dump()  # gamma's depends on both
    defaults["reward_window"] = "step"
    words = ["vtp", "train", "--source", cfg.source]
    for name, default in defaults.items():
        value = getattr(cfg, name)
        if not isinstance(value, bool) and value != default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
