"""The evaluate stage: validate a run's policy in closed loop, in the simulator or on held-out clips."""

from __future__ import annotations

import contextlib
import copy
import logging
import shlex
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from pipeline import dataset, devices, encoders, storage, synthetic, video
from pipeline.config import EvaluateConfig
from pipeline.dataset import rereading
from pipeline.errors import TryAgainError, VtpError
from pipeline.evaluate.closed_loop import PIXEL_STREAM, PixelObserver, Progress, from_pixels
from pipeline.files import atomic_folder, remove_leftovers
from pipeline.kept_inputs import keep_inputs
from pipeline.outcomes import LearnedOutcomes, OutcomeModel, SimulatedOutcomes, outcomes_of
from pipeline.rl.rollouts import SIM_EPISODES, in_simulator, on_clips
from pipeline.rl.sac import Agent
from pipeline.runs import (
    OutcomesKind,
    PolicyMetadata,
    RunDirectory,
    check_weights,
    load_embeddings,
    load_policy,
    observed,
    write_summary,
)
from pipeline.runs.on_logs import on_logs
from pipeline.tasks import Task, repriced
from pipeline.writer_lock import one_writer

logger = logging.getLogger(__name__)

PIXEL_EPISODES = 8
Validation = Literal["simulator", "closed loop from pixels", "held-out logs", "held-out clips"]


