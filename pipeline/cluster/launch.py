"""The stages that run as arrays: shards of an extraction or of novelty, random seeds of a training, and validation of
those runs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

import pipeline.evaluate as evaluation
import pipeline.extract as extraction
import pipeline.train as training
from pipeline import storage
from pipeline.cluster import local, slurm
from pipeline.cluster.array import Task, report
from pipeline.config import (
    EvaluateConfig,
    ExtractConfig,
    MergeConfig,
    NoveltyConfig,
    TrainConfig,
    alone,
    parse_seeds,
)
from pipeline.errors import TryAgainError, VtpError
from pipeline.extraction import shards
from pipeline.extraction.inputs import read_inputs
from pipeline.files import make_folder
from pipeline.training import seeds
from pipeline.writer_lock import one_writer

logger = logging.getLogger(__name__)

SEED_BYTES = 3 << 29  # memory of a training process besides its embeddings; 0.9 GiB measured
VIDEO_BYTES = 3 << 29  # more if an encoder is trained; 2 GiB in all measured
SHARD_BYTES = 3 << 30  # memory of an encoding process and its decoders; 1.3 GiB and 0.9 GiB measured
PROGRESS_S = 2.0  # between two reads of the progress

Progress = Callable[[int, int, str], None]
S = TypeVar("S", ExtractConfig, NoveltyConfig)
NumDone = Callable[[], tuple[int, int]]


def extract(cfg: ExtractConfig, *, progress: Progress | None = None) -> extraction.ExtractResult | None:
    """Extract all shards and merge them; None if --no-wait leaves the merge to `vtp merge`.

    With devices, there is at least one shard per device, and all run on this machine.
    """
    gpus, cfg = over_gpus(cfg)
    ids = {entry.video_id for entry in read_inputs(cfg).entries}  # errors are raised now, not in each shard

    def tasks() -> list[Task]:
        make_folder(cfg.out.parent)
        configs = [alone(cfg).model_copy(update={"shard": shard}) for shard in range(cfg.shards)]
        return [Task(f"shard {one.shard} of {one.shards}", extraction.run, one) for one in configs]

    def num_done() -> tuple[int, int]:
        return extraction.landed(cfg, ids), len(ids)

    folder = cfg.out.parent / f"{cfg.out.stem}.jobs"
    written = [shards.parts_folder(cfg.out)]
    ended = _run(tasks, cfg, folder, num_done, written, task_bytes=SHARD_BYTES, progress=progress, devices=gpus)
    return extraction.merge(cfg) if ended else None


def novelty(cfg: NoveltyConfig, *, progress: Progress | None = None) -> dict[str, Any] | None:
    """Measure all shards and score their clips; None if --no-wait leaves the scores to `vtp merge`.

    With devices, there is at least one shard per device, and all run on this machine.
    """
    import pipeline.novelty as scoring  # diffusers takes seconds

    gpus, cfg = over_gpus(cfg)
    out = scoring.output(cfg)
    cfg = cfg.model_copy(update={"out": out})
    scoring.check_output(cfg)  # errors are raised now, not in each shard
    corpus = scoring.find_corpus(cfg)

    def tasks() -> list[Task]:
        make_folder(out.parent)
        configs = [alone(cfg).model_copy(update={"shard": shard}) for shard in range(cfg.shards)]
        return [Task(f"shard {one.shard} of {one.shards}", scoring.run, one) for one in configs]

    def num_done() -> tuple[int, int]:
        return scoring.blocks_measured(cfg, corpus)

    folder = out.parent / f"{out.stem}.jobs"
    written = [shards.parts_folder(out)]
    ended = _run(tasks, cfg, folder, num_done, written, task_bytes=SHARD_BYTES, progress=progress, devices=gpus)
    return scoring.merge(MergeConfig(out=out)) if ended else None


def over_gpus(cfg: S) -> tuple[list[str], S]:
    """The GPUs of --devices, if any, and the settings with at least a shard for each, whose process sees it alone."""
    if not cfg.devices:
        return [], cfg
    gpus = visible_gpus(cfg.devices)
    return gpus, cfg.model_copy(update={"shards": max(cfg.shards, len(gpus)), "device": "cuda"})


def visible_gpus(devices: str) -> list[str]:
    """The GPUs with these numbers, as CUDA_VISIBLE_DEVICES names them; VtpError if one is not visible."""
    count = torch.cuda.device_count()
    numbers = list(range(count)) if devices == "all" else [int(number) for number in devices.split(",")]
    if count == 0:
        raise VtpError(f"--devices {devices}: torch sees no GPU here; drop it to compute on CPUs", code="gpu-missing")
    if missing := [number for number in numbers if number >= count]:
        raise VtpError(
            f"--devices {devices}: torch sees GPUs 0 to {count - 1} here, not {missing[0]}; choose from those",
            code="gpu-missing",
        )
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [names[number] if number < len(names) and names[number] else str(number) for number in numbers]


def train(cfg: TrainConfig, *, progress: Progress | None = None) -> dict[str, Any] | None:
    """Train all unfinished random seeds; the summary of all, or None if --no-wait leaves it to `vtp merge`."""

    def tasks() -> list[Task]:
        return [Task(f"seed {one.seed}", training.run, one) for one in seeds.prepare(cfg)]

    task_bytes = SEED_BYTES + (VIDEO_BYTES if cfg.source == "video" else 0)
    if cfg.source != "sim" and storage.fetch(cfg.embeddings).is_file():
        task_bytes += 3 * cfg.embeddings.stat().st_size  # as read, as a tensor, and one copy in between

    def num_done() -> tuple[int, int]:
        return seeds.landed(cfg)

    assert cfg.seeds is not None, "a single seed is not an array"
    written = [seeds.run_of(cfg.out, seed) for seed in parse_seeds(cfg.seeds)]
    ended = _run(tasks, cfg, cfg.out / "jobs", num_done, written, task_bytes=task_bytes, progress=progress)
    return seeds.merge(cfg.out) if ended else None


def evaluate(cfg: EvaluateConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Validate the runs of all random seeds in local processes; the summary of all."""
    runs = seeds.runs_in(cfg.run)
    tasks = [Task(run.name, evaluation.run, cfg.model_copy(update={"run": run})) for run in runs]
    folder = cfg.run / "jobs"
    with one_writer(folder / ".lock", cfg.run):
        _run_here(tasks, folder, None, task_bytes=SHARD_BYTES, progress=progress)
    return seeds.merge(cfg.run, changed=cfg.scenes == "changed")


