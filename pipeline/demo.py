"""Every stage on rendered demonstrations: simulate, extract, train on their logs, evaluate, experiments, report.

For comparison, a second policy is trained on the same embeddings with simulated outcomes instead of the logs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pipeline.evaluate as evaluation
import pipeline.extract as extraction
import pipeline.simulate as simulation
import pipeline.train as training
from pipeline import devices, report
from pipeline.config import (
    DemoConfig,
    ElasticityConfig,
    EmbeddingsTrainConfig,
    EvaluateConfig,
    ExtractConfig,
    FrontierConfig,
    ReportConfig,
    SimulateConfig,
    SpreadConfig,
    ValueConfig,
)
from pipeline.errors import VtpError
from pipeline.experiments import elasticity, frontier, spread, value
from pipeline.files import save_config, write_json
from pipeline.kept_inputs import DEMO, keep_others_from_demo
from pipeline.runs import RunDirectory
from pipeline.writer_lock import one_writer

# Many short videos rather than few long ones, because validation is in unseen kitchens. Subtracting each video's mean
# needs many mixtures of dishes, so the quick demo, with few videos, subtracts the corpus mean. Simulated outcomes are
# noisy samples and need more episodes than expected outcomes learned from logs.
FULL = {
    "videos": 96, "steps": 20, "logs_episodes": 8000, "simulator_episodes": 10_000, "centre": "video",
    "episodes": 8, "eval_steps": 30, "value_rounds": 2, "value_tolerance": 1.0,
}  # fmt: skip
QUICK = {
    "videos": 32, "steps": 8, "logs_episodes": 4000, "simulator_episodes": 6000, "centre": "corpus",
    "episodes": 8, "eval_steps": 8, "value_rounds": 2, "value_tolerance": 3.0,
}  # fmt: skip
WHENCE = {"logged": "learned from the demonstrations' logs", "simulator": "simulated, without logs"}
RATIO = ("oracle_ratio", "oracle_ratio_ci95")


def run(cfg: DemoConfig, *, stage: Callable[[str], Callable[..., None]]) -> dict[str, Any]:
    """Run every stage into `cfg.out`; returns the summary, whose wall_s is the time of all stages.

    stage: announces a stage by name and returns its progress callback.
    """
    with one_writer(cfg.out / ".demo.lock", cfg.out):
        return _run(cfg, stage)


def _run(cfg: DemoConfig, stage: Callable[[str], Callable[..., None]]) -> dict[str, Any]:
    started = time.monotonic()
    devices.choose(cfg.device)  # refused now, not after the rendering
    run = RunDirectory(cfg.out)
    keep_others_from_demo(cfg.out)
    save_config(cfg.out / DEMO, cfg)
    size = QUICK if cfg.quick else FULL
    embeddings = cfg.out / "embeddings.h5"
    manifest = simulation.run(
        SimulateConfig(out=cfg.out / "demos", videos=size["videos"], steps=size["steps"], seed=cfg.seed),
        progress=stage(f"simulate: {size['videos']} videos of {size['steps']} clips"),
    )
    result = extraction.run(
        ExtractConfig(source=str(manifest), out=embeddings, weights="auto", device=cfg.device),
        progress=stage("extract: R3D-18, one 128-D embedding per clip"),
    )
    if result.failures:
        raise VtpError(
            f"{len(result.failures)} rendered videos failed; see {embeddings.with_name('failures.jsonl')}",
            code="demo-failed",
        )
    simulator_path = cfg.out / "simulator-path"

    def trained(out: Path, outcomes: str) -> dict[str, Any]:
        training.run(
            EmbeddingsTrainConfig(
                out=out,
                embeddings=embeddings,
                episodes=size["logs_episodes" if outcomes == "logged" else "simulator_episodes"],
                centre=size["centre"],
                outcomes=outcomes,
                device=cfg.device,
                seed=cfg.seed,
                overwrite=True,
            ),
            progress=stage(f"train: SAC on the embeddings, outcomes {WHENCE[outcomes]}"),
        )
        return evaluation.run(
            EvaluateConfig(run=out, episodes=size["episodes"], steps=size["eval_steps"], device=cfg.device),
            progress=stage("evaluate: closed loop from pixels, in unseen kitchens"),
        )

    summary = trained(cfg.out, "logged")
    without_logs = trained(simulator_path, "simulator")
    summary["simulator_path"] = {name: without_logs[name] for name in ("profit_mean", *RATIO)}
    run_experiments(cfg, embeddings, size, progress=stage("experiments: frontier, elasticity, spread, data value"))
    wall_s = time.monotonic() - started
    summary["stages_wall_s"] |= {"the simulator path": without_logs["wall_s"]}
    summary["stages_wall_s"] |= {"simulate, extract, experiments": wall_s - sum(summary["stages_wall_s"].values())}
    summary["wall_s"] = wall_s
    for place in (run.evaluation, run):
        write_json(place.summary, summary)
    stage("report")
    report.run(ReportConfig(run=cfg.out))
    return summary


def run_experiments(
    cfg: DemoConfig, embeddings: Path, size: dict[str, Any], *, progress: Callable[[int, int], None]
) -> None:
    """Run the economic experiments on the trained run, for its report."""
    frontier.run(FrontierConfig(run=cfg.out, episodes=20 if cfg.quick else 100))
    elasticity.run(ElasticityConfig(run=cfg.out))
    spread.run(SpreadConfig(run=cfg.out))
    value.run(
        ValueConfig(
            embeddings=embeddings,
            out=RunDirectory(cfg.out).experiments,
            seed=cfg.seed,
            rounds=size["value_rounds"],
            tolerance=size["value_tolerance"],
        ),
        progress=progress,
    )
