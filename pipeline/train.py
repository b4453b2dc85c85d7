"""Train a policy: SAC on stored embeddings, on video or on the simulator, under an economic reward.

`run` is the loop: step, log, validate, keep. An interrupted run goes on from its newest checkpoint, bit for bit as if
nothing had happened.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from pipeline import evaluate
from pipeline.config import TrainConfig
from pipeline.errors import TryAgainError, VtpError
from pipeline.files import make_folder, save_config, write_json
from pipeline.processes import interrupts_held
from pipeline.rl.envs import value_work
from pipeline.rl.sac import save_checkpoint
from pipeline.synthetic import dynamics
from pipeline.training import BEST, FOOTAGE, LAST, PREVIOUS, Record, Trainer, check, newest, open_source, save, slim

logger = logging.getLogger(__name__)

RUN_FILES = (
    *(f"{name}{suffix}" for name in (LAST, PREVIOUS, BEST) for suffix in ("", ".sha256")),
    "metrics.csv", "validations.csv", "validation.csv", "summary.json", "report.html", "data_value.json",
    "policy.pt", "policy.onnx", "policy.safetensors", "tensorboard", "frames", evaluate.CHANGED, "experiments",
)  # fmt: skip
OUTCOMES_A_STEP = 10  # drawn of each action of a validation
CHECKPOINT_S = 60.0  # at most that much work is done again after a kill

Progress = Callable[[int, int, dict[str, float] | str], None]  # an episode's row, or what is made ready before


def run(cfg: TrainConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train, validate and write the run directory; returns its summary."""
    started = time.monotonic()
    check(cfg)
    env_rng, rng, validation_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(cfg.seed).spawn(3))
    source = open_source(cfg, env_rng)
    checkpoint = begin(cfg, source.meta)
    trainer = Trainer(cfg, source, rng=rng, progress=progress or (lambda done, total, text: None))
    best_profit, since_best, spent_s = -np.inf, 0, 0.0
    if checkpoint:
        trainer.load_state_dict(checkpoint["trainer"], checkpoint["agent"], checkpoint["episode"])
        best_profit, since_best, spent_s = (checkpoint["run"][name] for name in ("best_profit", "since_best", "wall_s"))
        source.meta.update(checkpoint["meta"])
        logger.info("going on after episode %d", trainer.episode)
    record = Record(cfg.out, checkpoint and checkpoint["record"])
    logger.info("outcome model: %s; validation: %s", source.meta["outcome_model"], source.validation)

    def policy() -> dict[str, Any]:
        return {"agent": trainer.agent.state_dict(), "meta": source.meta, "episode": trainer.episode}

    def keep() -> None:
        save(
            cfg.out,
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
        steps = source.validate(trainer.agent, np.random.default_rng(cfg.seed))
        profit = sampled_profit(source.scenario, steps, np.random.default_rng(cfg.seed))
        record.validation(trainer.episode, profit)
        since_best += 1
        if profit > best_profit:
            best_profit, since_best = profit, 0
            save_checkpoint(cfg.out / BEST, policy())

    kept_at = time.monotonic()
    with interrupts_held() as interrupted:
        while trainer.episode < cfg.episodes and (cfg.patience is None or since_best < cfg.patience):
            validations_before = trainer.episode * cfg.evaluations // cfg.episodes
            rows = trainer.step()
            if rows:
                record.episodes(rows)
            for row in rows if progress else ():
                progress(row["episode"], cfg.episodes, row)
            is_due = trainer.episode * cfg.evaluations // cfg.episodes > validations_before
            if is_due:
                validate()
            if is_due or interrupted.is_set() or time.monotonic() - kept_at > CHECKPOINT_S:
                keep()
                kept_at = time.monotonic()
            if interrupted.is_set():
                done = f"{trainer.episode} of {cfg.episodes} episodes"
                raise TryAgainError(f"interrupted after {done}; run the same command again to go on")
    record.close()

    write_json(cfg.out / "data_value.json", {"estimator": trainer.ledger.skill()})
    if not trainer.is_learning:
        raise VtpError(
            f"{cfg.episodes} episodes gave fewer steps than --warmup-steps {cfg.warmup_steps}: nothing was learned; "
            "raise --episodes or lower --warmup-steps"
        )
    if trainer.episode < cfg.episodes:
        logger.info("no better validation in %d: stopped after episode %d", cfg.patience, trainer.episode)
    best, meta = evaluate.load_run(cfg.out)
    summary = evaluate.write_summary(
        cfg.out,
        source.scenario,
        source.validate(best, validation_rng),
        meta=meta,
        validation=source.validation,
        evaluation={"seed": cfg.seed, "command": source.meta["provenance"]["command"]},
        stage="train",
        wall_s=spent_s + time.monotonic() - started,
    )
    slim(cfg.out, policy())
    shutil.rmtree(cfg.out / FOOTAGE, ignore_errors=True)
    return summary


def begin(cfg: TrainConfig, meta: dict[str, Any]) -> dict[str, Any] | None:
    """Make the run directory; returns the checkpoint that an unfinished run in it goes on from, None for a new one.

    VtpError where it holds a finished run or one of other settings or data, unless `overwrite`, which removes any.
    """
    make_folder(cfg.out)
    if any(cfg.out.glob("seed-*/config.yaml")):
        raise VtpError(f"{cfg.out} holds several seeds; choose another --out, or go on with --seeds")
    settings = cfg.model_copy(update={"overwrite": False})
    if not cfg.overwrite:
        if (cfg.out / "summary.json").exists():
            raise VtpError(f"{cfg.out} holds a run already; choose another --out, or add --overwrite")
        checkpoint = newest(cfg.out)
        if checkpoint and "trainer" in checkpoint:
            _refuse_other_settings(cfg.out, settings)
            _refuse_other_data(cfg.out, checkpoint["meta"], meta)
            return checkpoint
    if forget(cfg.out):
        logger.warning("%s: the earlier run in it is replaced", cfg.out)
    save_config(cfg.out / "config.yaml", settings)
    return None


def forget(run: Path) -> bool:
    """Remove what an earlier run left in its directory; whether there was anything."""
    earlier = [run / name for name in RUN_FILES if (run / name).exists()]
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return bool(earlier)


def _refuse_other_settings(run: Path, settings: TrainConfig) -> None:
    begun, wanted = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")), settings.model_dump(mode="json")
    for name in wanted:
        if begun.get(name) != wanted[name]:
            raise VtpError(
                f"{run} was begun with {name} {begun.get(name)}, not {wanted[name]}; choose another --out, "
                "or add --overwrite"
            )


def _refuse_other_data(run: Path, begun: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, what in (("content_sha256", "embeddings"), ("novelty_sha256", "novelty weights")):
        if begun.get(name) != wanted.get(name):
            ours, theirs = ((str(meta.get(name) or "none"))[:12] for meta in (begun, wanted))
            raise VtpError(
                f"{run} was begun on {what} {ours}, which are now {theirs}; restore them, choose another --out, "
                "or add --overwrite"
            )


def sampled_profit(scenario: dynamics.Scenario, steps: pd.DataFrame, rng: np.random.Generator) -> float:
    """Profit in $/h of sampled outcomes of the validation's actions: what may choose a policy.

    Drawn anew, so that policies that are compared with equal generators meet the same luck.
    """
    context, k = steps["context"].to_numpy(), len(scenario.contexts)
    rate, p_err = dynamics.dynamics(scenario, context, steps["speed"].to_numpy(), steps["care"].to_numpy())
    outcomes = dynamics.coupled_outcomes(rate, p_err, rng, OUTCOMES_A_STEP)
    attempts, errors = (np.bincount(context, counts.sum(0), minlength=k)[None] for counts in outcomes)
    hours = np.array([OUTCOMES_A_STEP * len(steps) / dynamics.STEPS_PER_HOUR])
    return float(value_work(scenario, attempts, errors, hours).profit[0])