def _run(
    tasks: Callable[[], list[Task]], cfg: ExtractConfig | NoveltyConfig | TrainConfig, folder: Path, num_done: NumDone,
    written: Sequence[Path], *, task_bytes: int, progress: Progress | None, devices: Sequence[str] = (),
) -> bool:  # fmt: skip
    """Run the tasks with `cfg.launcher`; False if they were submitted without waiting for them.

    Once all have ended, their failures are raised as one error. If a Slurm array already works on the same tasks,
    `tasks` is not called and the array is waited for. written: the folders that the tasks write to.
    """
    settings = alone(cfg).model_dump(mode="json", exclude={"overwrite"})
    assert cfg.out is not None
    with one_writer(folder / ".lock", cfg.out):
        array = slurm.running(folder, settings)
        if cfg.launcher != "slurm":
            if array is not None:
                raise TryAgainError(
                    f"Slurm array {array.id} is already working on this; add --launcher slurm to wait for it",
                    code="array-running",
                )
            _run_here(tasks(), folder, num_done, task_bytes=task_bytes, progress=progress, devices=devices)
            return True
        if array is not None:
            logger.info("Slurm array %s is already working on this", array.id)
        elif to_do := tasks():
            array = slurm.submit(
                to_do, folder, settings=settings, job_name=f"vtp-{cfg.out.stem}", time_limit=cfg.slurm_time,
                partition=cfg.slurm_partition, gres=cfg.slurm_gres, cpus=cfg.slurm_cpus,
            )  # fmt: skip
            logger.info("Slurm array %s: %d tasks, logs in %s", array.id, len(to_do), folder)
        else:
            return True
    if cfg.no_wait:
        return False
    try:
        failures = slurm.watch(array, tick=_ticker(num_done, progress))
    except KeyboardInterrupt as error:
        raise TryAgainError(
            f"interrupted, but Slurm array {array.id} continues; run the same command to wait for it again, or "
            f"`scancel {array.id}` to end it",
            code="command-interrupted",
        ) from error
    if failures:
        raise report(failures, len(array.jobs))
    for path in written:
        slurm.look_again(path)
    return True


def _run_here(
    tasks: Sequence[Task], folder: Path, num_done: NumDone | None, *, task_bytes: int, progress: Progress | None,
    devices: Sequence[str] = (),
) -> None:  # fmt: skip
    failures = local.run(tasks, folder, task_bytes=task_bytes, tick=_ticker(num_done, progress), devices=devices)
    if failures:
        raise report(failures, len(tasks))


def _ticker(num_done: NumDone | None, progress: Progress | None) -> Progress:
    """A callback for (tasks ended, tasks, text); it reports the progress read from files instead, if known."""
    looked_at = -PROGRESS_S

    def tick(done: int, total: int, text: str) -> None:
        nonlocal looked_at
        if progress is not None and time.monotonic() - looked_at >= PROGRESS_S:
            looked_at = time.monotonic()
            progress(*(num_done() if num_done else (done, total)), text)

    return tick
