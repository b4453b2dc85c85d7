"""Train a policy: SAC on stored embeddings, on video or on the simulator, under an economic reward.

`run` is the loop: step, log, validate, save. An interrupted run resumes from its newest checkpoint and equals an
uninterrupted one bit for bit.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline import devices
from pipeline.callable_stage import make_callable
from pipeline.config import TrainConfig
from pipeline.errors import TryAgainError, VtpError
from pipeline.files import make_folder, remove_leftovers, save_config, write_json
from pipeline.processes import interrupts_held
from pipeline.rl.rollouts import validation_profit
from pipeline.run_directory import check_new_run, finished_already
from pipeline.runs import PolicyMetadata, RunDirectory, load_policy, save_checkpoint, write_summary
from pipeline.training import Record, Source, Trainer, check, newest, open_source, refuse_other_settings, save, slim
from pipeline.training.checkpoints import remove_previous
from pipeline.training.cloning import clone
from pipeline.writer_lock import WriterLock, one_writer

logger = logging.getLogger(__name__)

CHECKPOINT_S = 60.0  # at most this much work is repeated after a kill
PLACES = ("command", "embeddings", "novelty")  # of the provenance: they name files, which may have been moved

Provenance = dict[str, str | int | float]
Progress = Callable[[int, int, dict[str, float] | str], None]  # an episode's row, or text on preparations


def _no_progress(done: int, total: int, news: dict[str, float] | str) -> None:
    pass


def run(cfg: TrainConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train, validate and write the run directory; returns its summary."""
    tell = progress or _no_progress
    tell(0, 1, "inputs")
    check(cfg)
    remedy = "lower --batch-size or --buffer-size, or use --device cpu"
    with one_writer(RunDirectory(cfg.out).lock, cfg.out) as lock, devices.enough_memory(remedy):
        return _run(cfg, tell, lock)


def _run(cfg: TrainConfig, tell: Progress, lock: WriterLock) -> dict[str, Any]:
    started = time.monotonic()
    env_rng, rng, validation_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(cfg.seed).spawn(3))
    source = open_source(cfg, env_rng, progress=tell)
    run_directory, metadata = RunDirectory(cfg.out), source.metadata
    checkpoint = begin(cfg, metadata)
    if checkpoint and "trainer" not in checkpoint:  # all was written but the mark that the run is finished
        return finish(run_directory, checkpoint["episode"])
    trainer = Trainer(cfg, source, rng=rng, progress=tell)
    best_profit, since_best, spent_s = -np.inf, 0, 0.0
    if checkpoint:
        trainer.load_state_dict(checkpoint["trainer"], checkpoint["agent"], checkpoint["episode"])
        best_profit, since_best, spent_s = (checkpoint["run"][name] for name in ("best_profit", "since_best", "wall_s"))
        before = PolicyMetadata.from_state(checkpoint["meta"], str(run_directory.last))
        metadata = dataclasses.replace(metadata, provenance=_continued(before.provenance, metadata.provenance))
        logger.info("resuming after episode %d", trainer.episode)
    record = Record(run_directory, source.model.task, checkpoint and checkpoint["record"])
    logger.info("outcome model: %s; validation: %s", source.model.description, source.validation)

    def policy() -> dict[str, Any]:
        return {"agent": trainer.policy_state(), "meta": metadata.to_state(), "episode": trainer.episode}

    def keep() -> None:
        lock.check()
        save(
            run_directory,
            policy() | {
                "trainer": trainer.state_dict(),
                "record": record.sync(trainer.episode),
                "run": {
                    "best_profit": best_profit, "since_best": since_best,
                    "wall_s": spent_s + time.monotonic() - started,
                },
            },
        )  # fmt: skip

    def validate() -> None:
        nonlocal best_profit, since_best
        lock.check()
        steps = source.validate(trainer.agent, np.random.default_rng(cfg.seed))
        profit = validation_profit(source.model, steps, np.random.default_rng(cfg.seed))
        record.validation(trainer.episode, profit)
        since_best += 1
        if profit > best_profit:
            best_profit, since_best = profit, 0
            save_checkpoint(run_directory.best, policy())

    kept_at = time.monotonic()
    with interrupts_held() as interrupted:
        while trainer.episode < cfg.episodes and (cfg.patience is None or since_best < cfg.patience):
            validations_before = trainer.episode * cfg.evaluations // cfg.episodes
            rows = trainer.step()
            if rows:
                record.episodes(rows)
            for row in rows:
                tell(int(row["episode"]), cfg.episodes, row)
            is_due = trainer.episode * cfg.evaluations // cfg.episodes > validations_before
            if is_due:
                validate()
            if is_due or interrupted.is_set() or time.monotonic() - kept_at > CHECKPOINT_S:
                keep()
                kept_at = time.monotonic()
            if interrupted.is_set():
                done = f"{trainer.episode} of {cfg.episodes} episodes"
                raise TryAgainError(
                    f"interrupted after {done}; run the same command again to continue", code="command-interrupted"
                )
    record.close()

    write_json(run_directory.estimator, {"estimator": trainer.revenue_split.skill()})
    if not trainer.is_learning:
        raise VtpError(
            f"{cfg.episodes} episodes have fewer steps than --warmup-steps {cfg.warmup_steps}, so nothing was learned; "
            "raise --episodes or lower --warmup-steps",
            code="nothing-learned",
        )
    if trainer.episode < cfg.episodes:
        logger.info("no improvement in %d validations: stopped after episode %d", cfg.patience, trainer.episode)
    if source.plan is not None and not source.plan.is_proven:
        _clone_logging_policy(trainer, source, cfg)
        save_checkpoint(run_directory.best, policy())
    best, metadata = load_policy(cfg.out)
    best.to(source.device)
    lock.check()
    _remove_evaluations(run_directory)
    write_summary(
        run_directory,
        source.model,
        source.validate(best, validation_rng),
        off_policy=source.evaluate_on_logs(best),
        metadata=metadata,
        validation=source.validation,
        evaluation={"seed": cfg.seed, "command": metadata.provenance["command"]},
        stage="train",
        wall_s=spent_s + time.monotonic() - started,
    )
    slim(run_directory, policy())
    return finish(run_directory, trainer.episode)


