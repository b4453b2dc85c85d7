"""Logged data sets without video: embeddings that show a clip's context through noise, and simulated logs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline import dataset
from pipeline.outcomes import SimulatedLogs, logging_policy, simulate_logs
from pipeline.tasks import Task

STEPS = 20  # a video
VAL_SHARE = 0.2  # of the videos
NOISE = 0.35  # deviation around a context's embedding, whose entries are standard normal
FPS, CLIP_LEN = 15.0, 16


def logs_of(task: Task, logger: str, videos: int, seed: int) -> SimulatedLogs:
    return simulate_logs(
        task, logging_policy(logger, task), videos=videos, steps=STEPS, rng=np.random.default_rng([seed, videos])
    )


def write(path: Path, task: Task, logs: SimulatedLogs, seed: int, *, with_propensity: bool = True) -> Path:
    """An embeddings file of these logs, the last fifth of whose videos are held out."""
    videos, steps = logs.context.shape
    rng, num_clips = np.random.default_rng([seed, 1]), videos * steps
    seen = np.random.default_rng(len(task.contexts)).standard_normal((len(task.contexts), 128))
    context = logs.context.reshape(-1)
    embeddings = (seen[context] + NOISE * rng.standard_normal((num_clips, 128))).astype(np.float32)
    start = np.tile(np.arange(steps) * CLIP_LEN / FPS, videos)
    clips = dataset.Clips(
        embeddings, np.tile(np.arange(steps) * CLIP_LEN, videos), start, start + CLIP_LEN / FPS,
        np.full(num_clips, CLIP_LEN), np.arange(videos + 1) * steps,
    )  # fmt: skip
    held = max(round(VAL_SHARE * videos), 1)
    names = [f"{index:04d}" for index in range(videos)]
    data = dataset.Embeddings(
        embeddings=embeddings,
        clips=clips,
        videos=dataset.Videos(
            sha256=[f"{seed:032d}{index:032d}" for index in range(videos)], fps=np.full(videos, FPS),
            num_frames=np.full(videos, steps * CLIP_LEN), decoder=["decord"] * videos, id=names, path=names,
            split=["train"] * (videos - held) + ["val"] * held,
        ),
        logs=dataset.Logs(
            context=np.array(task.context_names, object)[context],
            actions=logs.actions.reshape(num_clips, -1),
            attempts=logs.attempts.reshape(-1).astype(float),
            errors=logs.errors.reshape(-1).astype(float),
            novel=np.full(num_clips, np.nan),
            propensity=logs.propensity.reshape(-1) if with_propensity else None,
        ),
        projector_mean=np.zeros(128),
        projector_components=np.eye(128),
        projector_scale=1.0,
        attrs={
            "backbone": "r3d_18", "weights": "none", "weights_sha256": "w", "transform": "t", "clip_len": CLIP_LEN,
            "fps": FPS, "precision": "fp32", "projector": "pca", "projector_sha256": "p", "clip_stride": CLIP_LEN,
            "tail": "drop", "decoder": "auto",
        },
        task=task,
    )  # fmt: skip
    dataset.write_embeddings(path, data)
    return path