def run(cfg: EvaluateConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Validate the run's best policy; write summary, steps and frames to RUN/evaluation; returns the summary.

    With changed scenes the folder is RUN/changed. Earlier results are replaced when the new ones are complete.
    """
    run_directory = RunDirectory(cfg.run)
    out = run_directory.changed if cfg.scenes == "changed" else run_directory.evaluation
    agent, metadata = load_policy(cfg.run)
    validation = choose_validation(cfg, metadata)
    clips = metadata.clips
    keep_inputs(cfg, [out.path], reads=[] if clips is None else [storage.path_of(clips.embeddings)])
    with one_writer(out.path.with_name(f".{out.path.name}.lock"), out.path) as lock:
        remove_leftovers(run_directory.path, out.path.name)
        was_finished = _finished_at(run_directory)
        with atomic_folder(out.path) as temporary:
            summary = _run(cfg, agent, metadata, validation, RunDirectory(temporary), progress)
            lock.check()
            if _finished_at(run_directory) != was_finished:
                raise TryAgainError(
                    f"{cfg.run} was trained further during this validation; run the same command again",
                    code="run-changed",
                )
    return summary


def _finished_at(run: RunDirectory) -> int | None:
    """The time when training was finished, in ns; None if it is not."""
    try:
        return run.finished.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _run(
    cfg: EvaluateConfig, agent: Agent, metadata: PolicyMetadata, validation: Validation, out: RunDirectory,
    progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    started = time.monotonic()
    task = metadata.task if cfg.task is None else repriced(metadata.task, cfg.task)
    model: OutcomeModel
    off_policy = None
    held_out = _HeldOut(cfg, agent, metadata, task) if _needs_held_out(validation, metadata) else None
    device = None if held_out is None else held_out.device
    if held_out is not None and isinstance(held_out.model, LearnedOutcomes):
        off_policy = on_logs(held_out.model, held_out.data, held_out.steps)
    if validation in ("held-out clips", "held-out logs"):
        assert held_out is not None
        model, steps = held_out.model, held_out.steps
    else:
        model = SimulatedOutcomes(task)
        if validation == "simulator":
            rng, episodes = np.random.default_rng([PIXEL_STREAM, cfg.seed]), cfg.episodes or SIM_EPISODES
            steps = in_simulator(agent, model, episodes=episodes, steps=cfg.steps, rng=rng)
        else:
            with _observer(agent, metadata, cfg.device) as (see, device):
                steps = from_pixels(
                    agent, model, see, episodes=cfg.episodes or PIXEL_EPISODES, steps=cfg.steps, seed=cfg.seed,
                    out=out, changed=cfg.scenes == "changed", progress=progress,
                )  # fmt: skip
    return write_summary(
        RunDirectory(cfg.run), model, steps, out=out, metadata=metadata, validation=validation,
        evaluation=_settings(cfg, validation, device), stage="evaluate", wall_s=time.monotonic() - started,
        off_policy=off_policy,
    )  # fmt: skip


def choose_validation(cfg: EvaluateConfig, metadata: PolicyMetadata) -> Validation:
    """The kind of validation; VtpError if it is impossible, or if a setting would have no effect."""
    chosen: Validation
    if metadata.source == "sim":
        if cfg.validation != "auto":
            raise VtpError(
                f"{cfg.run} was trained on the simulator's state and can only be validated on that; "
                f"leave out --validation {cfg.validation}",
                code="validation-impossible",
            )
        chosen = "simulator"
    elif cfg.validation == "pixels":
        synthetic.renderer_of(metadata.task)
        chosen = "closed loop from pixels"
    elif cfg.validation == "auto" and metadata.is_labelled and _is_rendered(metadata.task):
        chosen = "closed loop from pixels"
    elif cfg.validation == "logs" or (cfg.validation == "auto" and metadata.outcomes == "logged"):
        chosen = "held-out logs"
    else:
        chosen = "held-out clips"
    if cfg.scenes == "changed" and chosen != "closed loop from pixels":
        raise VtpError(
            "--scenes changed needs validation from pixels, which this run does not use; leave it out",
            code="setting-without-effect",
        )
    if cfg.device.startswith("cuda") and metadata.source != "video" and chosen != "closed loop from pixels":
        raise VtpError(
            f"--device {cfg.device} has no effect: a GPU only encodes clips, and this validation encodes none; "
            "leave it out",
            code="setting-without-effect",
        )
    if chosen in ("held-out clips", "held-out logs"):
        for name in ("episodes", "steps"):
            if name in cfg.model_fields_set and getattr(cfg, name) is not None:
                raise VtpError(
                    f"--{name} {getattr(cfg, name)} has no effect on held-out clips, which are all used; leave it out",
                    code="setting-without-effect",
                )
    return chosen


def _is_rendered(task: Task) -> bool:
    """Whether the task can be simulated and rendered; logs the reason if not."""
    if task.step_s is None:
        logger.info("no validation from pixels: task %s has no step_s", task.name)
        return False
    try:
        synthetic.renderer_of(task)
    except VtpError as error:
        logger.info("no validation from pixels: %s", str(error).partition(";")[0])
        return False
    return True


class _HeldOut:
    """The clips that training held out, an outcome model of all clips, and the policy's steps on the held-out ones.

    With --validation clips outcomes are simulated, with logs they are learned from the training clips' logs, else the
    outcome model is the one that the policy was trained with.
    """

    def __init__(self, cfg: EvaluateConfig, agent: Agent, metadata: PolicyMetadata, task: Task):
        clips, _ = metadata.of_clips()
        self.data = load_embeddings(clips)
        _, rows, _ = dataset.split_rows(self.data)
        kinds: dict[str, OutcomesKind] = {"clips": "simulator", "logs": "logged"}
        kind = kinds.get(cfg.validation, metadata.outcomes)
        found = outcomes_of(self.data, kind=kind, rows=dataset.train_rows(self.data)).with_task(task)
        if isinstance(found, LearnedOutcomes):
            found = found.with_caution(metadata.caution)
        self.model, self.device = found, None
        if metadata.source == "embeddings":
            see = observed(self.data, clips.centre)[rows]
        else:
            see, self.device = _see(agent, self.data, rows, cfg.device)
        rng = np.random.default_rng([PIXEL_STREAM, cfg.seed])
        self.steps = on_clips(agent, self.model, see, rows, video=dataset.video_of(self.data, rows), rng=rng)


def _needs_held_out(validation: Validation, metadata: PolicyMetadata) -> bool:
    return validation in ("held-out clips", "held-out logs") or metadata.outcomes == "logged"


def _see(agent: Agent, data: dataset.Embeddings, rows: np.ndarray, device: str) -> tuple[np.ndarray, str]:
    """Embeddings [n, 128] of clips `rows` [n], in rising order, by a run's fine-tuned encoder; its device's name."""
    encoder, device = _fine_tuned(agent, device)
    size = encoders.resized(encoder.frame_size)
    clips = rereading.read_clips(data, range(data.num_videos), frame_size=size, wanted=rows)
    return np.concatenate([encoder.see(frames) for _, frames in clips]), device


def _fine_tuned(agent: Agent, device: str) -> tuple[encoders.ClipEncoder, str]:
    """The encoder of a run on video, on the device, and the device's name; the agent stays on the processor."""
    assert isinstance(agent.encoder, encoders.ClipEncoder)
    chosen = devices.choose(device)
    encoder = agent.encoder if chosen.type == "cpu" else copy.deepcopy(agent.encoder).to(chosen)
    return encoder, devices.name_of(chosen)


def _settings(cfg: EvaluateConfig, validation: Validation, device: str | None) -> dict[str, Any]:
    """The settings of the validation, and the command that repeats it; stored clips determine steps and episodes.

    device: the name of the one that encoded clips, if any were encoded.

    The command names every setting, so that it does not depend on future defaults.
    """
    settings: dict[str, Any] = {"seed": cfg.seed}
    if validation not in ("held-out clips", "held-out logs"):
        default = SIM_EPISODES if validation == "simulator" else PIXEL_EPISODES
        settings |= {"episodes": cfg.episodes or default, "steps": cfg.steps}
    for name in ("validation", "scenes", "task"):
        if getattr(cfg, name) != EvaluateConfig.model_fields[name].default:
            settings[name] = getattr(cfg, name)
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    if cfg.device != "auto":
        flags += ["--device", cfg.device]
    if device is not None:
        settings["device"] = device
    return settings | {"command": shlex.join(["vtp", "evaluate", str(cfg.run), *flags])}


@contextlib.contextmanager
def _observer(agent: Agent, metadata: PolicyMetadata, device: str) -> Iterator[tuple[PixelObserver, str]]:
    """A decoder with the encoder and projector of the policy's training, and the name of the encoder's device.

    VtpError if the weights differ.
    """
    clips, projector = metadata.of_clips()
    encoding = clips.encoding
    if (encoding.clip_len, encoding.fps) != (synthetic.CLIP_LEN, synthetic.FPS):
        raise VtpError(
            f"the policy was trained on clips of {encoding.clip_len} frames at {encoding.fps:g} fps, but rendered "
            f"ones have {synthetic.CLIP_LEN} at {synthetic.FPS}; extract with --clip-len {synthetic.CLIP_LEN} "
            f"--fps {synthetic.FPS}",
            code="clips-not-renderable",
        )
    if metadata.source == "video":
        fine_tuned, device = _fine_tuned(agent, device)
        with video.Decoder(frame_size=encoders.resized(fine_tuned.frame_size)) as decoder:
            yield PixelObserver(fine_tuned.see, decoder), device
        return
    encoder = encoders.load_encoder(encoding.backbone, encoding.weights, encoding.precision, device=device)
    check_weights(encoder.weights_sha256, clips)
    centre = None if clips.centre is None else encoders.RunningCentre(np.array(clips.centre))

    def embed(frames: np.ndarray) -> np.ndarray:
        embeddings = projector.project(encoder.features(frames))
        return embeddings if centre is None else centre(embeddings)

    with video.Decoder(frame_size=encoder.frame_size) as decoder:
        yield PixelObserver(embed, decoder), encoder.device