def _continued(before: Provenance, now: Provenance) -> Provenance:
    """The provenance of a resumed run; it names each device that the run has been on, in order."""
    names = str(before.get("device", "cpu")).split(", then ")
    if names[-1] != now["device"]:
        logger.warning(
            "the run was started on %s and continues on %s: it ends differently from an uninterrupted one, because "
            "arithmetic and random numbers differ between devices",
            names[-1], now["device"],
        )  # fmt: skip
        names.append(str(now["device"]))
    places_now = {name: now[name] for name in PLACES if name in now}
    return before | places_now | {"device": ", then ".join(names)}


def _remove_evaluations(run: RunDirectory) -> None:
    """Remove evaluations made before training was finished: they are of another policy."""
    for folder in (run.evaluation.path, run.changed.path):
        if folder.exists():
            logger.warning("removing %s: it evaluates an earlier policy, made before training was finished", folder)
            shutil.rmtree(folder)


def finish(run: RunDirectory, episode: int) -> dict[str, Any]:
    """Remove what only an unfinished run needs, and mark the run finished; returns its summary."""
    summary = run.read_summary()
    remove_previous(run)
    shutil.rmtree(run.frame_cache, ignore_errors=True)
    write_json(run.finished, {"episode": episode})
    return summary


def _clone_logging_policy(trainer: Trainer, source: Source, cfg: TrainConfig) -> None:
    assert source.plan is not None
    logged = source.plan.model.steps
    clone(
        trainer.agent, source.latents(trainer.agent, logged.rows), torch.from_numpy(logged.actions).float(),
        noise=cfg.observation_noise, seed=cfg.seed,
    )  # fmt: skip


def begin(cfg: TrainConfig, metadata: PolicyMetadata) -> dict[str, Any] | None:
    """Make the run directory; returns the checkpoint from which an unfinished run in it resumes, None for a new run.

    The checkpoint of a completed training has no trainer. VtpError if the directory holds a finished run, or one with
    other settings or data; `overwrite` removes it instead.
    """
    make_folder(cfg.out)
    run = RunDirectory(cfg.out)
    check_new_run(cfg.out, seeds=False, overwrite=cfg.overwrite)
    for folder in (run.path, run.frames, run.frame_cache):
        remove_leftovers(folder)
    settings = cfg.model_copy(update={"overwrite": False})
    if not cfg.overwrite:
        checkpoint = newest(run)
        if checkpoint is None and run.summary.exists():
            raise finished_already(run)
        if checkpoint:
            refuse_other_settings(run, settings)
            _refuse_other_data(run, PolicyMetadata.from_state(checkpoint["meta"], str(run.last)), metadata)
            save_config(run.config, settings)
            return checkpoint
    if run.forget():
        logger.warning("%s: replacing the earlier run in it", run)
    save_config(run.config, settings)
    return None


def _refuse_other_data(run: RunDirectory, started: PolicyMetadata, wanted: PolicyMetadata) -> None:
    if started.task != wanted.task:
        raise VtpError(
            f"{run} was started on task {started.task}, now it is {wanted.task}, or its file has changed; restore "
            "it, choose another --out, or add --overwrite",
            code="run-other-data",
        )
    for name, what in (("content_sha256", "embeddings"), ("novelty_sha256", "novelty weights")):
        ours, theirs = (str(getattr(metadata.clips, name, None) or "none")[:12] for metadata in (started, wanted))
        if ours != theirs:
            raise VtpError(
                f"{run} was started on {what} {ours}, which are now {theirs}; restore them, choose another --out, "
                "or add --overwrite",
                code="run-other-data",
            )


make_callable(__name__)
