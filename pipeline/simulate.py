"""Simulate: render demonstration videos with labels, a manifest and, unless it is built in, the task's file."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import processes, synthetic
from pipeline.callable_stage import make_callable
from pipeline.config import SimulateConfig
from pipeline.files import atomic_path, remove_leftovers, save_config
from pipeline.kept_inputs import keep_inputs, keep_others, settings_of
from pipeline.outcomes import LoggingPolicy, SimulatedOutcomes, logging_policy, simulate_logs
from pipeline.tasks import BUILT_IN, Task, load_task
from pipeline.writer_lock import one_writer

logger = logging.getLogger(__name__)

DEFAULT_SCENARIO = "mixed"
TASK_FILE = "task.yaml"
ACTION_DIGITS = 4  # of logged actions
POOL_CLIPS = 40  # about two seconds of rendering; for less, starting processes takes longer than it saves

Progress = Callable[[int, int], None]


def run(cfg: SimulateConfig, *, progress: Progress | None = None) -> Path:
    """Write OUT/videos, OUT/labels and, last, OUT/manifest.csv, whose path is returned.

    Each video has its own random stream, so it does not depend on how many are made. A task's file is copied to
    OUT/task.yaml. VtpError, before anything is written, if there is no task, scenario or renderer of that name.
    """
    task = simulated_task(cfg)
    task_text = None if cfg.task in BUILT_IN else Path(cfg.task).read_bytes()
    num_val = max(round(cfg.videos * cfg.val_fraction), 1) if cfg.val_fraction > 0 else 0
    num_val = min(num_val, cfg.videos - 1)  # at least one video is for training
    _warn_of_settings_without_effect(cfg, num_val)
    names = ("config.yaml", "manifest.csv", TASK_FILE, "videos", "labels")
    keep_inputs(cfg, [cfg.out / name for name in names])
    is_ours = settings_of(*SimulateConfig.model_fields)(cfg.out / "config.yaml")
    keep_others({cfg.out / name: lambda _: is_ours for name in names})
    with one_writer(cfg.out / ".lock", cfg.out):
        for folder in (cfg.out, cfg.out / "videos", cfg.out / "labels"):
            remove_leftovers(folder)
        save_config(cfg.out / "config.yaml", cfg)
        (cfg.out / "manifest.csv").unlink(missing_ok=True)  # it exists only when all videos are complete
        make_videos(cfg, task, progress or (lambda done, total: None))
        if task_text is not None:
            with atomic_path(cfg.out / TASK_FILE) as temporary:
                temporary.write_bytes(task_text)
        rows = [
            {
                "video_id": f"{index:04d}",
                "path": f"videos/{index:04d}.mp4",
                "split": "val" if index >= cfg.videos - num_val else "train",
                "task": cfg.task if task_text is None else TASK_FILE,
                "labels": f"labels/{index:04d}.csv",
            }
            for index in range(cfg.videos)
        ]
        manifest = cfg.out / "manifest.csv"
        _write_csv(manifest, pd.DataFrame(rows))
        return manifest


def simulated_task(cfg: SimulateConfig) -> Task:
    """The task in the scenario to simulate; VtpError if it cannot be simulated or rendered."""
    task = load_task(cfg.task)
    scenarios = {} if task.simulator is None else task.simulator.scenarios
    task = task.in_scenario(
        DEFAULT_SCENARIO if cfg.scenario is None and DEFAULT_SCENARIO in scenarios else cfg.scenario
    )
    synthetic.renderer_of(task)
    SimulatedOutcomes(task)  # VtpError if it has no simulator or no step_s
    return task


def _warn_of_settings_without_effect(cfg: SimulateConfig, num_val: int) -> None:
    if num_val == 0 and cfg.val_fraction > 0 and "val_fraction" in cfg.model_fields_set:
        logger.warning("--val-fraction %g has no effect: the only video is for training", cfg.val_fraction)
    if cfg.novel > 0 and planted(cfg.videos, cfg.steps, cfg.novel) == 0:
        logger.warning(
            "--novel %g has no effect: of %d clips it is less than half a clip", cfg.novel, cfg.videos * cfg.steps
        )


def make_videos(cfg: SimulateConfig, task: Task, progress: Progress) -> None:
    """Make every video and its labels, on all processors if there are enough clips."""
    policy = logging_policy(cfg.logger, task)
    streams = np.random.SeedSequence(cfg.seed).spawn(cfg.videos)
    num_workers = min(processes.num_processors(), cfg.videos)
    if num_workers == 1 or cfg.videos * cfg.steps < POOL_CLIPS:
        for index, stream in enumerate(streams):
            make_video(cfg, task, policy, index, stream)
            progress(index + 1, cfg.videos)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork with threads of torch or a progress bar running can hang
    with processes.starting_workers():  # the event starts a helper process
        stop = spawn.Event()
    with ProcessPoolExecutor(num_workers, spawn, _start_worker, (stop,)) as pool:
        try:
            with processes.starting_workers():
                videos = [
                    pool.submit(make_video, cfg, task, policy, index, stream) for index, stream in enumerate(streams)
                ]
            for done, video in enumerate(as_completed(videos), 1):
                video.result()
                progress(done, cfg.videos)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def make_video(
    cfg: SimulateConfig, task: Task, policy: LoggingPolicy, index: int, stream: np.random.SeedSequence
) -> None:
    """Write OUT/videos/INDEX.mp4 and OUT/labels/INDEX.csv of one episode."""
    rng = np.random.default_rng(stream)
    labels = demonstrate(task, cfg.steps, rng, policy=policy)
    if cfg.novel > 0:
        labels = plant(task, labels, index, cfg.novel, rng)
    frames = film(synthetic.renderer_of(task), labels, rng)
    synthetic.write_mp4(cfg.out / "videos" / f"{index:04d}.mp4", frames, fps=synthetic.FPS)
    _write_csv(cfg.out / "labels" / f"{index:04d}.csv", labels)


_stop: threading.Event | Event = threading.Event()  # in a worker: set by the parent to stop the work


def _start_worker(stop: Event) -> None:
    """Keep `stop`, and end with the parent, however that ends."""
    global _stop
    _stop = stop
    processes.end_with_parent()


def demonstrate(
    task: Task, steps: int, rng: np.random.Generator, *, policy: LoggingPolicy | None = None
) -> pd.DataFrame:
    """Step labels of one episode: step, context (unless it has no name), the actions, attempts, errors, propensity.

    policy: chooses the actions; by default the uniform one.
    """
    policy = policy or logging_policy("uniform", task)
    logs = simulate_logs(task, policy, videos=1, steps=steps, rng=rng)
    context, actions = logs.context[0], _rounded(logs.actions[0], policy)
    labels = pd.DataFrame(
        {
            "step": np.arange(steps),
            "context": [task.context_names[index] for index in context],
            **dict(zip(task.actions, actions.T, strict=True)),
            "attempts": logs.attempts[0],
            "errors": logs.errors[0],
            "propensity": policy.propensity(context, actions),  # of the rounded actions, which are logged
        }
    )
    return labels.drop(columns="context") if task.is_unnamed else labels


def _rounded(actions: np.ndarray, policy: LoggingPolicy) -> np.ndarray:
    """Actions [n, A] rounded for the logs. If draws are cut at bounds, rounding moves none onto or off a bound."""
    rounded = np.clip(actions.round(ACTION_DIGITS), policy.low, policy.high)
    if not policy.is_cut:
        return rounded
    meets_bound = np.any([one == bound for one in (actions, rounded) for bound in (policy.low, policy.high)], axis=0)
    return np.where(meets_bound, actions, rounded)


def planted(videos: int, steps: int, share: float) -> int:
    """How many clips of this many videos are novel."""
    return int(np.floor(videos * share * steps + 0.5))


def plant(task: Task, labels: pd.DataFrame, index: int, share: float, rng: np.random.Generator) -> pd.DataFrame:
    """The labels of video `index` with a column novel: a kind for `share` of all steps, "" for ordinary ones.

    Kinds alternate through all videos, so each is equally frequent; the steps are random.
    """
    steps = len(labels)
    first, stop = (planted(count, steps, share) for count in (index, index + 1))
    chosen = rng.permutation(steps)[: stop - first]
    novel = np.full(steps, "", object)
    novel[chosen] = [synthetic.NOVEL_KINDS[number % len(synthetic.NOVEL_KINDS)] for number in range(first, stop)]
    # A slow stroke three times as fast is ordinary, and so is a straight stroke reversed: both need a minimum.
    least = rng.uniform(0.5, 1, steps).round(4)
    changed = {
        name: labels[name].where(novel != kind, np.maximum(labels[name], np.minimum(least, task.actions[name].high)))
        for name, kind in (("speed", "fast"), ("care", "reversed"))
    }
    # The simulator does not know the outcomes of novel work.
    outcomes = {name: labels[name].astype("Int64").mask(novel != "") for name in ("attempts", "errors")}
    propensity = labels["propensity"].mask(
        np.isin(novel, ("fast", "reversed"))
    )  # their actions were not drawn by the policy
    return labels.assign(**changed, **outcomes, propensity=propensity, novel=novel)


def film(renderer: str, labels: pd.DataFrame, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The episode's frames [144, 192, 3] uint8, 16 per step, in one scene."""
    scene = synthetic.sample_scene(renderer, rng)
    novel = labels["novel"] if "novel" in labels else [""] * len(labels)
    for context, speed, care, kind in zip(labels["context"], labels["speed"], labels["care"], novel, strict=True):
        if _stop.is_set():
            raise KeyboardInterrupt
        yield from synthetic.render_clip(scene, context, speed, care, rng, novel=kind or None)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


make_callable(__name__)
