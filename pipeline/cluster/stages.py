"""The stages that run as arrays: shards of an extraction, seeds of a training, and the validation of such seeds."""

from __future__ import annotations

import logging
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import evaluate as evaluation
from pipeline import seeds
from pipeline import train as training
from pipeline.cluster import local, slurm
from pipeline.cluster.array import Task, report
from pipeline.config import SLURM_SETTINGS, Config, EvaluateConfig, TrainConfig
from pipeline.errors import TryAgainError

logger = logging.getLogger(__name__)

GIB = 1 << 30

Progress = Callable[[int, int, str], None]
Landed = Callable[[], tuple[int, int]]


def train(cfg: TrainConfig, *, progress: Progress | None = None) -> dict[str, Any] | None:
    """Train several seeds and return their common summary; None where --no-wait leaves that to `vtp aggregate`."""
    configs = seeds.prepare(cfg)
    logger.info("%d of %d seeds to train", len(configs), len(seeds.parse_seeds(cfg.seeds)))
    tasks = [Task(f"seed {one.seed}", training.run, one) for one in configs]
    need = GIB + (3 * cfg.embeddings.stat().st_size if cfg.source == "embeddings" and cfg.embeddings.is_file() else 0)
    finish = f"vtp aggregate {shlex.quote(str(cfg.out))}"
    if not run_array(
        tasks, cfg, cfg.out / "jobs", lambda: seeds.landed(cfg), finish=finish, task_bytes=need, progress=progress
    ):
        return None
    return seeds.aggregate(cfg.out)


def evaluate(cfg: EvaluateConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Validate each seed of a folder of several, in local processes, and return their common summary."""
