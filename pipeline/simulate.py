"""Simulate: rendered demonstration videos with labels and a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import render, sim
from pipeline.config import SimulateConfig
from pipeline.rundir import atomic_path, make_folder, save_config

# A demonstrator tries things out and keeps at each for a few steps: the marginals are uniform, corners included.
KEEP_PROBABILITY = 0.5

Progress = Callable[[int, int], None]


def run(cfg: SimulateConfig, *, progress: Progress | None = None) -> Path:
    """Write OUT/videos, OUT/labels and, last, OUT/manifest.csv, whose path is returned.

    Video i has a random stream of its own, so it is the same however many are made.
    """
    scenario = sim.scenario(cfg.task, cfg.scenario)
    make_folder(cfg.out)
    save_config(cfg.out / "config.yaml", cfg)
    num_val = max(round(cfg.videos * cfg.val_fraction), 1) if cfg.val_fraction > 0 else 0
    num_val = min(num_val, cfg.videos - 1)  # something is left to learn from
    rows = []
    for index, stream in enumerate(np.random.SeedSequence(cfg.seed).spawn(cfg.videos)):
        rng = np.random.default_rng(stream)
        name = f"{index:04d}"
        labels = demonstrate(scenario, cfg.steps, rng)
        render.write_mp4(cfg.out / "videos" / f"{name}.mp4", film(cfg.task, labels, rng), fps=render.FPS)
        _write_csv(cfg.out / "labels" / f"{name}.csv", labels)
        rows.append(
            {
                "video_id": name,
                "path": f"videos/{name}.mp4",
                "split": "val" if index >= cfg.videos - num_val else "train",
                "task": cfg.task,
                "labels": f"labels/{name}.csv",
            }
        )
        if progress:
            progress(index + 1, cfg.videos)
    manifest = cfg.out / "manifest.csv"
    _write_csv(manifest, pd.DataFrame(rows))
    return manifest


def demonstrate(scenario: sim.Scenario, steps: int, rng: np.random.Generator) -> pd.DataFrame:
    """Step labels of one exploratory episode: step, context (its name), speed, care, attempts, errors."""
    context, action = sim.initial_context(scenario, 1, rng), rng.random(2)
    rows = []
    for step in range(steps):
        speed, care = action
        attempts, errors = sim.sample_outcomes(*sim.dynamics(scenario, context, action[:1], action[1:]), rng)
        name = scenario.context_names[context[0]]
        rows.append((step, name, round(speed, 4), round(care, 4), int(attempts[0]), int(errors[0])))
        context = sim.next_context(scenario, context, rng)
        if rng.random() >= KEEP_PROBABILITY:
            action = rng.random(2)
    return pd.DataFrame(rows, columns=["step", "context", "speed", "care", "attempts", "errors"])


def film(task: str, labels: pd.DataFrame, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The episode's frames [144, 192, 3] uint8, 16 a step, in one scene."""
    scene = render.sample_scene(task, rng)
    for step in labels.itertuples():
        yield from render.render_clip(scene, step.context, step.speed, step.care, rng)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
