"""Simulate: rendered demonstration videos with labels and a manifest."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import processes, synthetic
from pipeline.config import SimulateConfig
from pipeline.files import atomic_path, make_folder, save_config
from pipeline.synthetic import dynamics

# A demonstrator tries things out and keeps at each for a few steps: the marginals are uniform, corners included.
KEEP_PROBABILITY = 0.5
POOL_CLIPS = 40  # about two seconds of rendering; for less, starting processes is not worth while

Progress = Callable[[int, int], None]


def run(cfg: SimulateConfig, *, progress: Progress | None = None) -> Path:
    """Write OUT/videos, OUT/labels and, last, OUT/manifest.csv, whose path is returned.

    Video i has a random stream of its own, so it is the same however many are made.
    """
    make_folder(cfg.out)
    save_config(cfg.out / "config.yaml", cfg)
    num_val = max(round(cfg.videos * cfg.val_fraction), 1) if cfg.val_fraction > 0 else 0
    num_val = min(num_val, cfg.videos - 1)  # something is left to learn from
    (cfg.out / "manifest.csv").unlink(missing_ok=True)  # it lists what is complete
    make_videos(cfg, progress or (lambda done, total: None))
    rows = [
        {
            "video_id": f"{index:04d}",
            "path": f"videos/{index:04d}.mp4",
            "split": "val" if index >= cfg.videos - num_val else "train",
            "task": cfg.task,
            "labels": f"labels/{index:04d}.csv",
        }
        for index in range(cfg.videos)
    ]
    manifest = cfg.out / "manifest.csv"
    _write_csv(manifest, pd.DataFrame(rows))
    return manifest


def make_videos(cfg: SimulateConfig, progress: Progress) -> None:
    """Make every video and its labels, on all processors where there is enough to do."""
    streams = np.random.SeedSequence(cfg.seed).spawn(cfg.videos)
    num_workers = min(processes.num_processors(), cfg.videos)
    if num_workers == 1 or cfg.videos * cfg.steps < POOL_CLIPS:
        for index, stream in enumerate(streams):
            make_video(cfg, index, stream)
            progress(index + 1, cfg.videos)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork beside torch's threads or a progress bar's can hang
    stop = spawn.Event()
    with ProcessPoolExecutor(num_workers, spawn, _start_worker, (stop,)) as pool:
        try:
            with processes.no_ctrl_c():  # the workers start here and inherit this: Ctrl-C is the parent's to handle
                videos = [pool.submit(make_video, cfg, index, stream) for index, stream in enumerate(streams)]
            for done, video in enumerate(as_completed(videos), 1):
                video.result()
                progress(done, cfg.videos)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def make_video(cfg: SimulateConfig, index: int, stream: np.random.SeedSequence) -> None:
    """Write OUT/videos/INDEX.mp4 and OUT/labels/INDEX.csv of one episode."""
    rng = np.random.default_rng(stream)
    labels = demonstrate(dynamics.scenario(cfg.task, cfg.scenario), cfg.steps, rng)
    if cfg.novel > 0:
        labels = plant(labels, index, cfg.novel, rng)
    synthetic.write_mp4(cfg.out / "videos" / f"{index:04d}.mp4", film(cfg.task, labels, rng), fps=synthetic.FPS)
    _write_csv(cfg.out / "labels" / f"{index:04d}.csv", labels)


_stop: threading.Event | Event = threading.Event()  # in a worker, the parent sets it to have work dropped


def _start_worker(stop: Event) -> None:
    """Take `stop`, and end when the parent does, however it ends."""
    global _stop
    _stop = stop
    processes.end_with_parent()


def demonstrate(scenario: dynamics.Scenario, steps: int, rng: np.random.Generator) -> pd.DataFrame:
    """Step labels of one exploratory episode: step, context (its name), speed, care, attempts, errors."""
    context, action = dynamics.initial_context(scenario, 1, rng), rng.random(2)
    rows = []
    for step in range(steps):
        speed, care = action
        attempts, errors = dynamics.sample_outcomes(*dynamics.dynamics(scenario, context, action[:1], action[1:]), rng)
        name = scenario.context_names[context[0]]
        rows.append((step, name, round(speed, 4), round(care, 4), int(attempts[0]), int(errors[0])))
        context = dynamics.next_context(scenario, context, rng)
        if rng.random() >= KEEP_PROBABILITY:
            action = rng.random(2)
    return pd.DataFrame(rows, columns=["step", "context", "speed", "care", "attempts", "errors"])


def plant(labels: pd.DataFrame, index: int, share: float, rng: np.random.Generator) -> pd.DataFrame:
    """The labels of video `index` with a column novel: a kind for `share` of all steps, "" for the ordinary ones.

    Kinds take turns, through all videos, so that there are as many of each; which steps they fall on is random.
    """
    steps = len(labels)
    first, stop = (int(np.floor(count * share * steps + 0.5)) for count in (index, index + 1))
    chosen = rng.permutation(steps)[: stop - first]
    novel = np.full(steps, "", object)
    novel[chosen] = [synthetic.NOVEL_KINDS[number % len(synthetic.NOVEL_KINDS)] for number in range(first, stop)]
    # Three times a slow stroke is an ordinary one, and so is a straight stroke backwards.
    least = rng.uniform(0.5, 1, steps).round(4)
    speed = labels["speed"].where(novel != "fast", np.maximum(labels["speed"], least))
    care = labels["care"].where(novel != "reversed", np.maximum(labels["care"], least))
    # What comes of washing something that the simulator does not know is not known either.
    outcomes = {name: labels[name].astype("Int64").mask(novel != "") for name in ("attempts", "errors")}
    return labels.assign(speed=speed, care=care, **outcomes, novel=novel)


def film(task: str, labels: pd.DataFrame, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The episode's frames [144, 192, 3] uint8, 16 a step, in one scene."""
    scene = synthetic.sample_scene(task, rng)
    for step in labels.itertuples():
        if _stop.is_set():
            raise KeyboardInterrupt
        novel = getattr(step, "novel", "") or None
        yield from synthetic.render_clip(scene, step.context, step.speed, step.care, rng, novel=novel)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
